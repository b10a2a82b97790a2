"""The layers of archives, by how many dimensions they have: which are frozen, and what tells it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from frozenbn_cli import VerifyOptions, inspect_file, verify_files
from tests.builders.archives import assert_freezes, make, types
from tests.builders.script_models import Dimensions, Pooled

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BOTH = pytest.mark.parametrize("how", ["scripted", "traced"])
ALL = (1, 2, 3)


@BOTH
@pytest.mark.parametrize(
    ("dims", "frozen"),
    [(None, {"two"}), ((1, 3), {"one", "three"}), (ALL, {"one", "two", "three"})],
)
def test_freezes_the_dimensions_that_are_chosen(
    tmp_path: Path, how: str, dims: tuple[int, ...] | None, frozen: set[str]
) -> None:
    path = make(how, Dimensions(), tmp_path / "a.pt", IMAGE)

    output = assert_freezes(
        path, IMAGE, frozen=frozen, dims=dims, input_shapes=(tuple(IMAGE.shape),)
    )

    names = {"one": "FrozenBatchNorm1d", "two": "FrozenBatchNorm2d", "three": "FrozenBatchNorm3d"}
    for name in frozen:
        assert types(output)[name].rpartition(".")[2] == names[name]
    shapes = VerifyOptions(input_shapes=(tuple(IMAGE.shape),))
    assert verify_files(path, output, options=shapes).verdict == "passed"
    (part,) = inspect_file(output).state_dicts
    assert {
        item.layer.name: item.layer.spatial_dims
        for item in part.plan.layers
        if item.layer.frozen_already
    } == {name: {"one": 1, "two": 2, "three": 3}[name] for name in frozen}


def test_a_layer_whose_check_says_1d_is_one_whatever_its_name(tmp_path: Path) -> None:
    path = make("scripted", Pooled(), tmp_path / "a.pt")
    names = {item.layer.name for item in inspect_file(path).state_dicts[0].plan.layers}

    assert_freezes(path, IMAGE, frozen=names, dims=ALL)
