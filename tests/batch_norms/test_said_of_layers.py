"""What a user says of layers that the file cannot tell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from frozenbn_cli import ConvertOptions, convert_file, load_frozen
from frozenbn_cli.batch_norms.plan import LayerPlan
from frozenbn_cli.cli.app import run
from frozenbn_cli.errors import UsageError
from frozenbn_cli.inspection import inspect_file
from frozenbn_cli.selection import Selection
from tests.builders.files import batch_norm, nested, save, small_state


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A BatchNorm1d that nothing tells, one that seems to be 1d, and a BatchNorm2d."""
    state = nested(
        data_bn=batch_norm(54),
        conv={"weight": torch.ones(8, 3, 3, 3)},
        bn=batch_norm(8),
        fc={"weight": torch.ones(5, 9)},
        norm=batch_norm(5),
    )
    return save(tmp_path / "a.pt", state)


def plans(path: Path, **said: object) -> dict[str, LayerPlan]:
    (part,) = inspect_file(path, selection=Selection(**said)).state_dicts  # type: ignore[arg-type]
    return {plan.layer.name: plan for plan in part.plan.layers}


def test_what_is_unknown_is_frozen_with_a_note(file: Path) -> None:
    plan = plans(file)["data_bn"]

    assert (plan.action, plan.layer.spatial_dims, plan.layer.dims_known) == ("freeze", None, None)
    assert [finding.code for finding in plan.findings] == ["dims_assumed"]


def test_given_dimensions_count_for_more_than_what_weights_prove(file: Path) -> None:
    found = plans(file, dims_of=(("data_bn", 1), ("norm", 2)))

    assert found["data_bn"].reason == "BatchNorm1d"
    assert found["norm"].action == "freeze"
    assert found["norm"].layer.dims_known == "given"
    assert not found["norm"].findings


def test_to_include_a_layer_by_its_name_says_that_it_is_2d(file: Path) -> None:
    assert plans(file, include=("nor*", "bn"))["norm"].action == "leave"
    assert plans(file, include=("norm", "bn"))["norm"].action == "freeze"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"dims_of": (("neck", 1),)}, "of 'neck', which is no BatchNorm layer"),
        ({"state": "live"}, "said to be live, and the file tells it of every layer"),
    ],
)
def test_refuses_what_has_no_effect(file: Path, said: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plans(file, **said)


def test_refuses_dimensions_of_a_layer_whose_class_is_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)))

    with pytest.raises(UsageError, match="it is known that there are 2"):
        plans(path, dims_of=(("1", 1),))


def test_on_the_command_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["convert", str(file), "--dims-of", "data_bn=1d", "--no-verify"]) == 0
    assert "data_bn" in capsys.readouterr().out
    assert run(["inspect", str(file), "--dims-of", "data_bn=4d"]) == 2
    assert run(["inspect", str(file), "--dims-of", "bn=1d", "--dims-of", "bn=2d"]) == 2
    assert run(["inspect", str(file), "--live", "--frozen"]) == 2
    assert "--live and --frozen are given" in capsys.readouterr().err


def test_what_is_said_is_in_the_record_and_only_then(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", small_state())

    silent = ConvertOptions().deciding("safetensors")
    said = ConvertOptions(selection=Selection(dims_of=(("bn1", 2),))).deciding("safetensors")

    assert "dims_of" not in silent
    assert said["dims_of"] == {"bn1": 2}
    assert convert_file(path, options=ConvertOptions(selection=Selection(dims_of=(("bn1", 2),))))


def test_a_model_with_another_layer_does_not_load_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.BatchNorm1d(54))
    model[0].running_mean.add_(1)
    result = convert_file(save(tmp_path / "a.pt", model.state_dict()))

    with pytest.raises(UsageError, match="expected a BatchNorm2d that can be frozen"):
        load_frozen(nn.Sequential(nn.BatchNorm1d(54)), result.output_path)
