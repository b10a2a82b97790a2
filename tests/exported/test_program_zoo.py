"""Programs of what torchvision and timm offer are frozen, run, and saved and loaded again."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from frozenbn_cli.conversion.convert import ConversionResult, convert_file
from frozenbn_cli.errors import NothingToFreezeError
from tests.builders.models import assert_same_bits, build, leaves

pytestmark = pytest.mark.slow

SEED = 3
PIXELS = {"levit_128s": 224}

# Half of each are decomposed, and of those in eval these take a batch of any size.
IN_EVAL = """
    resnet18 mobilenet_v2 mobilenet_v3_small mobilenet_v3_large shufflenet_v2_x0_5 mnasnet0_5
    efficientnet_b0 regnet_x_400mf regnet_y_400mf lraspp_mobilenet_v3_large timm:resnet10t
    timm:efficientnet_lite0 timm:mobilenetv3_small_050 timm:regnety_002 timm:regnetx_002
    timm:hardcorenas_a timm:ghostnet_050 timm:seresnet18 timm:skresnet18 timm:lcnet_050
    timm:mixnet_s timm:mobilenetv2_035 timm:semnasnet_075 timm:spnasnet_100 timm:tinynet_e
    timm:test_byobnet timm:test_efficientnet timm:test_resnet timm:fbnetc_100 timm:mnasnet_small
    timm:levit_128s timm:dla46_c timm:gernet_s timm:repghostnet_050
""".split()  # noqa: SIM905
IN_TRAINING = """
    resnet18 mobilenet_v2 shufflenet_v2_x0_5 mnasnet0_5 regnet_x_400mf timm:resnet10t
    timm:efficientnet_lite0 timm:mobilenetv3_small_050 timm:ghostnet_050 timm:lcnet_050
    timm:mobilenetv2_035 timm:test_byobnet
""".split()  # noqa: SIM905


def built(name: str) -> nn.Module:
    library, _, short = name.rpartition(":")
    if library:
        return build(timm.create_model, short)
    builder = torchvision.models.get_model_builder(name)
    without = {"weights": None}
    if builder.__module__.startswith("torchvision.models.segmentation"):
        without["weights_backbone"] = None
    return build(builder, **without)


def images(name: str, count: int = 2) -> Tensor:
    size = PIXELS.get(name.rpartition(":")[2], 64)
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(SEED))


def export(model: nn.Module, path: Path, x: Tensor, *, decomposed: bool, any_batch: bool) -> Path:
    shapes = ({0: torch.export.Dim("batch", max=64)},) if any_batch else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (x,), dynamic_shapes=shapes, strict=False)
        torch.export.save(program.run_decompositions() if decomposed else program, path)
    return path


def loaded(file: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(file)


def saved_again(program: Any) -> io.BytesIO:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, file)
    file.seek(0)
    return file


@torch.no_grad()
def run(model: Any, x: Tensor) -> list[tuple[str, Any]]:
    torch.manual_seed(SEED)
    return list(leaves(model(x)))


def check(result: ConversionResult, original: Any, expected: Any, x: Tensor) -> None:
    """Check the claims, and what PyTorch makes of the result.

    Args:
        result: Of the conversion.
        original: What gives the same outputs to the bit.
        expected: What the live model gives, which what is decomposed computes otherwise.
        x: Its input.
    """
    assert [claim.status for claim in result.claims] == ["equal"] * 3
    program = loaded(result.output_path)
    parameters = dict(program.named_parameters())
    for item in result.plan.frozen:
        assert f"{item.layer.name}.weight" not in parameters
        assert f"{item.layer.name}.num_batches_tracked" not in program.state_dict
    before = copy.deepcopy(program.state_dict)
    found = run(program.module(), x)
    assert all(value.equal(before[name]) for name, value in program.state_dict.items())
    torch.testing.assert_close(dict(found), dict(expected), rtol=1e-3, atol=1e-4)
    if original is not None:
        assert_same_bits(dict(found), dict(run(original, x)))
    assert_same_bits(dict(run(loaded(saved_again(program)).module(), x)), dict(found))
    with pytest.raises(NothingToFreezeError):
        convert_file(result.output_path)


@pytest.mark.parametrize("name", IN_EVAL)
def test_a_program_in_eval(tmp_path: Path, name: str) -> None:
    model, x = built(name), images(name)
    odd = IN_EVAL.index(name) % 2 == 1
    path = export(model, tmp_path / "a.pt2", x, decomposed=odd, any_batch=odd)
    original = loaded(path).module() if odd else model
    check(convert_file(path), original, run(model, x), x)


@pytest.mark.parametrize("name", IN_TRAINING)
def test_a_program_in_training_mode(tmp_path: Path, name: str) -> None:
    model, x = built(name).train(), images(name, 4)
    odd = IN_TRAINING.index(name) % 2 == 1
    path = export(copy.deepcopy(model), tmp_path / "a.pt2", x, decomposed=odd, any_batch=False)
    result = convert_file(path)
    for item in result.plan.frozen:
        model.get_submodule(item.layer.name).eval()
    check(result, None if odd else copy.deepcopy(model), run(model, x), x)
