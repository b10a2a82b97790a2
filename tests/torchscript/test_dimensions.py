"""The layers of archives, by how many dimensions they have: which are frozen, and what tells it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frozenbn_cli import VerifyOptions, inspect_file, verify_files
from tests.builders.archives import assert_freezes, make, types
from tests.builders.script_models import Dimensions, Pooled

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BOTH = pytest.mark.parametrize("how", ["scripted", "traced"])
ALL = (1, 2, 3)


@BOTH
@pytest.mark.parametrize(
    ("dims", "frozen"),
    [
        pytest.param(None, {"two"}, marks=pytest.mark.slow),
        pytest.param((1, 3), {"one", "three"}, marks=pytest.mark.slow),
        (ALL, {"one", "two", "three"}),
    ],
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


class Own(nn.BatchNorm1d):
    """A layer whose code checks no dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            0.1,
            self.eps,
        )


class Lax(nn.BatchNorm3d):
    """Another, which inherits its forward."""

    def _check_input_dim(self, input: Tensor) -> None:
        return


class Neck(nn.Module):
    """Behind a pooling, which no weight shows."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.bn = Own(6)
        self.fc = nn.Linear(6, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn(self.body(x).mean([2, 3])))


class Skeleton(nn.Module):
    """In front of everything, on what was reshaped."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = Own(10)
        self.conv = nn.Conv2d(2, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, t, v = x.shape
        y = self.bn(x.permute(0, 1, 3, 2).reshape(n, c * v, t))
        return self.conv(y.reshape(n, c, v, t))


class InFront(nn.Module):
    """What takes its outputs tells it."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = Lax(2)
        self.weight = nn.Parameter(torch.ones(4, 2, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv3d(F.relu(self.bn(x)), self.weight)


class Pooled1d(nn.Module):
    """A network on points."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 3, 1))
        self.bn = Own(4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv1d(x, self.weight)
        return self.bn(torch.max(y, 2, keepdim=True)[0].view(-1, 4))


class Flattened(nn.Module):
    """Behind a flatten of a map that a submodule gives."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Sequential(nn.Flatten(), nn.Dropout(), Own(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(x))


class Gated(nn.Module):
    """On an image, through a branch, a loop and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.gate = nn.Linear(4, 4)
        self.bn = Own(4)
        self.small = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.small:
            z = y.sigmoid()
        else:
            z = y + y * self.gate(y.mean((2, 3))).unsqueeze(2).unsqueeze(3)
        return self.bn(z)


POINTS = torch.rand(2, 3, 7)
CLIP = torch.rand(2, 2, 3, 3, 3)
USES: dict[str, tuple[Callable[[], nn.Module], Tensor, int]] = {
    "neck": (Neck, IMAGE, 1),
    "skeleton": (Skeleton, torch.rand(2, 2, 3, 5), 1),
    "in front": (InFront, CLIP, 3),
    "points": (Pooled1d, POINTS, 1),
    "flattened": (Flattened, IMAGE, 1),
    "gated": (Gated, IMAGE, 2),
}


@BOTH
@pytest.mark.parametrize("case", USES)
def test_a_layer_whose_code_checks_nothing_is_told_by_its_use(
    tmp_path: Path, how: str, case: str
) -> None:
    builder, example, dims = USES[case]
    path = make(how, builder(), tmp_path / "a.pt", example)

    layers = {item.layer.name: item for item in inspect_file(path).state_dicts[0].plan.layers}

    found = layers["head.2" if case == "flattened" else "bn"]
    assert (found.layer.spatial_dims, found.layer.dims_known) == (dims, "inferred")
    assert found.layer.dims_source == "the code that uses it"
    if dims != 2:
        assert found.reason == f"BatchNorm{dims}d, inferred from the code that uses it"
        assert [one.code for one in found.findings if one.code == "stays_live"]
    if how == "scripted":
        shapes = (tuple(example.shape),)
        assert_freezes(path, example, frozen=set(layers), dims=ALL, input_shapes=shapes)


class Siblings(nn.Module):
    """One of a class is told by a weight, the other by nothing but that."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Own(7)
        self.fc = nn.Linear(14, 5)
        self.bn = Own(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.fc(torch.cat([self.first(x), x], 1)))


@BOTH
def test_a_layer_that_nothing_tells_is_like_its_siblings(tmp_path: Path, how: str) -> None:
    path = make(how, Siblings(), tmp_path / "a.pt", torch.rand(3, 7))

    layers = {item.layer.name: item for item in inspect_file(path).state_dicts[0].plan.layers}

    assert layers["first"].reason == "BatchNorm1d, inferred from bn, of the same class"


class Both(nn.Module):
    """The same layer for maps and for what was pooled: its use contradicts itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = Own(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y).mean((2, 3)) + self.bn(y.mean((2, 3)))


def test_a_use_that_contradicts_itself_tells_nothing(tmp_path: Path) -> None:
    path = make("scripted", Both(), tmp_path / "a.pt")

    (item,) = inspect_file(path).state_dicts[0].plan.layers

    assert item.layer.dims_source != "the code that uses it"


class Nested(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.inner = Nested(depth - 1) if depth else Own(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner(x))


def test_code_that_calls_itself_over_and_over_is_given_up(tmp_path: Path) -> None:
    path = make("scripted", Nested(24), tmp_path / "a.pt")

    (item,) = inspect_file(path).state_dicts[0].plan.layers

    assert item.layer.spatial_dims is None
