"""Archives of what torchvision and timm offer, scripted and traced, with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
from torch import nn

from frozenbn_cli import survey_batch_norms
from tests.builders.archives import (
    assert_same_behaviour,
    assert_same_state,
    claims,
    convert,
    load,
    make,
)
from tests.builders.marks import slow_except
from tests.builders.models import build
from tests.freezing.test_zoo import (
    TIMM_PIXELS,
    TORCHVISION_PIXELS,
    build_detector,
    build_torchvision,
    image,
)

# The smallest of each kind: the code of the larger ones is the same, with other numbers.
TORCHVISION_NAMES = """
    efficientnet_b0 densenet121 googlenet inception_v3 mnasnet0_5 mobilenet_v2
    mobilenet_v3_large mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnet50
    resnext50_32x4d shufflenet_v2_x0_5
""".split()  # noqa: SIM905
TIMM_NAMES = """
    cs3darknet_focus_s darknet17 dla34 dla46_c eca_resnext26ts ecaresnet26t efficientnet_b0
    efficientnet_lite0 efficientvit_b0 ese_vovnet19b_slim fastvit_t8 fbnetc_100 gernet_s
    ghostnet_050 hardcorenas_a hgnetv2_b0 inception_next_atto lcnet_050 legacy_seresnet18
    levit_128s mixnet_s mnasnet_small mobilenetv1_100 mobilenetv3_small_050
    mobilenetv4_conv_small mobilevit_xxs regnetx_002 regnety_002 repvgg_a0 resnest14d resnet10t
    rexnet_100 seresnet18 semnasnet_075 skresnet18 starnet_s1 test_byobnet test_efficientnet
    test_resnet tf_mobilenetv3_small_minimal_100 tinynet_e visformer_tiny xcit_nano_12_p16_224
""".split()  # noqa: SIM905


def assert_both_freeze(folder: Path, model: nn.Module, pixels: int) -> None:
    for how in ("scripted", "traced"):
        x = image(pixels, batch=1)
        path = make(how, model, folder / f"{how}.pt", x)

        result, output = convert(path, verify=False)

        frozen = {plan.layer.name for plan in result.plan.frozen}
        expected = {
            name for item in survey_batch_norms(model) if item.frozen for name in item.names
        }
        assert frozen == expected
        before, after = load(path), load(output)
        assert_same_behaviour(before, after, frozen, (x,))
        assert_same_state(before, after, frozen)


@pytest.mark.parametrize("name", slow_except("resnet18", TORCHVISION_NAMES))
def test_freezes_archives_of_torchvision(tmp_path: Path, name: str) -> None:
    model = build_torchvision(name)
    assert_both_freeze(tmp_path, model, TORCHVISION_PIXELS.get(name, 64))


@pytest.mark.parametrize("name", slow_except("test_resnet", TIMM_NAMES))
def test_freezes_archives_of_timm(tmp_path: Path, name: str) -> None:
    model = build(timm.create_model, name, pretrained=False, num_classes=5)
    assert_both_freeze(tmp_path, model, TIMM_PIXELS.get(name, 64))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large"])
def test_freezes_archives_of_segmentation_models(tmp_path: Path, name: str) -> None:
    model = build_torchvision(name, weights_backbone=None)
    assert_both_freeze(tmp_path, model, 64)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["fasterrcnn_mobilenet_v3_large_fpn", "ssdlite320_mobilenet_v3_large"]
)
def test_freezes_scripted_detectors(tmp_path: Path, name: str) -> None:
    path = make("scripted", build_detector(name), tmp_path / "a.pt")

    result, _ = convert(path)

    assert result.plan.frozen
    assert claims(result)["model"] == "equal"
