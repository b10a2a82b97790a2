"""The frozen layers of one, two, three and any dimensions against their BatchNorm in eval."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import frozenbn_cli.nn
from frozenbn_cli.nn import (
    FrozenBatchNorm1d,
    FrozenBatchNorm2d,
    FrozenBatchNorm3d,
    FrozenBatchNormNd,
    frozen_batch_norm,
)
from tests.builders.models import assert_same_bits, perturb

ignores_torchscript_warning = pytest.mark.filterwarnings(
    "ignore:`torch.jit.* is deprecated:FutureWarning"
)


@dataclass(frozen=True, slots=True)
class Kind:
    """A frozen layer, what it stands in for, and a shape that both take."""

    frozen: type[nn.Module]
    live: type[nn.Module]
    shape: tuple[int, ...]


KINDS = {
    "1d, (N, C)": Kind(FrozenBatchNorm1d, nn.BatchNorm1d, (4, 5)),
    "1d, (N, C, L)": Kind(FrozenBatchNorm1d, nn.BatchNorm1d, (2, 5, 7)),
    "2d": Kind(FrozenBatchNorm2d, nn.BatchNorm2d, (2, 5, 4, 3)),
    "3d": Kind(FrozenBatchNorm3d, nn.BatchNorm3d, (2, 5, 3, 2, 4)),
    **{
        f"any, {len(shape)} dimensions": Kind(FrozenBatchNormNd, nn.SyncBatchNorm, shape)
        for shape in [(4, 5), (2, 5, 7), (2, 5, 4, 3), (2, 5, 3, 2, 4), (2, 5, 1, 2, 3, 2)]
    },
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


def pair(kind: Kind, **keywords: Any) -> tuple[nn.Module, nn.Module]:
    """Return a live layer in eval, and a frozen one with its state."""
    live = kind.live(5, 1e-3, **keywords).eval()
    perturb(live)
    frozen = kind.frozen(5, 1e-3, **keywords)
    frozen.load_state_dict(live.state_dict(), strict=True)
    return live, frozen


def numbers(shape: tuple[int, ...], *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (3 * torch.randn(*shape, generator=generator, dtype=torch.float64)).to(dtype)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@each_kind
class TestEveryLayer:
    @pytest.mark.parametrize("affine", [True, False])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("requires_grad", [False, True])
    def test_equals_batch_norm_in_eval_to_the_last_bit(
        self, kind: Kind, requires_grad: bool, dtype: torch.dtype, affine: bool
    ) -> None:
        live, frozen = pair(kind, affine=affine, dtype=dtype)
        x = numbers(kind.shape, dtype=dtype).requires_grad_(requires_grad)
        for training in (False, True):
            assert_same_bits(frozen.train(training)(x), live(x))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_keeps_half_inputs_and_autocast(self, kind: Kind, dtype: torch.dtype) -> None:
        live, frozen = pair(kind)
        x = numbers(kind.shape, dtype=dtype)
        assert frozen(x).dtype == dtype
        assert_same_bits(frozen(x), live(x))
        with torch.autocast("cpu", dtype=dtype):
            assert_same_bits(frozen(x.float()), live(x.float()))

    def test_keeps_the_memory_format(self, kind: Kind) -> None:
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        _, frozen = pair(kind)
        if memory_format := formats.get(len(kind.shape)):
            x = numbers(kind.shape).contiguous(memory_format=memory_format).requires_grad_()
            assert frozen(x).is_contiguous(memory_format=memory_format)

    def test_gradient_is_that_of_batch_norm_and_saves_channels_alone(self, kind: Kind) -> None:
        live, frozen = pair(kind)
        saved: list[tuple[int, ...]] = []
        gradients = []
        for layer in (live, frozen):
            x = numbers(kind.shape).requires_grad_()
            saved.clear()
            with saved_tensors_hooks(lambda t: (saved.append(tuple(t.shape)), t)[1], lambda t: t):
                output = layer(x)
            output.backward(numbers(kind.shape, seed=1))
            gradients.append(x.grad)
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=0)
        assert set(saved) == {(5,)}

    def test_takes_an_empty_batch(self, kind: Kind) -> None:
        _, frozen = pair(kind)
        x = torch.zeros(0, *kind.shape[1:], requires_grad=True)
        frozen(x).sum().backward()
        assert x.grad is not None

    @ignores_torchscript_warning
    def test_scripts_and_traces(self, kind: Kind) -> None:
        live, frozen = pair(kind)
        x = numbers(kind.shape)
        for compiled in (torch.jit.script(frozen), torch.jit.trace(frozen, x)):
            assert_same_bits(compiled(x), live(x))
        with pytest.raises(Exception, match="dimensions"):
            torch.jit.script(frozen)(torch.zeros(5))

    def test_is_traced_symbolically(self, kind: Kind) -> None:
        live, frozen = pair(kind)
        traced = torch.fx.symbolic_trace(nn.Sequential(frozen))
        again = torch.fx.symbolic_trace(traced)
        x = numbers(kind.shape)
        for graph in (traced, again, pickle.loads(pickle.dumps(traced))):
            assert_same_bits(graph(x), live(x))
            assert frozen_batch_norm in [node.target for node in graph.graph.nodes]

    @pytest.mark.usefixtures("fresh_dynamo")
    def test_exports_and_compiles(self, kind: Kind) -> None:
        live, frozen = pair(kind)
        x = numbers(kind.shape)
        exported = torch.export.export(frozen, (x,)).module()
        assert_same_bits(exported(x), live(x))
        compiled = torch.compile(frozen, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), live(x), rtol=1e-6, atol=1e-6)

    @ignores_torchscript_warning
    def test_works_under_function_transforms(self, kind: Kind) -> None:
        live, frozen = pair(kind, dtype=torch.float64)
        x = numbers(kind.shape, dtype=torch.float64)
        for transform in (torch.func.grad, torch.func.jacfwd):
            ours, expected = (
                transform(lambda x, layer=layer: layer(x).pow(3).sum())(x)
                for layer in (frozen, live)
            )
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
        assert_same_bits(torch.func.vmap(frozen)(x[None]), torch.func.vmap(live)(x[None]))

    def test_is_copied_pickled_and_loaded_both_ways(self, kind: Kind) -> None:
        live, frozen = pair(kind)
        x = numbers(kind.shape)
        for copied in (copy.deepcopy(frozen), pickle.loads(pickle.dumps(frozen))):
            assert type(copied) is kind.frozen
            assert_same_bits(copied(x), live(x))
        fresh = kind.live(5, 1e-3).eval()
        fresh.load_state_dict(frozen.state_dict(), strict=True)
        assert_same_bits(fresh(x), live(x))
        assert list(frozen.parameters()) == []

    def test_has_the_path_that_files_store(self, kind: Kind) -> None:
        assert getattr(frozenbn_cli.nn, kind.frozen.__qualname__) is kind.frozen
        assert kind.frozen.__module__ == "frozenbn_cli.nn"


@pytest.mark.parametrize(
    ("layer", "refused"),
    [
        (FrozenBatchNorm1d, [(5,), (2, 5, 3, 3), (2, 5, 3, 3, 3)]),
        (FrozenBatchNorm3d, [(5,), (2, 5), (2, 5, 3), (2, 5, 3, 3)]),
        (FrozenBatchNormNd, [(5,)]),
    ],
)
def test_refuses_the_dimensions_that_its_batch_norm_refuses(
    layer: type[nn.Module], refused: list[tuple[int, ...]]
) -> None:
    for shape in refused:
        with pytest.raises(ValueError, match=r"expected .* dimensions \(N, C.*found") as caught:
            layer(5)(torch.zeros(shape))
        assert str(list(shape)) in str(caught.value)


class TestBias:
    def test_may_be_absent(self) -> None:
        live = nn.BatchNorm2d(5)
        live.register_parameter("bias", None)
        perturb(live).eval()
        frozen = FrozenBatchNorm2d(5, bias=False)
        frozen.load_state_dict(live.state_dict(), strict=True)
        x = numbers((2, 5, 4, 3)).requires_grad_()
        assert_same_bits(frozen(x), live(x))
        assert repr(frozen) == "FrozenBatchNorm2d(5, eps=1e-05, bias=False)"

    def test_is_not_there_without_affine(self) -> None:
        assert list(FrozenBatchNorm2d(5, affine=False).state_dict()) == [
            "running_mean",
            "running_var",
        ]


class TestTrainableAffine:
    def layers(self) -> tuple[nn.Module, nn.Module]:
        live = nn.BatchNorm2d(5).eval()
        perturb(live)
        frozen = FrozenBatchNorm2d(5, trainable_affine=True)
        frozen.load_state_dict(live.state_dict(), strict=True)
        return live, frozen

    def test_has_the_gradients_of_batch_norm_in_eval(self) -> None:
        live, frozen = self.layers()
        x = numbers((2, 5, 4, 3))
        for layer in (live, frozen):
            layer(x).square().sum().backward()
        assert [name for name, _ in frozen.named_parameters()] == ["weight", "bias"]
        assert_same_bits(frozen(x), live(x))
        assert_same_bits(frozen.weight.grad, live.weight.grad)
        assert_same_bits(frozen.bias.grad, live.bias.grad)

    def test_saves_channels_alone_where_they_need_no_gradient(self) -> None:
        _, frozen = self.layers()
        saved: list[tuple[int, ...]] = []
        frozen.requires_grad_(False)
        with saved_tensors_hooks(lambda t: (saved.append(tuple(t.shape)), t)[1], lambda t: t):
            frozen(numbers((2, 5, 4, 3)).requires_grad_())
        assert set(saved) == {(5,)}

    @pytest.mark.parametrize("assign", [True, False])
    def test_survives_state_dicts(self, assign: bool) -> None:
        live, frozen = self.layers()
        other = FrozenBatchNorm2d(5, trainable_affine=True)
        other.load_state_dict(frozen.state_dict(), strict=True, assign=assign)
        assert [name for name, _ in other.named_parameters()] == ["weight", "bias"]
        assert list(frozen.state_dict()) == ["weight", "bias", "running_mean", "running_var"]
        x = numbers((2, 5, 4, 3))
        assert_same_bits(other(x), live(x))
        assert "trainable_affine=True" in repr(frozen)

    @ignores_torchscript_warning
    @pytest.mark.usefixtures("fresh_dynamo")
    def test_survives_script_export_and_copies(self) -> None:
        live, frozen = self.layers()
        x = numbers((2, 5, 4, 3))
        scripted = torch.jit.script(frozen)
        exported = torch.export.export(frozen, (x,)).module()
        for layer in (scripted, exported, copy.deepcopy(frozen)):
            assert_same_bits(layer(x), live(x))
            assert sorted(name for name, _ in layer.named_parameters()) == ["bias", "weight"]


@pytest.mark.parametrize("trainable_affine", [True, False])
def test_resets_to_a_new_layer_as_fsdp_asks_for(trainable_affine: bool) -> None:
    frozen = FrozenBatchNorm2d(5, trainable_affine=trainable_affine, device="meta")
    frozen.to_empty(device="cpu")
    frozen.reset_parameters()
    assert_same_bits(dict(frozen.state_dict()), dict(FrozenBatchNorm2d(5).state_dict()))


def imported_elsewhere(x: Tensor, layer: Callable[..., Tensor]) -> Tensor:
    return layer(x, torch.zeros(3), torch.ones(3))


def test_function_is_traced_in_code_of_others() -> None:
    class Own(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return imported_elsewhere(x, frozen_batch_norm)

    x = numbers((2, 3, 4, 4))
    assert_same_bits(torch.fx.symbolic_trace(Own())(x), Own()(x))


@pytest.mark.parametrize(("variance", "eps"), [(0.0, 0.0), (-1.0, 1e-5)])
def test_gradient_of_a_degenerate_variance_is_no_number(variance: float, eps: float) -> None:
    gradients = []
    for layer in (nn.BatchNorm2d(1, eps).eval(), FrozenBatchNorm2d(1, eps)):
        layer.running_var.fill_(variance)
        x = numbers((1, 1, 2, 2)).requires_grad_()
        layer(x).sum().backward()
        gradients.append(x.grad)
    assert not any(gradient.isfinite().any() for gradient in gradients)
