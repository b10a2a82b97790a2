"""All three claims hold of programs of real models, and of programs that are made of them."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from frozenbn_cli.conversion.convert import ConvertOptions, convert_file
from frozenbn_cli.live_models.known_models import KnownModel
from tests.builders.files import save
from tests.builders.models import assert_same_bits, build
from tests.builders.programs import convert, decompose, export, load, saved
from tests.freezing.test_zoo import TIMM_PIXELS, build_torchvision, image

pytestmark = pytest.mark.slow

IN_EVAL = (
    "efficientnet_lite0 ghostnet_050 levit_128s mobilenetv3_small_050 regnetx_002 test_byobnet"
)
IN_TRAINING = "lcnet_050 mobilenetv2_035 resnet10t test_resnet"
MADE = "mobilenet_v3_small resnet18 shufflenet_v2_x0_5"


@lru_cache(maxsize=1)  # Both tests of a name come one after the other.
def exported(name: str) -> Any:
    model = build(timm.create_model, name).train(name in IN_TRAINING.split())
    return export(model, image(TIMM_PIXELS.get(name, 64)))


@pytest.mark.parametrize("decomposed", [False, True], ids=["training IR", "decomposed"])
@pytest.mark.parametrize("name", [*IN_EVAL.split(), *IN_TRAINING.split()])
def test_programs_of_timm(tmp_path: Path, name: str, decomposed: bool) -> None:
    program = exported(name)
    path = tmp_path / "program.pt2"
    path.write_bytes(saved(decompose(program) if decomposed else program))

    result = convert(path, verify=True)

    assert [claim.status for claim in result.claims] == ["equal"] * 3


@pytest.mark.parametrize("name", MADE.split())
def test_programs_made_of_torchvision(tmp_path: Path, name: str) -> None:
    model = build_torchvision(name)
    path = save(tmp_path / "model.pth", model.state_dict())

    options = ConvertOptions(to="pt2", model=KnownModel("auto"), input_shapes=((1, 3, 64, 64),))
    result = convert_file(path, options=options)

    assert [claim.status for claim in result.claims] == ["equal"] * 3
    assert result.made == "exported for 1x3x64x64 of float32, and batches of any size"
    images = image(64, batch=3)
    with torch.no_grad():
        assert_same_bits(load(result.output_path).module()(images), model(images))
