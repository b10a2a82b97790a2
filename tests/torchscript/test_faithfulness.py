"""What the report calls frozen stays as it is and loses nothing, as seen by running both models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frozenbn_cli.errors import NothingToFreezeError
from tests.builders import unfaithful_models as models
from tests.builders.archives import claims, convert, load, make, run, submodule
from tests.builders.models import assert_same_bits
from tests.builders.unfaithful_models import Pair

IMAGE = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def around(layer: Callable[[int], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Pair(layer(4))


LEFT_ALONE: tuple[Callable[[], nn.Module], ...] = (
    models.WritesInPlace, models.Assigns, models.Copies, models.WritesThroughList,
    models.WritesThroughDict, models.WritesThroughTuple, models.WritesOut, models.WritesElement,
    models.WritesSlice, models.WritesItsData, models.WritesByFunction, models.WritesByModule,
    models.WritesByOtherName, models.KeepsInList, models.Appends, models.WritesByObject,
    models.WritesInFork, models.WritesInExport, models.WritesInMethod, models.WritesByEither,
    models.WritesFurtherIn, models.WritesEach, models.NormalisesInstances,
    models.NormalisesByItsFlag, models.NormalisesByFunction, models.ClampsItsWeight,
    models.Counts, models.Root, models.DropsByItsFlag, models.ScalesByItsFlag,
    models.AsksForItsFlag, around(models.AdaptsInEval), around(models.AveragesInTraining),
    around(models.Clamps), around(models.CountsInEval), around(models.Drops),
    around(models.DropsInBranch), around(models.MakesNoise), around(models.MakesNoiseInMethod),
    around(models.MakesNoiseInFunction), around(models.MakesNoiseInModule),
    around(models.Scales), around(models.ScalesByNumber), around(models.Skips),
    around(models.Repeats), around(models.Remembers), around(models.Raises),
    around(models.LearnsItsStatistics), models.LearnsByOtherName,
)  # fmt: skip
FROZEN: tuple[Callable[[], nn.Module], ...] = (
    Pair, models.Reads, models.ReadsStatistics, models.NormalisesByLayersFlag, models.DropsItself,
    models.CopiesFrom, models.Averages, around(models.WithDropout), around(models.Settled),
    around(timm.layers.BatchNormAct2d), around(partial(nn.BatchNorm2d, momentum=None)),
)  # fmt: skip
LEFT_ALONE_IN_TRACES: tuple[Callable[[], nn.Module], ...] = (
    models.NormalisesNatively, models.NormalisesForGood, models.WritesWhenTraced,
    models.WritesByModuleWhenTraced, models.WritesByOtherName, models.WritesFurtherIn,
    models.WritesEach, models.WritesElement, models.WritesSlice, models.WritesOut,
    models.NormalisesInstances, models.Counts, around(models.AdaptsInEval),
    around(models.Clamps), around(models.CountsInEval), models.LearnsByOtherName,
)  # fmt: skip
FROZEN_IN_TRACES: tuple[Callable[[], nn.Module], ...] = (
    Pair, models.Reads, models.NormalisesByLayersFlag, models.NormalisesByItsFlag,
    models.DropsItself, models.CopiesFrom, models.DropsByItsFlag, around(models.WithDropout),
    around(models.Drops), around(models.Scales),
)  # fmt: skip


def name_of(builder: Callable[[], nn.Module]) -> str:
    model = builder()
    return type(model.bn if type(model) is Pair else model).__name__


@pytest.mark.parametrize("builder", LEFT_ALONE, ids=name_of)
def test_leaves_scripted_code_alone(tmp_path: Path, builder: Callable[[], nn.Module]) -> None:
    assert convert_faithfully("scripted", builder, tmp_path / "a.pt") == set()


@pytest.mark.parametrize("builder", FROZEN, ids=name_of)
def test_freezes_scripted_code(tmp_path: Path, builder: Callable[[], nn.Module]) -> None:
    assert convert_faithfully("scripted", builder, tmp_path / "a.pt") == {"bn"}


@pytest.mark.parametrize("builder", LEFT_ALONE_IN_TRACES, ids=name_of)
def test_leaves_traced_code_alone(tmp_path: Path, builder: Callable[[], nn.Module]) -> None:
    assert convert_faithfully("traced", builder, tmp_path / "a.pt") == set()


@pytest.mark.parametrize("builder", FROZEN_IN_TRACES, ids=name_of)
def test_freezes_traced_code(tmp_path: Path, builder: Callable[[], nn.Module]) -> None:
    assert convert_faithfully("traced", builder, tmp_path / "a.pt") == {"bn"}


def test_leaves_alone_what_another_layer_is_averaged_into(tmp_path: Path) -> None:
    found = convert_faithfully("scripted", models.TeacherOfStudent, tmp_path / "a.pt")

    assert found == {"student.bn"}


def test_leaves_alone_what_another_module_holds_a_part_of(tmp_path: Path) -> None:
    builder = partial(models.WritesByOtherName, is_view=True)

    assert convert_faithfully("scripted", builder, tmp_path / "a.pt") == set()


def convert_faithfully(how: str, builder: Callable[[], nn.Module], path: Path) -> set[str]:
    """Convert an archive, hold what is frozen against what both models do, and return it."""
    torch.manual_seed(0)
    model = builder()
    make(how, model, path, IMAGE)
    try:
        result, output = convert(path)
    except NothingToFreezeError:
        return set()
    assert set(claims(result).values()) == {"equal"}
    frozen = {item.layer.name for item in result.plan.frozen}
    assert_stays(load(output), frozen)
    assert_same_training(load(path), load(output), frozen)
    if how == "scripted":
        assert_does_as_the_source_does(model, load(output), frozen)
    return frozen


def assert_stays(model: Any, frozen: set[str]) -> None:
    """Hold that no buffer of a frozen layer changes, whatever mode the model is in."""
    before = {name: buffers_of(model, name) for name in frozen}
    for is_training in (False, True, True, False):
        model.train(is_training)
        run(model, (IMAGE,))
        assert_same_bits({name: buffers_of(model, name) for name in frozen}, before)


def buffers_of(model: Any, name: str) -> dict[str, Tensor]:
    layer = submodule(model, name)
    return {role: value.clone() for role, value in layer.named_buffers(recurse=False)}


def assert_same_training(before: Any, after: Any, frozen: set[str]) -> None:
    """Hold that training gives what it gives where the frozen layers are in eval."""
    before.train()
    for name in frozen:
        submodule(before, name).training = False
    assert_same_bits(seeded(after.train()), seeded(before))
    live = {
        name: value
        for name, value in before.named_buffers()
        if name.rpartition(".")[0] not in frozen
    }
    after_buffers = dict(after.named_buffers())
    assert_same_bits({name: after_buffers[name] for name in live}, live)


def seeded(model: Any) -> Any:
    torch.manual_seed(1)
    return run(model, (IMAGE,))


def assert_does_as_the_source_does(model: nn.Module, after: Any, frozen: set[str]) -> None:
    """Hold that training is that of the Python source, whose layers alone do not train."""
    means = [submodule(model, name).running_mean for name in frozen]
    normal = F.batch_norm

    def frozen_norm(x: Tensor, mean: Any, *rest: Any, **named: Any) -> Tensor:
        if any(mean is other for other in means):
            rest = (*rest[:3], False, *rest[4:]) if len(rest) > 3 else rest
            named |= {"training": False} if "training" in named else {}
        return normal(x, mean, *rest, **named)

    with mock.patch.object(F, "batch_norm", frozen_norm):
        expected = seeded(model.train())
    assert_same_bits(seeded(after.train()), expected)
