"""Freezing the BatchNorm layers of live models."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from frozenbn_cli.freezing.health import ailment
from frozenbn_cli.freezing.held import live_outside
from frozenbn_cli.freezing.replacing import Copies, continuing, replaced
from frozenbn_cli.freezing.survey import (
    BatchNormDecision,
    decisions_on,
    dims_of_layer,
    frozen_class_of,
)
from frozenbn_cli.freezing.wrappers import live_calls, refuse_wrapped
from frozenbn_cli.selection import Selection, checked_dims
from frozenbn_cli.wording import counted, listed

__all__ = ["convert_bn_to_frozen", "freeze_with_warnings", "frozen_layers_of", "held_text"]

_STATE = ("weight", "bias", "running_mean", "running_var")
_NAMED = 8


def convert_bn_to_frozen(
    model: nn.Module,
    *,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    dims: Iterable[int] | None = None,
    trainable_affine: bool = False,
) -> nn.Module:
    """Replace the BatchNorm layers of ``model`` by frozen ones, in place.

    BatchNorm2d becomes FrozenBatchNorm2d, and with ``dims`` BatchNorm1d and BatchNorm3d become
    FrozenBatchNorm1d and FrozenBatchNorm3d. SyncBatchNorm, which takes any dimensions, becomes
    FrozenBatchNormNd, which does too; timm's BatchNormAct2d becomes FrozenBatchNormAct2d.
    Subclasses that inherit their forward are replaced like what they derive from.

    Layers that cannot be frozen faithfully (no running statistics, never-run lazy layers,
    parametrised ones, a forward of their own) are left alone. One warning names all that stay live
    for another reason than ``include``, ``exclude`` and ``dims``; `survey_batch_norms` lists them.

    A layer under several names stays one layer under all of them, tensors tied between layers
    stay tied, hooks and training flags are kept, and no storage is shared with the old layers.
    The new layers hold buffers where there were parameters: make the optimiser afterwards, or use
    `freeze_batch_norms`.

    Args:
        model: Any module, not yet wrapped for several devices, nor offloaded.
        include: Names of submodules, or glob patterns of layer names; only these are frozen.
        exclude: Names of submodules, or glob patterns of layer names; these are not frozen.
        dims: The spatial dimensions of the layers to freeze, of 1, 2 and 3; (2,) if not given.
        trainable_affine: Whether weight and bias stay parameters, the very ones that there are, and
            only the statistics are frozen.

    Returns:
        ``model``, or a new layer if ``model`` itself is a BatchNorm layer.

    Raises:
        UsageError: A name or pattern matches no BatchNorm layer, a dimension is none of these, or
            something holds on to the parameters that would be gone (DistributedDataParallel, FSDP,
            offload hooks). Nothing is changed.
    """
    return freeze_with_warnings(
        model,
        include=include,
        exclude=exclude,
        dims=dims,
        trainable_affine=trainable_affine,
        stacklevel=3,
    )


def freeze_with_warnings(
    model: nn.Module,
    *,
    include: str | Iterable[str],
    exclude: str | Iterable[str],
    dims: Iterable[int] | None,
    trainable_affine: bool,
    stacklevel: int,
) -> nn.Module:
    """Do what `convert_bn_to_frozen` does, and warn the caller that is so many frames away."""
    refuse_wrapped(model)
    decisions = decisions_on(model, Selection.of(include, exclude), dims)
    calls = tuple(live_calls(model))
    ill = _ailments(decisions)
    outside = _outside_text(model, dims) if not include else ""
    new = frozen_layers_of(decisions, trainable_affine=trainable_affine)
    model, held = replaced(model, new)
    texts = (_live_text(decisions, calls), outside, _ill_text(ill), held_text(held))
    if any(texts):
        warnings.warn("\n".join(text for text in texts if text), stacklevel=stacklevel)
    return model


def frozen_layers_of(
    decisions: Mapping[nn.Module, BatchNormDecision], *, trainable_affine: bool = False
) -> dict[nn.Module, nn.Module]:
    """Return the frozen layer that takes the place of each layer that is to be frozen."""
    copies = Copies()
    # What is made in inference mode could never be trained with.
    with torch.inference_mode(False):
        return {
            layer: _frozen(layer, copies, trainable_affine)
            for layer, decision in decisions.items()
            if decision.frozen
        }


def _frozen(layer: Any, copies: Copies, trainable_affine: bool) -> nn.Module:
    kind: Any = frozen_class_of(layer)
    children = {name: child for name, child in layer._modules.items() if name in ("drop", "act")}
    frozen = kind(layer.num_features, float(layer.eps), affine=layer.affine, **children)
    for name in _STATE:
        tensor = getattr(layer, name)
        if trainable_affine and isinstance(tensor, nn.Parameter):
            del frozen._buffers[name]
            frozen.register_parameter(name, tensor)
        else:
            setattr(frozen, name, copies.of(tensor))
    frozen.origin = _origin(layer)
    result: nn.Module = continuing(layer, frozen)
    return result


def _origin(layer: Any) -> dict[str, Any]:
    """Return what thawing needs to know of a layer, and a frozen one has no use for."""
    internal = vars(nn.Module())
    count = layer.num_batches_tracked
    return {
        "class": type(layer),
        "children": tuple(layer._modules),
        "attributes": {name: value for name, value in vars(layer).items() if name not in internal},
        "num_batches_tracked": None if count is None or count.is_meta else int(count),
        "requires_grad": {
            name: tensor.requires_grad
            for name, tensor in layer._parameters.items()
            if tensor is not None
        },
    }


@dataclass(frozen=True, slots=True)
class _Ailment:
    name: str
    text: str


def _ailments(decisions: Mapping[nn.Module, BatchNormDecision]) -> list[_Ailment]:
    found = (
        (decision.names[0], ailment(layer))
        for layer, decision in decisions.items()
        if decision.frozen
    )
    return [_Ailment(name, text) for name, text in found if text]


def _live_text(decisions: Mapping[nn.Module, BatchNormDecision], calls: tuple[str, ...]) -> str:
    """Return the warning of what stays live, for another reason than the caller's selection."""
    by_reason: dict[str, list[str]] = {}
    for decision in decisions.values():
        if decision.chosen and decision.reason:
            by_reason.setdefault(decision.reason, []).append(
                decision.names[0] or "the model itself"
            )
    if calls:
        reason = "called in a traced graph, no layer: freeze the model before it is traced"
        by_reason[reason] = list(calls)
    if not by_reason:
        return ""
    count = sum(len(names) for names in by_reason.values())
    lines = [f"{listed(names, _NAMED)}: {reason}" for reason, names in by_reason.items()]
    return (
        f"{counted(count, 'BatchNorm layer')} left live: "
        + "; ".join(lines)
        + ". In train() they update their statistics; exclude= says that this is meant."
    )


def _outside_text(model: nn.Module, dims: Iterable[int] | None) -> str:
    """Return the warning of live layers that no module registers, if there are any."""
    wanted = {None, *checked_dims(dims)}
    named = [name for name, layer in live_outside(model).items() if dims_of_layer(layer) in wanted]
    if not named:
        return ""
    return (
        f"{counted(len(named), 'BatchNorm layer')} left live, since no module registers what holds "
        f"them, so that eval() does not reach them either: {listed(named, _NAMED)}. Put them into "
        "an nn.ModuleList or nn.ModuleDict"
    )


def _ill_text(ill: list[_Ailment]) -> str:
    by_text: dict[str, list[str]] = {}
    for each in ill:
        by_text.setdefault(each.text, []).append(each.name or "the model itself")
    if not by_text:
        return ""
    lines = [f"{text}: {listed(names, _NAMED)}" for text, names in by_text.items()]
    return (
        "frozen with statistics that mean nothing: "
        + "; ".join(lines)
        + ". Load the trained weights before freezing, or into the frozen model."
    )


def held_text(held: tuple[str, ...]) -> str:
    """Return the warning of layers that stay in use outside the module tree, if there are any."""
    if not held:
        return ""
    return (
        f"a layer that was replaced is also held by {listed(held, _NAMED)}, where it stays in use: "
        "put the new layer there yourself"
    )
