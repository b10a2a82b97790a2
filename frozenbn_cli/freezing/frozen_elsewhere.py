"""Frozen BatchNorm layers, of this package and of others, recognised without importing these."""

from __future__ import annotations

from typing import Any

from torch import nn

from frozenbn_cli.nn import (
    FrozenBatchNorm1d,
    FrozenBatchNorm2d,
    FrozenBatchNorm3d,
)

__all__ = ["OURS", "eps_of", "is_frozen_layer", "is_ours"]

OURS = (FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d)
"""The layers of this package; those for any dimensions and with an activation derive from them."""

_ELSEWHERE = {
    ("torchvision", "FrozenBatchNorm2d"),
    ("detectron2", "FrozenBatchNorm2d"),
    ("timm", "FrozenBatchNormAct2d"),
}


def is_ours(layer: nn.Module) -> bool:
    """Return whether a layer is a frozen one of this package, or of a class derived from these."""
    return isinstance(layer, OURS)


def is_frozen_layer(layer: nn.Module) -> bool:
    """Return whether a layer is a frozen BatchNorm, of this package or another."""
    if is_ours(layer):
        return True
    package, name = type(layer).__module__.partition(".")[0], type(layer).__name__
    # Each of transformers' detectors has a copy of its own: DetrFrozenBatchNorm2d and many more.
    of_transformers = package == "transformers" and name.endswith("FrozenBatchNorm2d")
    return of_transformers or (package, name) in _ELSEWHERE


def eps_of(layer: Any) -> float | None:
    """Return the eps of a frozen layer, or None where it cannot be told.

    transformers' layers have it in the code of their forward alone: the one number in it.
    """
    if isinstance(eps := getattr(layer, "eps", None), (int, float)):
        return float(eps)
    code = getattr(type(layer).forward, "__code__", None)
    numbers = [value for value in getattr(code, "co_consts", ()) if isinstance(value, float)]
    return numbers[0] if len(numbers) == 1 else None
