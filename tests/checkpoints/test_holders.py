"""What holds a state dict: objects, tuples, keys of every kind, and what other picklers make."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch.fx
from torch import nn

from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.errors import UsageError
from frozenbn_cli.inspection import Inspection, inspect_file
from tests.builders.files import save, small_state
from tests.builders.models import perturb

Pair = collections.namedtuple("Pair", "model epoch")


class Dict(dict):  # type: ignore[type-arg]
    pass


class Trainer:
    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


class Slots:
    __slots__ = ("model",)

    def __init__(self, model: object) -> None:
        self.model = model


@dataclasses.dataclass
class Checkpoint:
    model: Any
    epoch: int = 3


HOLDERS = {
    "namespace": argparse.Namespace(model=small_state(), epoch=3),
    "namedtuple": Pair(small_state(), 3),
    "dict of its own": Dict(model=small_state()),
    "state dict of its own": Dict(small_state()),
    "dataclass": Checkpoint(small_state()),
    "object": Trainer(model=small_state(), epoch=3),
    "object in a dict": {"trainer": Trainer(weights={"net": small_state()})},
    "slots": Slots(small_state()),
}


def inspected(tmp_path: Path, value: object, suffix: str = "pt") -> Inspection:
    return inspect_file(save(tmp_path / f"a.{suffix}", value))


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("suffix", ["pt", "legacy"])
def test_the_state_dict_in_it_is_found(tmp_path: Path, holder: str, suffix: str) -> None:
    (part,) = inspected(tmp_path, HOLDERS[holder], suffix).state_dicts

    assert [plan.layer.name for plan in part.plan.layers] == ["bn1", "bn2"]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ((0.999, "model"), ["0.999", "model"]),
        ((1, "1"), ["1", "1 (str)"]),
        (((1, 2), None), ["a tuple of 2", "None"]),
        ((True, 0.5), ["True", "0.5"]),
    ],
)
def test_keys_of_every_kind_are_named(
    tmp_path: Path, keys: tuple[object, object], expected: list[str]
) -> None:
    path = save(tmp_path / "a.pt", {key: small_state() for key in keys})

    with open_checkpoint(path) as checkpoint:
        assert [part.key for part in checkpoint.state_dicts] == expected
        assert checkpoint.state_dict(expected[1]).entries
        with pytest.raises(UsageError, match="Choose one with key"):
            checkpoint.state_dict()


def test_a_module_of_fx_says_what_its_layers_are(tmp_path: Path) -> None:
    model = perturb(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-4)))

    found = inspected(tmp_path, torch.fx.symbolic_trace(model))

    (layer,) = [plan.layer for plan in found.state_dicts[0].plan.layers]
    assert (layer.name, layer.eps.value, layer.eps.source) == ("1", 1e-4, "read")
    assert found.kind == "pickled module (torch.fx.graph_module.GraphModule)"


def _make_class(kind: type, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> type:
    return kind(name, bases, attributes)


class ByValue(nn.BatchNorm2d):
    """A layer whose class is made in the file, under the name of a known one."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _Made(), (4,), self.__dict__


class _Made:
    def __call__(self, channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels)

    def __reduce__(self) -> Any:
        attributes = {"__module__": "torch.nn.modules.batchnorm"}
        return _make_class, (type, "BatchNorm2d", (nn.Module,), attributes)


def test_a_class_that_is_made_in_the_file_is_not_taken_for_a_known_one(tmp_path: Path) -> None:
    before = set(sys.modules)
    found = inspected(tmp_path, nn.Sequential(nn.Conv2d(3, 4, 1), perturb(ByValue(4))))

    (plan,) = found.state_dicts[0].plan.layers
    assert plan.action == "leave"
    assert plan.reason == (
        "torch.nn.modules.batchnorm.BatchNorm2d, made in the file, whose forward may do something "
        "else"
    )
    assert any("_make_class" in name for name in found.foreign_names)
    assert set(sys.modules) == before
