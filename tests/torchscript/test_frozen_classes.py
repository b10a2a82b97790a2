"""A layer is frozen already by the whole name of its class, and in an archive by its code too."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from frozenbn_cli.inspection import inspect_file
from frozenbn_cli.torchscript.frozen_classes import names_frozen_class
from tests.builders.archives import convert, load, make, run
from tests.builders.files import save
from tests.builders.models import assert_same_bits, perturb
from tests.builders.unfaithful_models import Layer, Pair

IMAGE = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Live(Layer):
    """Goes on learning, whatever it is called."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


@pytest.fixture(params=["frozenbn_cli.nn.FrozenBatchNorm2d", "frozenbn_cli.nn.FrozenLive"])
def disguised(request: pytest.FixtureRequest) -> Iterator[type[nn.Module]]:
    """Return a live layer's class under the name of a frozen one."""
    before = Live.__module__, Live.__name__, Live.__qualname__
    Live.__module__, _, Live.__name__ = request.param.rpartition(".")
    Live.__qualname__ = Live.__name__
    yield Live
    Live.__module__, Live.__name__, Live.__qualname__ = before


def test_a_live_layer_of_an_archive_is_not_frozen_by_its_name(
    tmp_path: Path, disguised: type[nn.Module]
) -> None:
    path = make("scripted", Pair(disguised(4)), tmp_path / "a.pt", IMAGE)

    result, output = convert(path)

    assert [item.layer.name for item in result.plan.frozen] == ["bn"]
    before, after = load(path).eval(), load(output).train()
    assert_same_bits(run(after, (IMAGE,)), run(before, (IMAGE,)))


@pytest.mark.parametrize("name", ["torchvision.evil.FrozenBatchNorm2d", "timm.FrozenBatchNormOdd"])
def test_a_pickled_layer_is_frozen_by_its_whole_name(tmp_path: Path, name: str) -> None:
    home, _, kind = name.rpartition(".")
    path = save(tmp_path / "a.pt", perturb(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))))
    other = tmp_path / "b.pt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for record in old.namelist():
            before = b"ctorch.nn.modules.batchnorm\nBatchNorm2d\n"
            content = old.read(record).replace(before, f"c{home}\n{kind}\n".encode())
            new.writestr(record, content)

    (part,) = inspect_file(other).state_dicts
    (plan,) = part.plan.layers

    assert plan.reason == f"{name}, whose forward may do something else"
    assert not names_frozen_class(name)
