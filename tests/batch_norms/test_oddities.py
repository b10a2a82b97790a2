"""One odd layer never refuses a file: it is left alone, and the reason is true."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from frozenbn_cli import convert_file
from frozenbn_cli.inspection import inspect_file
from tests.builders.files import State, save, small_state
from tests.builders.models import perturb


def odd(change: Callable[[nn.Module], object]) -> State:
    layer = perturb(nn.BatchNorm2d(5))
    change(layer)
    return {**small_state(), **{f"odd.{name}": value for name, value in layer.state_dict().items()}}


def beside(**entries: Tensor) -> State:
    return {**small_state(), **{f"odd.{name}": value for name, value in entries.items()}}


CASES: dict[str, tuple[State, str]] = {
    "pruned": (
        odd(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)),
        "pruned or parametrised: it has weight_orig",
    ),
    "parametrised": (
        odd(lambda layer: parametrize.register_parametrization(layer, "bias", nn.Softplus())),
        "pruned or parametrised: it has parametrizations.bias.original",
    ),
    "four axes": (
        beside(running_mean=torch.ones(1, 8, 1, 1), running_var=torch.ones(1, 8, 1, 1)),
        "its running_mean has shape [1, 8, 1, 1], which no BatchNorm's has",
    ),
    "a scalar": (
        beside(running_mean=torch.tensor(0.3), running_var=torch.tensor(2.0)),
        "its running_mean has shape [], which no BatchNorm's has",
    ),
    "one number": (
        beside(running_mean=torch.ones(1), running_var=torch.ones(1)),
        "statistics of one number and nothing else, as of what normalises rewards or inputs",
    ),
    "a sparse bias": (
        {**odd(lambda _: None), "odd.bias": torch.ones(5).to_sparse()},
        "its bias cannot be read (a sparse tensor)",
    ),
    "statistics of nothing": (
        beside(running_mean=torch.ones(5, device="meta"), running_var=torch.ones(5, device="meta")),
        "its running_mean cannot be read (a meta (shape without values) tensor)",
    ),
    "a mean alone": (
        beside(running_mean=torch.ones(8)),
        "its running_mean stands alone, as in no BatchNorm",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_odd_layer_is_left_alone(tmp_path: Path, case: str) -> None:
    state, reason = CASES[case]
    path = save(tmp_path / "a.pt", state)

    result = convert_file(path)

    assert [item.layer.name for item in result.plan.frozen] == ["bn1", "bn2"]
    assert {item.layer.name: item.reason for item in result.plan.left} == {"odd": reason}
    assert not inspect_file(path).has_errors


def test_what_lost_entries_is_damaged_still(tmp_path: Path) -> None:
    state = small_state()
    del state["bn1.running_var"]

    assert inspect_file(save(tmp_path / "a.pt", state)).has_errors
