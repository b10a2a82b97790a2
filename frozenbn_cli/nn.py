"""The frozen layers. Their import paths are stored in model files and never change."""

from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from frozenbn_cli.torch_jit import is_scripting, is_tracing

__all__ = [
    "FrozenBatchNorm1d",
    "FrozenBatchNorm2d",
    "FrozenBatchNorm3d",
    "FrozenBatchNormAct2d",
    "FrozenBatchNormNd",
    "frozen_batch_norm",
]

_MOST_DIMS = 64
"""As many dimensions as a tensor can have."""


class _InputGradientOnly(torch.autograd.Function):
    """BatchNorm's eval kernel, with a backward that needs per-channel tensors alone.

    The kernel's own backward saves its whole input, for gradients of weight and bias that a
    frozen layer has no use for.
    """

    # No separate `setup_context`: with one, `apply` binds a signature, which costs more than
    # the kernel on small maps.
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(running_var, weight)
        ctx.eps = eps
        return F.batch_norm(input, running_mean, running_var, weight, bias, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = gradients
        running_var, weight = ctx.saved_tensors
        # gradient * weight / sqrt(running_var + eps) is what the kernel gives for mean and bias 0.
        zeros = torch.zeros_like(running_var)
        scaled = F.batch_norm(gradient, zeros, running_var, weight, None, False, 0.0, ctx.eps)
        return scaled, None, None, None, None, None


# PyTorch has no public names for whether `torch.func` or forward-mode differentiation is at work.
# Should the private ones go, it counts as being so, since the plain kernel is always right.
_is_func_at_work: Any = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def _is_transformed() -> bool:
    """Return whether `requires_grad` does not tell what is differentiated."""
    return _is_func_at_work() or getattr(forward_ad, "_current_level", 0) >= 0


def _eager_batch_norm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    # Written out, and in the order of what decides most often: on small maps, each call counts.
    if (
        input.requires_grad
        and torch.is_grad_enabled()
        and not (running_mean.requires_grad or running_var.requires_grad)
        and (weight is None or not weight.requires_grad)
        and (bias is None or not bias.requires_grad)
        and not torch.compiler.is_compiling()
        and not is_tracing()
        and not _is_transformed()
    ):
        output: Tensor = _InputGradientOnly.apply(
            input, running_mean, running_var, weight, bias, eps
        )
        return output
    return F.batch_norm(input, running_mean, running_var, weight, bias, False, 0.0, eps)


# torch.jit.script reads these annotations and knows Optional alone.
def frozen_batch_norm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Optional[Tensor] = None,  # noqa: UP045
    bias: Optional[Tensor] = None,  # noqa: UP045
    eps: float = 1e-5,
    least_dims: int = 4,
    most_dims: int = 4,
) -> Tensor:
    """Normalise ``input`` with fixed statistics, bit for bit as BatchNorm in eval.

    y[n, c, ...] = (x[n, c, ...] - running_mean[c]) / sqrt(running_var[c] + eps)
                   * weight[c] + bias[c]

    Only per-channel tensors are saved for backward, unless ``weight`` or ``bias`` needs a gradient,
    or `torch.func` or forward-mode differentiation is at work. Where a variance and ``eps`` add up
    to 0 or less, the gradient of that channel is NaN; BatchNorm's may be infinite instead.

    Args:
        input: Shape (N, C, H, W); N, H and W may be 0.
        running_mean: Shape (C,), of the input's dtype, or float32 for a narrower input.
        running_var: Shape (C,), as ``running_mean``.
        weight: gamma, shape (C,), or None for 1.
        bias: beta, shape (C,), or None for 0.
        eps: Added to the variance.
        least_dims: The fewest dimensions that ``input`` may have; 2 for shape (N, C).
        most_dims: The most that it may have.

    Returns:
        Shape, dtype and memory format of ``input``.

    Raises:
        ValueError: ``input`` has fewer or more dimensions.
    """
    if not is_scripting():  # noqa: SIM102  # TorchScript must not read the next line.
        if isinstance(input, torch.fx.Proxy):
            return _called_in_a_graph(
                input, running_mean, running_var, weight, bias, eps, least_dims, most_dims
            )
    dims = input.dim()
    if dims < least_dims or dims > most_dims:
        raise ValueError(
            f"expected {_expected(least_dims, most_dims)}, found {dims} in an input of shape "
            f"{list(input.shape)}"
        )
    if is_scripting():
        output = F.batch_norm(input, running_mean, running_var, weight, bias, False, 0.0, eps)
    else:
        output = _eager_batch_norm(input, running_mean, running_var, weight, bias, eps)
    return output


def _called_in_a_graph(input: Any, *others: Any) -> Any:
    """Return the node of a call that `torch.fx` traces, wherever the call was written."""
    return input.tracer.create_proxy("call_function", frozen_batch_norm, (input, *others), {})


def _expected(least_dims: int, most_dims: int) -> str:
    if least_dims < most_dims:
        if most_dims == 3:
            return "2 or 3 dimensions (N, C) or (N, C, L)"
        return f"{least_dims} or more dimensions (N, C, ...)"
    if least_dims == 4:
        return "4 dimensions (N, C, H, W)"
    return "5 dimensions (N, C, D, H, W)"


class _FrozenBatchNorm(nn.Module):
    __constants__ = ("affine", "eps", "least_dims", "most_dims", "num_features")
    least_dims: int
    most_dims: int
    running_mean: Tensor
    running_var: Tensor
    weight: Optional[Tensor]  # noqa: UP045
    bias: Optional[Tensor]  # noqa: UP045

    # What the layer was before it was frozen, for thawing: a plain dict, not in the state dict.
    # It has no annotation, since TorchScript would make an attribute of that.
    origin = None

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        affine: bool = True,
        bias: bool = True,
        trainable_affine: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.affine = affine

        def empty() -> Tensor:
            return torch.empty(num_features, device=device, dtype=dtype)

        dtype = dtype or torch.get_default_dtype()
        for name, there in (("weight", affine), ("bias", affine and bias)):
            if trainable_affine:
                self.register_parameter(name, nn.Parameter(empty()) if there else None)
            else:
                self.register_buffer(name, empty() if there else None)
        self.register_buffer("running_mean", empty())
        self.register_buffer("running_var", empty())
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Make the layer the identity up to eps, as a new one is; FSDP asks for it after `meta`."""
        self.running_mean.zero_()
        self.running_var.fill_(1.0)
        if self.weight is not None:
            self.weight.fill_(1.0)
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised ``input``, of the same shape."""
        if not is_scripting():
            # A module looks for attributes among much else before it finds a buffer. A buffer that
            # somebody made a parameter, or parametrised, is found the long way.
            of: dict[str, Any] = self._buffers
            if "weight" in of and "bias" in of and "running_mean" in of and "running_var" in of:
                return frozen_batch_norm(
                    input,
                    of["running_mean"],
                    of["running_var"],
                    of["weight"],
                    of["bias"],
                    self.eps,
                    self.least_dims,
                    self.most_dims,
                )
        return frozen_batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.eps,
            self.least_dims,
            self.most_dims,
        )

    def extra_repr(self) -> str:
        """Return what `repr` shows between the brackets."""
        shown = f"{self.num_features}, eps={self.eps}"
        if not self.affine:
            return f"{shown}, affine=False"
        if self.bias is None:
            shown += ", bias=False"
        return shown + (", trainable_affine=True" if "weight" in self._parameters else "")

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        for key in (prefix + name for name in self._buffers):
            if isinstance(state_dict.get(key), nn.Parameter):
                # With `assign=True` it would become a parameter here, and be trained.
                state_dict[key] = state_dict[key].detach()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class FrozenBatchNorm2d(_FrozenBatchNorm):
    """BatchNorm2d that always uses its running statistics, in ``train()`` as in ``eval()``.

    Statistics and affine are buffers: nothing updates them, no optimiser sees them. The output
    equals that of `torch.nn.BatchNorm2d` in eval to the last bit, with gradients and without.
    ``load_state_dict`` takes the state of a BatchNorm2d, and of the FrozenBatchNorm2d of
    torchvision, timm and detectron2; a ``num_batches_tracked`` is dropped.

    Args:
        num_features: C, the number of channels of an input of shape (N, C, H, W).
        eps: Added to the variance. Must be that of the BatchNorm2d the state comes from.
        affine: Whether there are ``weight`` and ``bias``.
        bias: Whether there is a ``bias``, if ``affine``.
        trainable_affine: Whether ``weight`` and ``bias`` are parameters, to be trained while the
            statistics stay frozen.
        device: Where the tensors are made.
        dtype: The tensors' dtype.

    A new layer is the identity up to eps: mean 0, variance 1, weight 1, bias 0, each of shape (C,).
    """

    least_dims = most_dims = 4


class FrozenBatchNorm1d(_FrozenBatchNorm):
    """BatchNorm1d that always uses its running statistics; as `FrozenBatchNorm2d` otherwise.

    Takes inputs of shape (N, C) or (N, C, L).
    """

    least_dims, most_dims = 2, 3


class FrozenBatchNorm3d(_FrozenBatchNorm):
    """BatchNorm3d that always uses its running statistics; as `FrozenBatchNorm2d` otherwise.

    Takes inputs of shape (N, C, D, H, W).
    """

    least_dims = most_dims = 5


class FrozenBatchNormNd(FrozenBatchNorm2d):
    """A `FrozenBatchNorm2d` that takes inputs of any 2 or more dimensions, as SyncBatchNorm does.

    Takes inputs of shape (N, C, ...). It stands in for SyncBatchNorm, and for subclasses of
    BatchNorm that check the dimensions of their inputs in a way of their own.
    """

    least_dims, most_dims = 2, _MOST_DIMS


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """FrozenBatchNorm2d followed by dropout and activation, in place of timm's BatchNormAct2d.

    Args:
        num_features: As for `FrozenBatchNorm2d`.
        eps: As for `FrozenBatchNorm2d`.
        drop: Applied to the normalised input; None for nothing.
        act: Applied last; None for nothing.
        **keywords: As for `FrozenBatchNorm2d`.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        drop: nn.Module | None = None,
        act: nn.Module | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(num_features, eps, **keywords)
        self.drop = nn.Identity() if drop is None else drop
        self.act = nn.Identity() if act is None else act

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised and activated ``input``, both of shape (N, C, H, W)."""
        normalised = frozen_batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, self.eps
        )
        output: Tensor = self.act(self.drop(normalised))
        return output
