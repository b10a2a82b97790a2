"""Programs of what torchvision and timm offer, with random weights, from either mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from frozenbn_cli import survey_batch_norms
from tests.builders.marks import slow_except
from tests.builders.models import assert_same_bits, build, leaves
from tests.builders.programs import convert, export, frozen, load, saved
from tests.freezing.test_zoo import TIMM_PIXELS, TORCHVISION_PIXELS, build_torchvision, image

TORCHVISION_NAMES = """
    resnet18 resnet50 densenet121 efficientnet_b0 googlenet mnasnet0_5 mobilenet_v2
    mobilenet_v3_small regnet_y_400mf resnext50_32x4d shufflenet_v2_x0_5
""".split()  # noqa: SIM905
TIMM_NAMES = """
    cs3darknet_focus_s dla46_c ecaresnet26t efficientnet_lite0 ese_vovnet19b_slim fastvit_t8
    fbnetc_100 gernet_s ghostnet_050 hardcorenas_a hgnetv2_b0 lcnet_050 legacy_seresnet18
    levit_128s mixnet_s mobilenetv3_small_050 mobilenetv4_conv_small mobilevit_xxs regnetx_002
    repvgg_a0 resnet10t rexnet_100 seresnet18 test_byobnet test_efficientnet test_resnet
    tf_efficientnet_b0 tinynet_e xcit_nano_12_p16_224
""".split()  # noqa: SIM905
IN_TRAINING = """
    dla46_c efficientnet_lite0 ese_vovnet19b_slim fbnetc_100 gernet_s ghostnet_050 hgnetv2_b0
    lcnet_050 mobilenetv4_conv_small regnetx_002 resnet10t seresnet18 test_byobnet test_resnet
""".split()  # noqa: SIM905
ANY_BATCH = {"resnet18", "mobilenet_v2", "resnet10t", "regnetx_002", "lcnet_050", "test_resnet"}


def layers_of(model: nn.Module) -> set[str]:
    return {name for item in survey_batch_norms(model) if item.frozen for name in item.names}


def floats(output: Any) -> list[Tensor]:
    return [leaf for _, leaf in leaves(output) if isinstance(leaf, Tensor)]


@torch.no_grad()
def run(module: Any, x: Tensor) -> list[Tensor]:
    torch.manual_seed(0)
    return floats(module(x))


def assert_programs_freeze(model: nn.Module, pixels: int, folder: Path, *, any_batch: bool) -> None:
    """Freeze the program of a model, in the mode that it is in, as it is and decomposed."""
    x, names = image(pixels), layers_of(model)
    program = export(model, x, any_batch=any_batch)
    for layer in model.modules():  # What training mode means for all else stays.
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.eval()
    for name, kind in (("plain", program), ("decomposed", program.run_decompositions())):
        path = folder / f"{name}.pt2"
        path.write_bytes(saved(kind))

        result = convert(path)

        assert set(frozen(result)) == names
        loaded = load(result.output_path)
        affine = {f"{layer}.{role}" for layer in names for role in ("weight", "bias")}
        assert not affine & {parameter for parameter, _ in loaded.named_parameters()}
        assert not loaded.graph_signature.buffers_to_mutate
        assert_same_bits(run(loaded.module(), x), run(model, x))
        if any_batch:
            images = image(pixels, batch=5)
            assert_same_bits(run(loaded.module(), images), run(model, images))


@pytest.mark.parametrize("name", slow_except("resnet18", TORCHVISION_NAMES))
def test_programs_of_torchvision(tmp_path: Path, name: str) -> None:
    pixels = TORCHVISION_PIXELS.get(name, 64)
    assert_programs_freeze(build_torchvision(name), pixels, tmp_path, any_batch=name in ANY_BATCH)


@pytest.mark.parametrize("name", slow_except("test_resnet", TIMM_NAMES))
def test_programs_of_timm(tmp_path: Path, name: str) -> None:
    model = build(timm.create_model, name, pretrained=False, num_classes=5)
    pixels = TIMM_PIXELS.get(name, 64)
    assert_programs_freeze(model, pixels, tmp_path, any_batch=name in ANY_BATCH)


@pytest.mark.parametrize("name", slow_except("test_resnet", IN_TRAINING))
def test_programs_of_timm_in_training_mode(tmp_path: Path, name: str) -> None:
    model = build(timm.create_model, name, pretrained=False, num_classes=5).train()
    pixels = TIMM_PIXELS.get(name, 64)
    assert_programs_freeze(model, pixels, tmp_path, any_batch=name in ANY_BATCH)
