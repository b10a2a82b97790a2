"""Freezing and thawing the BatchNorm layers of live modules."""

from __future__ import annotations

import importlib
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from frozenbn_cli.errors import DependencyError, UsageError
from frozenbn_cli.nn import FrozenBatchNorm2d, FrozenBatchNormAct2d
from frozenbn_cli.selection import Selection
from frozenbn_cli.torch_jit import is_script_module

__all__ = [
    "BatchNormDecision",
    "convert_bn_to_frozen",
    "convert_frozen_to_bn",
    "is_frozen_layer",
    "survey_batch_norms",
]

_Layer = TypeVar("_Layer", bound=nn.Module)


@dataclass(frozen=True, slots=True)
class BatchNormDecision:
    """What `convert_bn_to_frozen` does with one BatchNorm layer.

    Attributes:
        names: Every qualified name of the layer in the model; the model itself is ``""``.
        type_name: The layer's class, with its module.
        reason: Why the layer is left alone; None if it is frozen.
    """

    names: tuple[str, ...]
    type_name: str
    reason: str | None

    @property
    def frozen(self) -> bool:
        """Whether the layer is frozen."""
        return self.reason is None


def survey_batch_norms(
    model: nn.Module, *, include: str | Iterable[str] = (), exclude: str | Iterable[str] = ()
) -> tuple[BatchNormDecision, ...]:
    """Return what `convert_bn_to_frozen` would do with each BatchNorm layer; changes nothing.

    Args:
        model: Any module.
        include: Glob patterns of layer names; only these layers are frozen.
        exclude: Glob patterns of layer names; these layers are not frozen.

    Returns:
        One decision for each layer, in the model's order. A layer that is registered under
        several names is one layer.

    Raises:
        UsageError: A pattern matches no BatchNorm layer.
    """
    return tuple(_decisions(model, Selection.of(include, exclude)).values())


def convert_bn_to_frozen(
    model: nn.Module, *, include: str | Iterable[str] = (), exclude: str | Iterable[str] = ()
) -> nn.Module:
    """Replace the BatchNorm2d layers of ``model`` by FrozenBatchNorm2d, in place.

    BatchNorm2d, SyncBatchNorm and timm's BatchNormAct2d are replaced. Layers that cannot be
    frozen faithfully (no running statistics, never-run lazy layers, parametrised ones, other
    subclasses, other dimensions) are left alone: `survey_batch_norms` lists them with the reason.

    A layer under several names stays one layer under all of them, tensors tied between layers
    stay tied, hooks and training flags are kept, and no storage is shared with the old layers.
    The new layers hold buffers where there were parameters: make the optimiser afterwards.

    Args:
        model: Any module, not yet wrapped in DistributedDataParallel.
        include: Glob patterns of layer names; only these layers are frozen.
        exclude: Glob patterns of layer names; these layers are not frozen.

    Returns:
        ``model``, or a new layer if ``model`` itself is a BatchNorm2d.

    Raises:
        UsageError: A pattern matches no BatchNorm layer, or the model is wrapped in
            DistributedDataParallel or FullyShardedDataParallel, which hold on to the parameters
            that would be gone.
    """
    for module in model.modules():
        if type(module).__name__ in ("DistributedDataParallel", "FullyShardedDataParallel"):
            raise UsageError(
                f"the model is wrapped in {type(module).__name__}, which keeps its parameters",
                advice="Convert first, then wrap.",
            )
    decisions = _decisions(model, Selection.of(include, exclude))
    copies = _Copies()
    return _replaced(
        model,
        {layer: _frozen(layer, copies) for layer, decision in decisions.items() if decision.frozen},
    )


def convert_frozen_to_bn(model: nn.Module, *, momentum: float | None = 0.1) -> nn.Module:
    """Replace the FrozenBatchNorm2d layers of ``model`` by BatchNorm2d, in place.

    The frozen layers of this package are replaced, and those of torchvision, timm and detectron2.
    Weight and bias become parameters that need a gradient, the count of batches starts at 0.
    With ``momentum=None`` the first batch in training therefore replaces the statistics.

    Args:
        model: Any module.
        momentum: Of the new layers; a frozen layer has none.

    Returns:
        ``model``, or a new layer if ``model`` itself is a FrozenBatchNorm2d.

    Raises:
        DependencyError: A layer with an activation is found, and timm is not installed.
    """
    copies = _Copies()
    return _replaced(
        model,
        {
            layer: _thawed(layer, copies, momentum)
            for layer in model.modules()
            if is_frozen_layer(layer)
        },
    )


class _Copies:
    """Copies of tensors, one for each original: what was tied stays tied."""

    def __init__(self) -> None:
        # An original is kept beside its copy, so that no other tensor can take over its id.
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self._parameters: dict[int, tuple[Tensor, nn.Parameter]] = {}

    def of(self, tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        if id(tensor) not in self._buffers:
            self._buffers[id(tensor)] = (tensor, tensor.detach().clone())
        return self._buffers[id(tensor)][1]

    def parameter_of(self, tensor: Tensor | None) -> nn.Parameter | None:
        if tensor is None:
            return None
        if id(tensor) not in self._parameters:
            self._parameters[id(tensor)] = (tensor, nn.Parameter(tensor.detach().clone()))
        return self._parameters[id(tensor)][1]


def _decisions(model: nn.Module, selection: Selection) -> dict[nn.Module, BatchNormDecision]:
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) or _is_scripted_batch_norm(module):
            names.setdefault(module, []).append(name)
    selection.check(name for layer_names in names.values() for name in layer_names)
    return {
        layer: BatchNormDecision(
            names=tuple(layer_names),
            type_name=_type_name(layer),
            reason=_reason_left_alone(layer) or selection.reason_left_out(layer_names),
        )
        for layer, layer_names in names.items()
    }


def _type_name(layer: nn.Module) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def _is_scripted_batch_norm(module: nn.Module) -> bool:
    return is_script_module(module) and "BatchNorm" in getattr(module, "original_name", "")


def _is_timm_batch_norm_act(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith("timm.") and type(layer).__name__ in (
        "BatchNormAct2d",
        "SyncBatchNormAct",
    )


def _reason_left_alone(layer: Any) -> str | None:
    """Return why ``layer`` cannot be frozen without changing what it does, or None."""
    if is_script_module(layer):
        return "compiled TorchScript: convert its file with `frozenbn convert`"
    if isinstance(layer, nn.modules.batchnorm._LazyNormBase):
        return "lazy layer that never ran: it has no statistics yet"
    if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm3d)):
        return f"{type(layer).__name__}, not BatchNorm2d"
    if parametrize.is_parametrized(layer):
        return "parametrised: its tensors are computed anew in each forward"
    if type(layer) not in (nn.BatchNorm2d, nn.SyncBatchNorm) and not _is_timm_batch_norm_act(layer):
        return f"subclass {_type_name(layer)}, whose forward may do something else"
    if "forward" in vars(layer):
        return "its forward was replaced on the instance"
    if layer.running_mean is None or layer.running_var is None:
        return "no running statistics (track_running_stats=False)"
    known = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    known |= {"drop", "act"} if _is_timm_batch_norm_act(layer) else set()
    own = [*layer._parameters, *layer._buffers, *layer._modules]
    if extra := [name for name in own if name not in known]:
        return f"it carries entries of its own that would be lost: {', '.join(extra)}"
    if missing := sorted({"weight", "bias"} - set(layer._parameters)):
        return f"computed instead of stored: {', '.join(missing)}"
    return None


def _replaced(model: nn.Module, replacements: dict[nn.Module, nn.Module]) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child in replacements:
                setattr(parent, name, replacements[child])
    return replacements.get(model, model)


def _frozen(layer: Any, copies: _Copies) -> FrozenBatchNorm2d:
    frozen: FrozenBatchNorm2d
    if _is_timm_batch_norm_act(layer):
        frozen = FrozenBatchNormAct2d(
            layer.num_features,
            layer.eps,
            affine=layer.affine,
            drop=getattr(layer, "drop", None),
            act=getattr(layer, "act", None),
        )
    else:
        frozen = FrozenBatchNorm2d(layer.num_features, layer.eps, affine=layer.affine)
    for name in ("weight", "bias", "running_mean", "running_var"):
        setattr(frozen, name, copies.of(getattr(layer, name)))
    return _continuing(layer, frozen)


# Where the layers of other packages are defined; they are recognised without importing these.
_FROZEN_ELSEWHERE = {
    ("torchvision", "FrozenBatchNorm2d"),
    ("detectron2", "FrozenBatchNorm2d"),
    ("timm", "FrozenBatchNormAct2d"),
}


def is_frozen_layer(layer: nn.Module) -> bool:
    """Return whether a layer is a frozen BatchNorm, of this package or another."""
    package = type(layer).__module__.partition(".")[0]
    return (
        type(layer) in (FrozenBatchNorm2d, FrozenBatchNormAct2d)
        or (package, type(layer).__name__) in _FROZEN_ELSEWHERE
    )


def _thawed(layer: Any, copies: _Copies, momentum: float | None) -> nn.Module:
    batch_norm = _timm_batch_norm_act() if hasattr(layer, "act") else nn.BatchNorm2d
    thawed = batch_norm(
        layer.running_mean.numel(), layer.eps, momentum, affine=layer.weight is not None
    )
    if hasattr(layer, "act"):
        thawed.drop, thawed.act = layer.drop, layer.act
    for name in ("weight", "bias"):
        setattr(thawed, name, copies.parameter_of(getattr(layer, name)))
    for name in ("running_mean", "running_var"):
        setattr(thawed, name, copies.of(getattr(layer, name)))
    thawed.num_batches_tracked = torch.tensor(0, device=layer.running_mean.device)
    return _continuing(layer, thawed)


def _timm_batch_norm_act() -> Callable[..., Any]:
    try:
        layers = importlib.import_module("timm.layers")
    except ImportError as error:
        raise DependencyError(
            "a layer with an activation becomes timm's BatchNormAct2d, and timm is not installed",
            advice="Install it with `pip install timm`.",
        ) from error
    layer: Callable[..., Any] = layers.BatchNormAct2d
    return layer


def _continuing(old: nn.Module, new: _Layer) -> _Layer:
    """Return ``new`` with the training flag and the hooks of ``old``, whose handles still work."""
    new.training = old.training
    kept = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called", "_full_backward_hook")
    for name, value in vars(old).items():
        if name.endswith(kept):
            object.__setattr__(new, name, value)
    hook: Any
    for hook in new._load_state_dict_pre_hooks.values():
        if getattr(hook, "with_module", False):
            # The hook is called with a layer that it knows by a weak reference.
            hook.module = weakref.ref(new)
    return new
