"""Thawing the frozen layers of live models."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from frozenbn_cli.errors import DependencyError
from frozenbn_cli.freezing.frozen_elsewhere import eps_of, is_frozen_layer, is_ours
from frozenbn_cli.freezing.replacing import Copies, continuing, replaced
from frozenbn_cli.freezing.thaw_graphs import frozen_calls, thaw_calls
from frozenbn_cli.freezing.wrappers import refuse_wrapped
from frozenbn_cli.nn import (
    FrozenBatchNorm1d,
    FrozenBatchNorm2d,
    FrozenBatchNorm3d,
    FrozenBatchNormAct2d,
    FrozenBatchNormNd,
)
from frozenbn_cli.selection import Selection
from frozenbn_cli.wording import listed

__all__ = ["convert_frozen_to_bn"]

_MOMENTUM = 0.1
_NAMED = 8


def convert_frozen_to_bn(
    model: nn.Module,
    *,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    momentum: float | Literal["kept"] | None = "kept",
) -> nn.Module:
    """Replace the frozen layers of ``model`` by BatchNorm layers, in place.

    The frozen layers of this package are replaced, those of torchvision, timm, detectron2 and
    transformers, and the calls of this package's layers in graphs that `torch.fx` traced.

    A layer that `convert_bn_to_frozen` froze becomes what it was: its class (SyncBatchNorm, a
    subclass), momentum, count of batches, and which parameters need a gradient. Of any other layer
    that is unknown: weight and bias become parameters that need a gradient, the momentum is 0.1,
    and the count starts at 0.

    Args:
        model: Any module, not wrapped for several devices.
        include: Names of submodules, or glob patterns of layer names; only these are thawed.
        exclude: Names of submodules, or glob patterns of layer names; these stay frozen.
        momentum: Of the new layers, if not the one that was kept. With None, a cumulative average,
            the first batch in training replaces statistics whose count is 0.

    Returns:
        ``model``, or a new layer if ``model`` itself is a frozen layer.

    Raises:
        UsageError: A name or pattern matches no frozen layer, or the model is wrapped.
        DependencyError: A layer with an activation is found, and timm is not installed.
    """
    refuse_wrapped(model)
    names: dict[nn.Module, list[str]] = {}
    for name, layer in model.named_modules(remove_duplicate=False):
        if is_frozen_layer(layer):
            names.setdefault(layer, []).append(name)
    selection = Selection.of(include, exclude)
    calls = frozen_calls(model)
    known = [*(call.name for call in calls), *(name for each in names.values() for name in each)]
    selection.check(known, "frozen layer")
    chosen = {
        layer: layer_names
        for layer, layer_names in names.items()
        if selection.reason_left_out(layer_names) is None
    }
    copies = Copies()
    with torch.inference_mode(False):
        new = {layer: _thawed(layer, copies, momentum) for layer in chosen if not _obstacle(layer)}
        thaw_calls(
            (call for call in calls if selection.reason_left_out([call.name]) is None),
            momentum=_MOMENTUM if momentum == "kept" else momentum,
        )
    model, held = replaced(model, new)
    _warn(chosen, new, held)
    return model


def _obstacle(layer: nn.Module) -> str | None:
    """Return why a frozen layer cannot be thawed without changing what it does, or None."""
    if is_ours(layer) and type(layer).forward not in _FORWARDS:
        return "a subclass whose forward may do something else"
    return "its eps is unknown" if eps_of(layer) is None else None


_FORWARDS = (FrozenBatchNorm2d.forward, FrozenBatchNormAct2d.forward)


def _warn(
    chosen: Mapping[nn.Module, list[str]],
    new: Mapping[nn.Module, nn.Module],
    held: tuple[str, ...],
) -> None:
    left = [
        f"{names[0]} ({_obstacle(layer)})" for layer, names in chosen.items() if layer not in new
    ]
    without_eps = [names[0] for layer, names in chosen.items() if eps_of(layer) == 0]
    for text, named in (
        ("left frozen", left),
        ("thawed with eps 0, so that a constant channel becomes NaN in training", without_eps),
        ("a layer that was replaced stays in use where it is also held", list(held)),
    ):
        if named:
            warnings.warn(f"{text}: {listed(named, _NAMED)}", stacklevel=3)


def _thawed(layer: Any, copies: Copies, momentum: float | Literal["kept"] | None) -> nn.Module:
    origin = getattr(layer, "origin", None)
    thawed: Any = _as_it_was(layer, origin) if origin else _new_batch_norm(layer)
    if momentum != "kept":
        thawed.momentum = momentum
    for name, child in layer.named_children():  # The dropout and activation behind it.
        if not origin or name in origin["children"]:
            thawed.add_module(name, child)
    needs_gradient: Mapping[str, bool] = origin["requires_grad"] if origin else {}
    for name in ("weight", "bias"):
        tensor: Tensor | None = getattr(layer, name)
        if isinstance(tensor, nn.Parameter):
            thawed.register_parameter(name, tensor)
            continue
        parameter = copies.parameter_of(tensor, requires_grad=needs_gradient.get(name, True))
        thawed.register_parameter(name, parameter)
    for name in ("running_mean", "running_var"):
        thawed.register_buffer(name, copies.of(getattr(layer, name)))
    count = (origin["num_batches_tracked"] if origin else 0) or 0
    device = layer.running_mean.device
    thawed.register_buffer("num_batches_tracked", torch.tensor(count, device=device))
    result: nn.Module = continuing(layer, thawed)
    return result


def _as_it_was(layer: Any, origin: Mapping[str, Any]) -> Any:
    thawed = origin["class"].__new__(origin["class"])
    nn.Module.__init__(thawed)
    for name, value in origin["attributes"].items():
        object.__setattr__(thawed, name, value)
    thawed.eps = layer.eps
    return thawed


def _new_batch_norm(layer: Any) -> Any:
    kind: Any = nn.BatchNorm2d
    if hasattr(layer, "act"):
        kind = _timm_batch_norm_act()
    else:
        for frozen, live in _STANDS_IN_FOR.items():
            if isinstance(layer, frozen):
                kind = live
    channels, eps = layer.running_mean.numel(), eps_of(layer)
    return kind(channels, eps, _MOMENTUM, affine=layer.weight is not None)


_STANDS_IN_FOR: dict[type[nn.Module], type[nn.Module]] = {
    FrozenBatchNorm1d: nn.BatchNorm1d,
    FrozenBatchNorm3d: nn.BatchNorm3d,
    FrozenBatchNormNd: nn.SyncBatchNorm,
}


def _timm_batch_norm_act() -> Any:
    try:
        layers = importlib.import_module("timm.layers")
    except ImportError as error:
        raise DependencyError(
            "a layer with an activation becomes timm's BatchNormAct2d, and timm is not installed",
            advice="Install it with `pip install timm`.",
        ) from error
    return layers.BatchNormAct2d
