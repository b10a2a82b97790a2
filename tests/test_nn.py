"""FrozenBatchNorm2d against BatchNorm2d in eval, in every way that PyTorch runs a layer."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import FrozenBatchNormAct2d as TimmFrozenBatchNormAct2d
from timm.layers import freeze_batch_norm_2d as timm_freeze
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils import parametrize
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from frozenbn_cli.nn import FrozenBatchNorm2d, FrozenBatchNormAct2d, frozen_batch_norm
from tests.builders.models import (
    Detectron2FrozenBatchNorm2d,
    assert_same_bits,
    perturb,
    small_cnn,
    train_one_rank,
)

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
MEMORY_FORMATS = [torch.contiguous_format, torch.channels_last]
# A few units in the last place.
GRADIENT_TOLERANCES = {
    torch.float32: 4e-7,
    torch.float64: 1e-15,
    torch.float16: 2e-3,
    torch.bfloat16: 1.6e-2,
}

# Forward mode also gives this warning, since PyTorch scripts its decompositions on first use.
ignores_torchscript_warning = pytest.mark.filterwarnings(
    "ignore:`torch.jit.* is deprecated:FutureWarning"
)
# PyTorch 2.6 gives it for what its own gradcheck does.
ignores_vmap_warning = pytest.mark.filterwarnings("ignore:Please use `torch.vmap`:FutureWarning")
needs_cpp_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler"
)


def layer_pair(
    channels: int = 5,
    eps: float = 1e-3,
    *,
    affine: bool = True,
    dtype: torch.dtype = torch.float32,
) -> tuple[nn.BatchNorm2d, FrozenBatchNorm2d]:
    """Return a BatchNorm2d in eval mode and a frozen layer with its state."""
    batch_norm = nn.BatchNorm2d(channels, eps, affine=affine, dtype=dtype).eval()
    perturb(batch_norm)
    frozen = FrozenBatchNorm2d(channels, eps, affine=affine, dtype=dtype)
    frozen.load_state_dict(batch_norm.state_dict(), strict=True)
    return batch_norm, frozen


def image(
    *shape: int,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
    requires_grad: bool = False,
    seed: int = 0,
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = 3 * torch.randn(*(shape or (2, 5, 7, 6)), generator=generator, dtype=torch.float64)
    return values.to(dtype, memory_format=memory_format).requires_grad_(requires_grad)


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class TestOutput:
    @pytest.mark.parametrize("affine", [True, False])
    @pytest.mark.parametrize("requires_grad", [False, True])
    @pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shape", [(2, 5, 7, 6), (3, 67, 1, 1), (1, 64, 28, 28)])
    def test_equals_batch_norm_in_eval_to_the_last_bit(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        memory_format: torch.memory_format,
        requires_grad: bool,
        affine: bool,
    ) -> None:
        batch_norm, frozen = layer_pair(shape[1], affine=affine, dtype=dtype)
        x = image(*shape, dtype=dtype, memory_format=memory_format, requires_grad=requires_grad)
        output = frozen(x)
        assert output.requires_grad == requires_grad
        assert_same_bits(output, batch_norm(x))

    @pytest.mark.parametrize("requires_grad", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
    def test_keeps_half_precision_with_float32_buffers(
        self, dtype: torch.dtype, memory_format: torch.memory_format, requires_grad: bool
    ) -> None:
        batch_norm, frozen = layer_pair()
        x = image(dtype=dtype, memory_format=memory_format, requires_grad=requires_grad)
        output = frozen(x)
        assert output.dtype == dtype
        assert_same_bits(output, batch_norm(x))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_equals_batch_norm_under_autocast(self, dtype: torch.dtype) -> None:
        batch_norm, frozen = layer_pair()
        convolution = nn.Conv2d(3, 5, 1)
        with torch.autocast("cpu", dtype=dtype):
            features = convolution(image(2, 3, 4, 4))
            output, expected = frozen(features), batch_norm(features)
        assert features.dtype == output.dtype == dtype
        assert_same_bits(output, expected)

    @pytest.mark.parametrize("requires_grad", [False, True])
    def test_keeps_channels_last(self, requires_grad: bool) -> None:
        _, frozen = layer_pair()
        x = image(memory_format=torch.channels_last, requires_grad=requires_grad)
        output = frozen(x)
        assert output.is_contiguous(memory_format=torch.channels_last)
        if requires_grad:
            output.sum().backward()
            assert x.grad is not None
            assert x.grad.is_contiguous(memory_format=torch.channels_last)

    @given(
        shape=st.tuples(st.integers(0, 4), st.integers(1, 9), st.integers(0, 5), st.integers(0, 5)),
        eps=st.floats(0.0, 1.0),
        has_weight=st.booleans(),
        has_bias=st.booleans(),
        requires_grad=st.booleans(),
        seed=st.integers(0, 1_000),
    )
    @settings(max_examples=60, deadline=None)
    def test_equals_the_kernel_for_any_shape_and_eps(
        self,
        shape: tuple[int, ...],
        eps: float,
        has_weight: bool,
        has_bias: bool,
        requires_grad: bool,
        seed: int,
    ) -> None:
        channels = shape[1]
        mean, variance, weight, bias = image(4, channels, seed=seed + 1)
        arguments = (
            mean,
            variance.square(),
            weight if has_weight else None,
            bias if has_bias else None,
        )
        x = image(*shape, requires_grad=requires_grad, seed=seed)
        output = frozen_batch_norm(x, *arguments, eps=eps)
        assert_same_bits(output, F.batch_norm(x, *arguments, False, 0.1, eps))

    @pytest.mark.parametrize("eps", [10.0**-exponent for exponent in range(1, 13)])
    def test_uses_eps_to_the_last_bit(self, eps: float) -> None:
        batch_norm, frozen = layer_pair(eps=eps, dtype=torch.float64)
        for layer in (batch_norm, frozen):
            layer.running_var.zero_()
        for requires_grad in (False, True):
            x = image(dtype=torch.float64, requires_grad=requires_grad)
            assert_same_bits(frozen(x), batch_norm(x))

    def test_is_not_changed_by_train_mode(self) -> None:
        _, frozen = layer_pair()
        x = image()
        assert_same_bits(frozen.train()(x), frozen.eval()(x))

    def test_keeps_nan_where_batch_norm_has_it(self) -> None:
        batch_norm, frozen = layer_pair(eps=0.0)
        with torch.no_grad():
            for layer in (batch_norm, frozen):
                layer.running_var[0] = 0.0
                layer.running_var[1] = -1.0
        x = image()
        output = frozen(x)
        assert output[:, 1].isnan().all()
        assert_same_bits(output, batch_norm(x))

    @pytest.mark.parametrize("shape", [(0, 5, 4, 4), (2, 5, 0, 4)])
    @pytest.mark.parametrize("requires_grad", [False, True])
    def test_accepts_empty_input(self, shape: tuple[int, ...], requires_grad: bool) -> None:
        _, frozen = layer_pair()
        x = image(*shape, requires_grad=requires_grad)
        output = frozen(x)
        assert output.shape == shape
        if requires_grad:
            output.sum().backward()
            assert x.grad is not None
            assert x.grad.shape == shape

    @pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 5, 3), (2, 5, 3, 3, 3)])
    def test_rejects_input_without_four_dimensions(self, shape: tuple[int, ...]) -> None:
        _, frozen = layer_pair()
        with pytest.raises(ValueError, match=r"4 dimensions") as caught:
            frozen(image(*shape))
        assert str(list(shape)) in str(caught.value)

    def test_rejects_wrong_number_of_channels_as_batch_norm_does(self) -> None:
        batch_norm, frozen = layer_pair()
        for layer in (batch_norm, frozen):
            with pytest.raises(RuntimeError, match="should contain 4 elements"):
                layer(image(2, 4, 3, 3))


class TestGradient:
    @pytest.mark.parametrize("affine", [True, False])
    @pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_agrees_with_batch_norms_gradient(
        self, dtype: torch.dtype, memory_format: torch.memory_format, affine: bool
    ) -> None:
        pair = layer_pair(affine=affine, dtype=dtype)
        upstream = image(dtype=dtype, memory_format=memory_format, seed=1)
        assert_gradients_agree(pair, upstream, tolerance=GRADIENT_TOLERANCES[dtype])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_agrees_for_half_precision_with_float32_buffers(self, dtype: torch.dtype) -> None:
        upstream = image(dtype=dtype, seed=1)
        assert_gradients_agree(layer_pair(), upstream, tolerance=GRADIENT_TOLERANCES[dtype])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_is_rounded_to_half_precision_once(self, dtype: torch.dtype) -> None:
        _, frozen = layer_pair()
        x = torch.zeros(2, 5, 7, 6, dtype=dtype, requires_grad=True)
        upstream = image(dtype=dtype, seed=1)
        frozen(x).backward(upstream)
        scale = frozen.weight.double() / (frozen.running_var.double() + frozen.eps).sqrt()
        expected = (upstream.double() * scale.view(1, -1, 1, 1)).to(dtype)
        assert x.grad is not None
        assert (x.grad == expected).double().mean() > 0.99

    def test_keeps_float32_accuracy_in_half_buffers(self) -> None:
        batch_norm, frozen = layer_pair(dtype=torch.float16, eps=1e-5)
        with torch.no_grad():
            for layer in (batch_norm, frozen):
                layer.running_var.fill_(6e-8)  # eps would vanish in a sum of halfs.
        upstream = image(dtype=torch.float16, seed=1) / 100
        assert_gradients_agree((batch_norm, frozen), upstream, tolerance=1e-3)

    def test_training_step_changes_no_buffer(self) -> None:
        model = small_cnn(FrozenBatchNorm2d)
        perturb(model)
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
        model.train()(image(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
        assert len(before) == 8
        for name, buffer in model.named_buffers():
            assert_same_bits(buffer, before[name])

    def test_has_no_parameters(self) -> None:
        frozen = FrozenBatchNorm2d(3)
        assert list(frozen.parameters()) == []
        assert not any(buffer.requires_grad for buffer in frozen.buffers())

    @pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=3)))
    def test_reaches_weight_and_bias_that_need_it(self, needed: tuple[bool, bool, bool]) -> None:
        gradients = []
        for function in (frozen_batch_norm, kernel):
            leaves = image(), *image(2, 5, seed=1)
            for leaf, needs_gradient in zip(leaves, needed, strict=True):
                leaf.requires_grad_(needs_gradient)
            mean, variance = image(2, 5, seed=2)
            output = function(leaves[0], mean, variance.square(), *leaves[1:], 1e-3)
            assert output.requires_grad == any(needed)
            if any(needed):
                output.square().sum().backward()
            gradients.append([leaf.grad for leaf in leaves])
        for ours, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("name", ["weight", "bias"])
    def test_reaches_a_buffer_that_was_made_a_parameter(self, name: str) -> None:
        batch_norm, frozen = layer_pair()
        x = image()
        parameter = nn.Parameter(getattr(batch_norm, name).detach().clone())
        setattr(frozen, name, parameter)
        output = frozen(x)
        output.square().sum().backward()
        batch_norm(x).square().sum().backward()
        assert_same_bits(output, batch_norm(x))
        assert_same_bits(parameter.grad, getattr(batch_norm, name).grad)

    @pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "bias"])
    def test_takes_a_parametrised_buffer(self, name: str) -> None:
        class Doubled(nn.Module):
            def forward(self, tensor: Tensor) -> Tensor:
                return 2 * tensor

        batch_norm, frozen = layer_pair()
        with torch.no_grad():
            getattr(batch_norm, name).mul_(2)
        parametrize.register_parametrization(frozen, name, Doubled())
        x = image(requires_grad=True)
        assert_same_bits(frozen(x), batch_norm(x))

    @pytest.mark.parametrize("needs_gradient", [False, True])
    def test_of_running_variance_is_refused_as_batch_norm_does(self, needs_gradient: bool) -> None:
        mean, variance = torch.zeros(5), torch.ones(5, requires_grad=True)
        for function in (frozen_batch_norm, kernel):
            with pytest.raises(RuntimeError, match="not differentiable with respect to"):
                function(image(requires_grad=needs_gradient), mean, variance, None, None, 1e-3)

    @ignores_torchscript_warning
    @ignores_vmap_warning
    @pytest.mark.parametrize("affine", [True, False])
    def test_passes_gradcheck(self, affine: bool) -> None:
        _, frozen = layer_pair(affine=affine, dtype=torch.float64)
        x = image(2, 5, 2, 1, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(
            frozen, (x,), check_forward_ad=True, check_batched_grad=True
        )

    @ignores_torchscript_warning
    @ignores_vmap_warning
    def test_passes_gradgradcheck(self) -> None:
        _, frozen = layer_pair(dtype=torch.float64)
        x = image(2, 5, 2, 1, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradgradcheck(
            lambda x: frozen(x).pow(3), (x,), check_batched_grad=True, check_fwd_over_rev=True
        )

    @ignores_torchscript_warning
    @pytest.mark.parametrize("needs_gradient", [False, True])
    @pytest.mark.parametrize("varied", ["input", "weight", "bias"])
    def test_forward_mode_agrees_with_batch_norm(self, varied: str, needs_gradient: bool) -> None:
        tangents = []
        for function in (frozen_batch_norm, kernel):
            mean, variance, weight, bias = image(4, 5, seed=1).unbind()
            tensors = {
                "input": image(requires_grad=needs_gradient),
                "running_mean": mean,
                "running_var": variance.square(),
                "weight": weight,
                "bias": bias,
            }
            with forward_ad.dual_level():
                primal = tensors[varied]
                tensors[varied] = forward_ad.make_dual(primal, torch.ones_like(primal))
                output = function(*tensors.values(), 1e-3)
                tangents.append(forward_ad.unpack_dual(output).tangent)
        assert tangents[1].count_nonzero() > 0
        torch.testing.assert_close(*tangents, rtol=1e-6, atol=1e-6)

    def test_refuses_statistics_that_changed_since_forward(self) -> None:
        _, frozen = layer_pair()
        output = frozen(image(requires_grad=True))
        frozen.running_var.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()

    def test_survives_inplace_activation(self) -> None:
        batch_norm, frozen = layer_pair()
        gradients = []
        for layer in (batch_norm, frozen):
            x = image(requires_grad=True)
            layer(x).relu_().sum().backward()
            gradients.append(x.grad)
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=0)


def kernel(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """Return what BatchNorm2d in eval computes, with the arguments of `frozen_batch_norm`."""
    return F.batch_norm(input, running_mean, running_var, weight, bias, False, 0.1, eps)


def assert_gradients_agree(
    layers: tuple[nn.Module, nn.Module], upstream: Tensor, *, tolerance: float
) -> None:
    gradients = []
    for layer in layers:
        x = torch.zeros_like(upstream).requires_grad_()
        layer(x).backward(upstream)
        assert x.grad is not None
        assert x.grad.dtype == upstream.dtype
        gradients.append(x.grad)
    assert gradients[0].count_nonzero() > 0
    torch.testing.assert_close(gradients[1], gradients[0], rtol=tolerance, atol=0)


class TestSavedForBackward:
    @pytest.mark.parametrize("affine", [True, False])
    def test_is_per_channel(self, affine: bool) -> None:
        _, frozen = layer_pair(affine=affine)
        saved = saved_by(frozen, image(requires_grad=True))
        assert saved
        assert all(tensor.shape == (5,) for tensor in saved)

    def test_is_the_whole_input_if_weight_needs_a_gradient(self) -> None:
        """BatchNorm's own way; shows that the measurement sees a large tensor."""
        batch_norm, _ = layer_pair()
        x = image(requires_grad=True)
        assert x.shape in [tensor.shape for tensor in saved_by(batch_norm, x)]

    @pytest.mark.parametrize("norm", [FrozenBatchNorm2d, small_cnn])
    def test_is_no_more_than_torchvisions(self, norm: Callable[..., nn.Module]) -> None:
        if norm is small_cnn:
            ours, theirs = small_cnn(FrozenBatchNorm2d), small_cnn(TorchvisionFrozenBatchNorm2d)
            shape = (4, 3, 8, 8)
        else:
            ours, theirs = FrozenBatchNorm2d(5), TorchvisionFrozenBatchNorm2d(5)
            shape = (2, 5, 7, 6)
        assert bytes_kept(ours, image(*shape, requires_grad=True)) <= bytes_kept(
            theirs, image(*shape, requires_grad=True)
        )


def saved_by(module: nn.Module, x: Tensor) -> list[Tensor]:
    saved = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x).sum()
    return saved


def bytes_kept(module: nn.Module, x: Tensor) -> int:
    """Return the bytes kept for backward besides what the module and its input hold anyway."""
    held = {
        tensor.untyped_storage().data_ptr()
        for tensor in (x, *module.parameters(), *module.buffers())
    }
    kept = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in saved_by(module, x)
    }
    return sum(size for address, size in kept.items() if address not in held)


class TestCompilers:
    @ignores_torchscript_warning
    @pytest.mark.parametrize("affine", [True, False])
    def test_scripts(self, affine: bool) -> None:
        batch_norm, frozen = layer_pair(affine=affine)
        scripted = torch.jit.script(frozen)
        for requires_grad in (False, True):
            x = image(requires_grad=requires_grad)
            assert_same_bits(scripted(x), batch_norm(x))
        with pytest.raises(Exception, match="4 dimensions"):
            scripted(image(2, 5, 3))

    @ignores_torchscript_warning
    def test_scripts_with_activation(self) -> None:
        layer = FrozenBatchNormAct2d(5, act=nn.ReLU())
        perturb(layer)
        assert_same_bits(torch.jit.script(layer)(image()), layer(image()))

    @ignores_torchscript_warning
    @pytest.mark.parametrize("requires_grad", [False, True])
    def test_traces_saves_and_loads(self, tmp_path: Path, requires_grad: bool) -> None:
        batch_norm, frozen = layer_pair()
        traced = torch.jit.trace(frozen, image(requires_grad=requires_grad))
        traced.save(tmp_path / "traced.pt")
        loaded = torch.jit.load(tmp_path / "traced.pt")
        x = image(3, 5, 4, 2, seed=1)
        assert_same_bits(loaded(x), batch_norm(x))
        assert loaded.state_dict().keys() == frozen.state_dict().keys()

    @pytest.mark.parametrize("layer_class", [FrozenBatchNorm2d, FrozenBatchNormAct2d])
    def test_is_traced_symbolically(self, layer_class: type[FrozenBatchNorm2d]) -> None:
        model = small_cnn(layer_class)
        perturb(model)

        class LayersAreTracedThrough(torch.fx.Tracer):
            def is_leaf_module(self, module: nn.Module, name: str) -> bool:
                return not isinstance(module, (nn.Sequential, FrozenBatchNorm2d))

        for graph in (torch.fx.symbolic_trace(model).graph, LayersAreTracedThrough().trace(model)):
            traced = torch.fx.GraphModule(model, graph)
            for requires_grad in (False, True):
                x = image(2, 3, 8, 8, requires_grad=requires_grad)
                assert_same_bits(traced(x), model(x))
        assert frozen_batch_norm in [node.target for node in graph.nodes]

    @pytest.mark.parametrize("strict", [False, True])
    @pytest.mark.parametrize("requires_grad", [False, True])
    @pytest.mark.usefixtures("fresh_dynamo")
    def test_exports(self, strict: bool, requires_grad: bool) -> None:
        batch_norm, frozen = layer_pair()
        batch = torch.export.Dim("batch")
        program = torch.export.export(
            frozen,
            (image(requires_grad=requires_grad),),
            dynamic_shapes=({0: batch},),
            strict=strict,
        )
        x = image(3, 5, 7, 6, seed=1)
        assert_same_bits(program.module()(x), batch_norm(x))
        calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
        assert torch.ops.aten.batch_norm.default in calls

    @pytest.mark.parametrize(
        "backend", ["aot_eager", pytest.param("inductor", marks=needs_cpp_compiler)]
    )
    @pytest.mark.parametrize("affine", [True, False])
    @pytest.mark.usefixtures("fresh_dynamo")
    def test_compiles_to_one_graph(self, backend: str, affine: bool) -> None:
        batch_norm, frozen = layer_pair(affine=affine)
        compiled = torch.compile(frozen, fullgraph=True, backend=backend)
        torch.testing.assert_close(compiled(image()), batch_norm(image()), rtol=1e-6, atol=1e-6)
        assert_gradients_agree((batch_norm, compiled), image(seed=1), tolerance=1e-6)

    def test_loses_nothing_in_inference_mode(self) -> None:
        batch_norm, frozen = layer_pair()
        with torch.inference_mode():
            assert_same_bits(frozen(image()), batch_norm(image()))


TRANSFORMS: dict[str, Callable[[Callable[..., Tensor]], Callable[..., Any]]] = {
    "grad": torch.func.grad,
    "grad of weight": lambda f: torch.func.grad(f, argnums=1),
    "jacrev": torch.func.jacrev,
    "jacfwd": torch.func.jacfwd,
    "jvp": lambda f: lambda *x: torch.func.jvp(f, x, x)[1],
    "hessian": torch.func.hessian,
    "jacrev of jacrev": lambda f: torch.func.jacrev(torch.func.jacrev(f)),
    "jacfwd of jacfwd": lambda f: torch.func.jacfwd(torch.func.jacfwd(f)),
    "jacrev of jacfwd": lambda f: torch.func.jacrev(torch.func.jacfwd(f)),
    # What is differentiated first hides from `requires_grad` what is differentiated next.
    "jacrev by weight of grad": lambda f: torch.func.jacrev(torch.func.grad(f), argnums=1),
    "jacrev by bias of grad": lambda f: torch.func.jacrev(torch.func.grad(f), argnums=2),
    "jacfwd by weight of grad": lambda f: torch.func.jacfwd(torch.func.grad(f), argnums=1),
    "jacfwd by bias of grad": lambda f: torch.func.jacfwd(torch.func.grad(f), argnums=2),
    "jacrev of grad by weight": lambda f: torch.func.jacrev(torch.func.grad(f, argnums=1)),
    "vmap of grad": lambda f: (
        lambda x, w, b: torch.func.vmap(torch.func.grad(f), in_dims=(0, None, None))(
            torch.stack([x, 2 * x]), w, b
        )
    ),
    "vmap of grad over weights": lambda f: (
        lambda x, w, b: torch.func.vmap(torch.func.grad(f), in_dims=(None, 0, None))(
            x, torch.stack([w, 2 * w]), b
        )
    ),
    "grad of vmap": lambda f: torch.func.grad(
        lambda x, w, b: torch.func.vmap(f, in_dims=(0, None, None))(
            torch.stack([x, 2 * x]), w, b
        ).sum()
    ),
}


class TestFunctionTransforms:
    @ignores_torchscript_warning
    @pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
    def test_agree_with_batch_norm(
        self, transform: Callable[[Callable[..., Tensor]], Callable[..., Any]]
    ) -> None:
        mean, variance, weight, bias = image(4, 3, dtype=torch.float64, seed=1).unbind()
        variance = variance.square()
        x = image(2, 3, 2, 1, dtype=torch.float64)

        def loss(layer: Callable[..., Tensor]) -> Callable[..., Tensor]:
            return lambda x, w, b: layer(x, mean, variance, w, b, 1e-3).pow(3).sum()

        ours = transform(loss(frozen_batch_norm))(x, weight, bias)
        expected = transform(loss(kernel))(x, weight, bias)
        assert expected.count_nonzero() > 0
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-9)

    @pytest.mark.parametrize("requires_grad", [False, True])
    def test_vmap_equals_that_of_batch_norm_to_the_last_bit(self, requires_grad: bool) -> None:
        batch_norm, frozen = layer_pair()
        x = image(3, 2, 5, 4, 4).requires_grad_(requires_grad)
        assert_same_bits(torch.func.vmap(frozen)(x), torch.func.vmap(batch_norm)(x))

    def test_functional_call_takes_replaced_buffers(self) -> None:
        _, frozen = layer_pair()
        batch_norm, _ = layer_pair()
        perturb(batch_norm, seed=1)
        replaced = {name: getattr(batch_norm, name).detach() for name in frozen.state_dict()}
        before = copy.deepcopy(frozen.state_dict())
        for requires_grad in (False, True):
            x = image(requires_grad=requires_grad)
            output = torch.func.functional_call(frozen, replaced, (x,))
            assert_same_bits(output, batch_norm(x))
        assert_same_bits(dict(frozen.state_dict()), dict(before))

    def test_functional_call_reaches_gradients_of_replaced_weight(self) -> None:
        batch_norm, frozen = layer_pair(dtype=torch.float64)
        x = image(dtype=torch.float64)

        def loss(weight: Tensor, layer: nn.Module) -> Tensor:
            return torch.func.functional_call(layer, {"weight": weight}, (x,)).pow(2).sum()

        weight = frozen.weight
        torch.testing.assert_close(
            torch.func.grad(loss)(weight, frozen), torch.func.grad(loss)(weight, batch_norm)
        )


class TestCopies:
    def test_deepcopy_is_independent(self) -> None:
        batch_norm, frozen = layer_pair()
        copied = copy.deepcopy(frozen)
        frozen.running_mean.zero_()
        assert_same_bits(copied(image()), batch_norm(image()))

    def test_pickle_keeps_everything(self) -> None:
        batch_norm, frozen = layer_pair(eps=1e-4)
        loaded = pickle.loads(pickle.dumps(frozen))
        assert type(loaded) is FrozenBatchNorm2d
        assert loaded.eps == 1e-4
        assert_same_bits(loaded(image()), batch_norm(image()))

    def test_saved_module_loads(self, tmp_path: Path) -> None:
        batch_norm, frozen = layer_pair(affine=False)
        torch.save(frozen, tmp_path / "layer.pt")
        loaded = torch.load(tmp_path / "layer.pt", weights_only=False)
        assert type(loaded) is FrozenBatchNorm2d
        assert_same_bits(loaded(image()), batch_norm(image()))

    def test_import_path_is_the_one_stored_in_files(self) -> None:
        assert FrozenBatchNorm2d.__module__ == "frozenbn_cli.nn"
        assert FrozenBatchNorm2d.__qualname__ == "FrozenBatchNorm2d"
        assert FrozenBatchNormAct2d.__module__ == "frozenbn_cli.nn"


def timm_frozen() -> nn.Module:
    """Return what timm's own conversion makes of a BatchNorm2d."""
    return timm_freeze(nn.BatchNorm2d(5))


STATE_SOURCES: dict[str, Callable[[], nn.Module]] = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(5),
    "SyncBatchNorm": lambda: nn.SyncBatchNorm(5),
    "torchvision": lambda: TorchvisionFrozenBatchNorm2d(5),
    "timm": timm_frozen,
    "timm with activation": lambda: TimmFrozenBatchNormAct2d(5),
    "detectron2": lambda: Detectron2FrozenBatchNorm2d(5),
    "own": lambda: FrozenBatchNorm2d(5),
}


class TestState:
    @pytest.mark.parametrize("with_metadata", [True, False])
    @pytest.mark.parametrize("assign", [True, False])
    @pytest.mark.parametrize("layer_class", [FrozenBatchNorm2d, FrozenBatchNormAct2d])
    @pytest.mark.parametrize("source", STATE_SOURCES.values(), ids=STATE_SOURCES.keys())
    def test_is_taken_strictly(
        self,
        source: Callable[[], nn.Module],
        layer_class: type[FrozenBatchNorm2d],
        assign: bool,
        with_metadata: bool,
    ) -> None:
        original = nn.Sequential(source())
        perturb(original)
        state = original.state_dict() if with_metadata else dict(original.state_dict())
        names = list(state)
        model = nn.Sequential(layer_class(5))
        model.load_state_dict(state, strict=True, assign=assign)
        assert list(state) == names
        loaded = model.state_dict()
        assert sorted(loaded) == sorted(set(names) - {"0.num_batches_tracked"})
        assert_same_bits(dict(loaded), {name: state[name] for name in loaded})

    def test_assigned_parameters_stay_buffers(self) -> None:
        state = nn.BatchNorm2d(5).state_dict(keep_vars=True)
        assert isinstance(state["weight"], nn.Parameter)
        frozen = FrozenBatchNorm2d(5)
        frozen.load_state_dict(state, strict=True, assign=True)
        assert list(frozen.parameters()) == []
        assert not any(buffer.requires_grad for buffer in frozen.buffers())
        assert [name for name, _ in frozen.named_buffers()] == [
            "weight",
            "bias",
            "running_mean",
            "running_var",
        ]

    @pytest.mark.parametrize("name", ["running_mean", "running_var", "weight", "bias"])
    def test_with_missing_entry_is_refused(self, name: str) -> None:
        state = nn.BatchNorm2d(5).state_dict()
        del state[name]
        with pytest.raises(RuntimeError, match=rf'Missing key\(s\) in state_dict: "{name}"'):
            FrozenBatchNorm2d(5).load_state_dict(state, strict=True)

    def test_with_unknown_entry_is_refused(self) -> None:
        state = {**nn.BatchNorm2d(5).state_dict(), "momentum_buffer": torch.zeros(5)}
        with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) .*"momentum_buffer"'):
            FrozenBatchNorm2d(5).load_state_dict(state, strict=True)

    def test_of_another_width_is_refused(self) -> None:
        with pytest.raises(RuntimeError, match="size mismatch for running_mean"):
            FrozenBatchNorm2d(5).load_state_dict(nn.BatchNorm2d(4).state_dict())

    @pytest.mark.parametrize("affine", [True, False])
    @pytest.mark.parametrize("with_metadata", [True, False])
    def test_loads_strictly_into_batch_norm(self, with_metadata: bool, affine: bool) -> None:
        _, frozen = layer_pair(affine=affine)
        state = frozen.state_dict() if with_metadata else dict(frozen.state_dict())
        batch_norm = nn.BatchNorm2d(5, 1e-3, affine=affine).eval()
        batch_norm.load_state_dict(state, strict=True)
        assert_same_bits(batch_norm(image()), frozen(image()))


class TestConstruction:
    @pytest.mark.parametrize("eps", [0.0, 1e-5, 1e-3, 0.1 + 0.2, 5e-324])
    def test_keeps_eps_exactly(self, eps: float) -> None:
        assert FrozenBatchNorm2d(3, eps).eps == eps
        assert FrozenBatchNormAct2d(3, eps).eps == eps

    def test_shows_features_and_eps(self) -> None:
        assert repr(FrozenBatchNorm2d(3, 1e-3)) == "FrozenBatchNorm2d(3, eps=0.001)"
        assert (
            repr(FrozenBatchNorm2d(3, affine=False))
            == "FrozenBatchNorm2d(3, eps=1e-05, affine=False)"
        )

    @pytest.mark.parametrize("layer_class", [FrozenBatchNorm2d, FrozenBatchNormAct2d])
    def test_refuses_a_third_positional_argument(
        self, layer_class: type[FrozenBatchNorm2d]
    ) -> None:
        """That is BatchNorm2d's momentum; here it would be taken for something else."""
        with pytest.raises(TypeError, match="positional"):
            layer_class(3, 1e-5, 0.1)  # type: ignore[misc]

    def test_is_batch_norms_initial_state(self) -> None:
        expected = nn.BatchNorm2d(3).state_dict()
        del expected["num_batches_tracked"]
        assert_same_bits(dict(FrozenBatchNorm2d(3).state_dict()), dict(expected))

    def test_follows_device_and_dtype(self) -> None:
        layer = FrozenBatchNorm2d(3, device="meta", dtype=torch.float64)
        assert {(buffer.device.type, buffer.dtype) for buffer in layer.buffers()} == {
            ("meta", torch.float64)
        }

    def test_follows_default_dtype(self) -> None:
        torch.set_default_dtype(torch.float64)
        try:
            layer = FrozenBatchNorm2d(3)
        finally:
            torch.set_default_dtype(torch.float32)
        assert layer.running_var.dtype == torch.float64


class TestActivation:
    def test_follows_dropout_which_follows_the_normalisation(self) -> None:
        batch_norm, _ = layer_pair()
        calls: list[str] = []

        class Recorded(nn.Module):
            def __init__(self, name: str, function: Callable[[Tensor], Tensor]) -> None:
                super().__init__()
                self.name, self.function = name, function

            def forward(self, input: Tensor) -> Tensor:
                calls.append(self.name)
                return self.function(input)

        layer = FrozenBatchNormAct2d(
            5, 1e-3, drop=Recorded("drop", lambda x: x - 0.5), act=Recorded("act", torch.relu)
        )
        layer.load_state_dict(batch_norm.state_dict(), strict=True)
        assert_same_bits(layer(image()), torch.relu(batch_norm(image()) - 0.5))
        assert calls == ["drop", "act"]

    def test_is_nothing_by_default(self) -> None:
        batch_norm, _ = layer_pair()
        layer = FrozenBatchNormAct2d(5, 1e-3)
        layer.load_state_dict(batch_norm.state_dict(), strict=True)
        assert_same_bits(layer(image()), batch_norm(image()))


@pytest.mark.slow
def test_trains_in_two_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_one_rank, args=(2, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    assert any(gradient.count_nonzero() > 0 for gradient in first["gradients"])
    assert_same_bits(first["gradients"], second["gradients"])
    assert not torch.equal(first["loss"], second["loss"])
    for rank in (first, second):
        assert_same_bits(rank["buffers_after"], rank["buffers_before"])
