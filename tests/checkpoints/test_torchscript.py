"""What an archive is said to hold: its layers, what else normalises, and every tensor in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from frozenbn_cli.batch_norms.plan import LayerPlan
from frozenbn_cli.inspection import inspect_file
from tests.builders.archives import assert_freezes, claims, convert, load, make, submodule
from tests.builders.models import assert_same_bits
from tests.builders.unfaithful_models import Layer, Pair, normalise

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BOTH = pytest.mark.parametrize("how", ["scripted", "traced"])


def layers_of(path: Path) -> dict[str, LayerPlan]:
    return {plan.layer.name: plan for plan in inspect_file(path).state_dicts[0].plan.layers}


class Followed(Pair):
    """A pair, and a module behind it."""

    def __init__(self, rest: nn.Module) -> None:
        super().__init__()
        self.rest = rest

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.bn(self.conv(x)))


class OtherNames(nn.Module):
    """Normalises with statistics of other names."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, training=self.training)


class ByFunction(OtherNames):
    def forward(self, x: Tensor) -> Tensor:
        return normalise(x, self.mean, self.var, self.training)


class Stateful(nn.BatchNorm2d):
    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, bool]:
        return (
            self.running_mean, self.running_var, self.weight, self.bias,
            self.num_batches_tracked, self.training,
        )  # fmt: skip

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, bool]) -> None:
        self.running_mean = state[0]
        self.running_var = state[1]
        self.weight = state[2]
        self.bias = state[3]
        self.num_batches_tracked = state[4]
        self.training = state[5]

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training
        )


class TwoEps(Layer):
    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.running_mean, self.running_var, training=self.training, eps=1e-3)
        return self.norm(x)


class ComputedEps(Layer):
    def forward(self, x: Tensor) -> Tensor:
        eps = self.eps * x.size(0)
        return F.batch_norm(x, self.running_mean, self.running_var, training=self.training, eps=eps)


class AlwaysTrains(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, training=True)


class MyBatchNorm1d(nn.BatchNorm1d):
    """Checks no dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, training=self.training)


class Pooled(Followed):
    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.bn(self.conv(x)).mean((2, 3)))


class Named(Pair):
    """Submodules that are called as what TorchScript's operators begin with."""

    def __init__(self) -> None:
        super().__init__()
        self.ops, self.torch = nn.ReLU(), nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return self.torch(self.ops(self.bn(self.conv(x))))


class Nested(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.i = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.i(x)


class Holds(Pair):
    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.register_buffer("held", tensor)
        self.lowest = -(2**63)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + float(self.lowest > 0)


class Plain(Pair):
    """Tensors that are no buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed = torch.ones(1)
        self.several = [torch.ones(1), torch.zeros(1)]

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) * self.fixed + self.several[1]


@pytest.mark.parametrize(
    ("module", "where"),
    [
        (OtherNames, "OtherNames.forward"),
        (ByFunction, "tests.builders.unfaithful_models.normalise"),
    ],
)
def test_names_what_goes_on_normalising(
    tmp_path: Path, module: type[nn.Module], where: str
) -> None:
    path = make("scripted", Followed(module()), tmp_path / "a.pt")

    found = layers_of(path)

    assert found["bn"].action == "freeze"
    said = f"batch_norm in {where} goes on updating its mean and var"
    assert (found["rest"].reason or "").startswith(said)


class TestModulesThatRestoreThemselves:
    def test_are_named_and_none_of_their_tensors_is_lost(self, tmp_path: Path) -> None:
        path = make("scripted", Followed(Stateful(4)), tmp_path / "a.pt")

        result, output = convert(path, to="safetensors")

        assert claims(result)["contents"] == "equal"
        assert layers_of(path)["rest"].reason.endswith("by code (__setstate__)")  # type: ignore[union-attr]
        expected = load(path).state_dict()
        del expected["bn.num_batches_tracked"]
        with safe_open(output, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert_same_bits(dict(sorted(found.items())), dict(sorted(expected.items())))

    def test_stay_as_they_are_in_an_archive(self, tmp_path: Path) -> None:
        path = make("scripted", Followed(Stateful(4)), tmp_path / "a.pt")

        result, output = convert(path)

        assert set(claims(result).values()) == {"equal"}
        after = submodule(load(output), "rest").state_dict()
        assert_same_bits(after, submodule(load(path), "rest").state_dict())

    def test_may_be_the_root(self, tmp_path: Path) -> None:
        path = make("scripted", Stateful(3), tmp_path / "a.pt")

        assert layers_of(path)[""].reason.endswith("by code (__setstate__)")  # type: ignore[union-attr]


@pytest.mark.parametrize("layer", [TwoEps, ComputedEps])
def test_an_eps_that_the_code_does_not_settle_is_unknown(tmp_path: Path, layer: Any) -> None:
    path = make("scripted", Pair(layer(4)), tmp_path / "a.pt")

    found = layers_of(path)["bn"]

    assert found.layer.eps.source == "assumed"
    assert "eps_unsettled" in {finding.code for finding in found.findings}


def test_code_that_always_trains_is_not_called_traced(tmp_path: Path) -> None:
    path = make("scripted", Followed(AlwaysTrains(4)), tmp_path / "a.pt")

    result, _ = convert(path)

    frozen, left = result.plan.layers
    assert (frozen.action, left.action) == ("freeze", "leave")
    assert "error" not in {finding.severity for finding in left.findings}
    assert left.reason == "its code always normalises with batch statistics (training=True)"


@BOTH
def test_the_use_of_a_layer_says_of_which_dimensions_it_is(tmp_path: Path, how: str) -> None:
    path = make(how, Pooled(MyBatchNorm1d(4)), tmp_path / "a.pt", IMAGE)

    assert layers_of(path)["rest"].reason == "BatchNorm1d, inferred from the code that uses it"


@BOTH
def test_a_normaliser_with_a_variance_alone_keeps_nothing_back(tmp_path: Path, how: str) -> None:
    path = make(how, Followed(timm.layers.EvoNorm2dB0(4)), tmp_path / "a.pt", IMAGE)

    result, _ = convert(path)

    assert [plan.action for plan in result.plan.layers] == ["freeze", "leave"]
    assert "running_var alone" in (result.plan.layers[1].reason or "")
    (part,) = inspect_file(path).state_dicts
    assert part.statistics.keys() == {"bn"}


def test_submodules_may_be_called_as_the_operators(tmp_path: Path) -> None:
    assert_freezes(make("scripted", Named(), tmp_path / "a.pt"), IMAGE, frozen={"bn"})


def test_modules_may_lie_deep_within_each_other(tmp_path: Path) -> None:
    model: nn.Module = Pair()
    for _ in range(150):
        model = Nested(model)
    path = make("scripted", model, tmp_path / "a.pt")

    result, _ = convert(path)

    assert set(claims(result).values()) == {"equal"}


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_freezes_beside_unsigned_integers(tmp_path: Path, dtype: torch.dtype) -> None:
    model = Holds(torch.arange(4).to(dtype))

    assert_freezes(make("scripted", model, tmp_path / "a.pt"), IMAGE, frozen={"bn"})


def test_freezes_beside_a_tensor_without_values(tmp_path: Path) -> None:
    path = make("scripted", Holds(torch.empty(4, device="meta")), tmp_path / "a.pt")

    result, _ = convert(path)

    assert set(claims(result).values()) == {"equal"}
    assert not result.left_out
    left_out = inspect_file(path).state_dicts[0].left_out
    assert left_out == {"held": "on the meta device, without values"}


def test_tensors_that_a_state_dict_cannot_hold_are_named(tmp_path: Path) -> None:
    path = make("scripted", Plain(), tmp_path / "a.pt")

    result, _ = convert(path, to="safetensors")

    assert set(result.left_out) == {"fixed", "several.0", "several.1"}
