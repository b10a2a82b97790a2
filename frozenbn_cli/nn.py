"""FrozenBatchNorm2d, the layer. Its import path is stored in model files and never changes."""

from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from frozenbn_cli.torch_jit import is_scripting, is_tracing

__all__ = ["FrozenBatchNorm2d", "FrozenBatchNormAct2d", "frozen_batch_norm"]


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
@torch.fx.wrap
def frozen_batch_norm(
    input: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    weight: Optional[Tensor] = None,  # noqa: UP045
    bias: Optional[Tensor] = None,  # noqa: UP045
    eps: float = 1e-5,
) -> Tensor:
    """Normalise ``input`` with fixed statistics, bit for bit as `torch.nn.BatchNorm2d` in eval.

    y[n, c, h, w] = (x[n, c, h, w] - running_mean[c]) / sqrt(running_var[c] + eps)
                    * weight[c] + bias[c]

    Only per-channel tensors are saved for backward, unless ``weight`` or ``bias`` needs a gradient,
    or `torch.func` or forward-mode differentiation is at work.

    Args:
        input: Shape (N, C, H, W); N, H and W may be 0.
        running_mean: Shape (C,), of the input's dtype, or float32 for a narrower input.
        running_var: Shape (C,), as ``running_mean``.
        weight: gamma, shape (C,), or None for 1.
        bias: beta, shape (C,), or None for 0.
        eps: Added to the variance.

    Returns:
        Shape (N, C, H, W), dtype and memory format of ``input``.

    Raises:
        ValueError: ``input`` does not have 4 dimensions.
    """
    if input.dim() != 4:
        raise ValueError(
            f"expected 4 dimensions (N, C, H, W), found {input.dim()} in an input of shape "
            f"{list(input.shape)}"
        )
    if is_scripting():
        output = F.batch_norm(input, running_mean, running_var, weight, bias, False, 0.0, eps)
    else:
        output = _eager_batch_norm(input, running_mean, running_var, weight, bias, eps)
    return output


class FrozenBatchNorm2d(nn.Module):
    """BatchNorm2d that always uses its running statistics, in ``train()`` as in ``eval()``.

    Statistics and affine are buffers: nothing updates them, no optimiser sees them. The output
    equals that of `torch.nn.BatchNorm2d` in eval to the last bit, with gradients and without.
    ``load_state_dict`` takes the state of a BatchNorm2d, and of the FrozenBatchNorm2d of
    torchvision, timm and detectron2; a ``num_batches_tracked`` is dropped.

    Args:
        num_features: C, the number of channels of an input of shape (N, C, H, W).
        eps: Added to the variance. Must be that of the BatchNorm2d the state comes from.
        affine: Whether there are ``weight`` and ``bias``.
        device: Where the buffers are made.
        dtype: The buffers' dtype.

    A new layer is the identity up to eps: mean 0, variance 1, weight 1, bias 0, each of shape (C,).
    """

    __constants__ = ("affine", "eps", "num_features")
    running_mean: Tensor
    running_var: Tensor
    weight: Optional[Tensor]  # noqa: UP045
    bias: Optional[Tensor]  # noqa: UP045

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.affine = affine

        def filled(value: float) -> Tensor:
            return torch.full((num_features,), value, device=device, dtype=dtype)

        dtype = dtype or torch.get_default_dtype()
        self.register_buffer("weight", filled(1.0) if affine else None)
        self.register_buffer("bias", filled(0.0) if affine else None)
        self.register_buffer("running_mean", filled(0.0))
        self.register_buffer("running_var", filled(1.0))

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised ``input``, both of shape (N, C, H, W)."""
        if not is_scripting():
            # A module looks for attributes among much else before it finds a buffer. A buffer that
            # somebody made a parameter, or parametrised, is found the long way.
            of: dict[str, Any] = self._buffers
            if "weight" in of and "bias" in of and "running_mean" in of and "running_var" in of:
                return frozen_batch_norm(
                    input, of["running_mean"], of["running_var"], of["weight"], of["bias"], self.eps
                )
        return frozen_batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, self.eps
        )

    def extra_repr(self) -> str:
        """Return what `repr` shows between the brackets."""
        return f"{self.num_features}, eps={self.eps}" + ("" if self.affine else ", affine=False")

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        for key in (prefix + name for name in self._buffers):
            if isinstance(state_dict.get(key), nn.Parameter):
                # With `assign=True` it would become a parameter here, and be trained.
                state_dict[key] = state_dict[key].detach()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """FrozenBatchNorm2d followed by dropout and activation, in place of timm's BatchNormAct2d.

    Args:
        num_features: As for `FrozenBatchNorm2d`.
        eps: As for `FrozenBatchNorm2d`.
        affine: As for `FrozenBatchNorm2d`.
        drop: Applied to the normalised input; None for nothing.
        act: Applied last; None for nothing.
        device: Where the buffers are made.
        dtype: The buffers' dtype.
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        *,
        affine: bool = True,
        drop: nn.Module | None = None,
        act: nn.Module | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_features, eps, affine=affine, device=device, dtype=dtype)
        self.drop = nn.Identity() if drop is None else drop
        self.act = nn.Identity() if act is None else act

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalised and activated ``input``, both of shape (N, C, H, W)."""
        normalised = frozen_batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, self.eps
        )
        output: Tensor = self.act(self.drop(normalised))
        return output
