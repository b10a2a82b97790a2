"""Whether the running statistics of live layers mean anything, as the findings ask of files."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

__all__ = ["ailment"]


def ailment(layer: nn.Module) -> str | None:
    """Return what is wrong with the statistics of a BatchNorm layer, in a few words, or None."""
    live: Any = layer
    mean, variance = live.running_mean.detach(), live.running_var.detach()
    if mean.is_meta or mean.numel() == 0:
        return None
    tensors: list[Tensor | None] = [mean, variance, live.weight, live.bias]
    if not all(bool(each.detach().isfinite().all()) for each in tensors if each is not None):
        return "NaN or Inf"
    if bool((variance < 0).any()):
        return "negative variance"
    if not bool(mean.any()) and bool((variance == 1).all()):
        return "never formed (mean 0, variance 1 throughout)"
    return None
