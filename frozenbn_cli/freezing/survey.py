"""Which BatchNorm layers a live model has, and why some of them cannot be frozen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import batchnorm
from torch.nn.utils import parametrize

from frozenbn_cli import torch_jit
from frozenbn_cli.freezing.frozen_elsewhere import is_frozen_layer
from frozenbn_cli.nn import (
    FrozenBatchNorm1d,
    FrozenBatchNorm2d,
    FrozenBatchNorm3d,
    FrozenBatchNormAct2d,
    FrozenBatchNormNd,
)
from frozenbn_cli.selection import Selection, checked_dims, kinds_of

__all__ = [
    "BatchNormDecision",
    "decisions_on",
    "dims_of_layer",
    "frozen_class_of",
    "survey_batch_norms",
]


@dataclass(frozen=True, slots=True)
class BatchNormDecision:
    """What `convert_bn_to_frozen` does with one BatchNorm layer.

    Attributes:
        names: Every qualified name of the layer in the model; the model itself is ``""``.
        type_name: The layer's class, with its module.
        reason: Why the layer is left alone; None if it is frozen.
        chosen: Whether the caller's own selection takes the layer in.
    """

    names: tuple[str, ...]
    type_name: str
    reason: str | None
    chosen: bool = True

    @property
    def frozen(self) -> bool:
        """Whether the layer is frozen."""
        return self.reason is None


def survey_batch_norms(
    model: nn.Module,
    *,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    dims: Iterable[int] | None = None,
) -> tuple[BatchNormDecision, ...]:
    """Return what `convert_bn_to_frozen` would do with each BatchNorm layer; changes nothing.

    Args:
        model: Any module.
        include: Names of submodules, or glob patterns of layer names; only these are frozen.
        exclude: Names of submodules, or glob patterns of layer names; these are not frozen.
        dims: The spatial dimensions of the layers to freeze, of 1, 2 and 3; (2,) if not given.

    Returns:
        One decision for each layer, in the model's order. A layer that is registered under
        several names is one layer.

    Raises:
        UsageError: A name or pattern matches no BatchNorm layer, or a dimension is none of these.
    """
    return tuple(decisions_on(model, Selection.of(include, exclude), dims).values())


def decisions_on(
    model: nn.Module, selection: Selection, dims: Iterable[int] | None = None
) -> dict[nn.Module, BatchNormDecision]:
    """Return the decision on each BatchNorm layer, as `survey_batch_norms` does.

    Raises:
        UsageError: As `survey_batch_norms`.
    """
    wanted = checked_dims(dims)
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if _is_batch_norm(module):
            names.setdefault(module, []).append(name)
    selection.check(name for layer_names in names.values() for name in layer_names)
    decided = {}
    for layer, layer_names in names.items():
        left_out = selection.reason_left_out(layer_names)
        of_other_dims = _reason_of_dims(layer, wanted)
        decided[layer] = BatchNormDecision(
            names=tuple(layer_names),
            type_name=_type_name(layer),
            reason=left_out or _reason_left_alone(layer) or of_other_dims,
            chosen=left_out is None and (dims is None or of_other_dims is None),
        )
    return decided


def dims_of_layer(layer: nn.Module) -> int | None:
    """Return the spatial dimensions that a BatchNorm or frozen layer is made for.

    None for what takes any, as SyncBatchNorm does, and for what is neither.
    """
    if isinstance(layer, FrozenBatchNormNd):
        return None
    kinds = ((nn.BatchNorm1d, FrozenBatchNorm1d), (nn.BatchNorm3d, FrozenBatchNorm3d))
    for dims, classes in zip((1, 3), kinds, strict=True):
        if isinstance(layer, classes):
            return dims
    return 2 if isinstance(layer, nn.BatchNorm2d) or is_frozen_layer(layer) else None


def frozen_class_of(layer: nn.Module) -> type[FrozenBatchNorm2d] | type[nn.Module]:
    """Return the class that stands in for a BatchNorm layer: it takes all that the layer takes."""
    if _is_timm_batch_norm_act(layer):
        return FrozenBatchNormAct2d
    for live, frozen in _STANDS_IN.items():
        if isinstance(layer, live) and _checks_dims_as(layer, live):
            return frozen
    return FrozenBatchNormNd


_STANDS_IN: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm1d: FrozenBatchNorm1d,
    nn.BatchNorm2d: FrozenBatchNorm2d,
    nn.BatchNorm3d: FrozenBatchNorm3d,
}
_FORWARDS = (batchnorm._BatchNorm.forward, nn.SyncBatchNorm.forward)
# What a subclass must not define anew: a frozen layer would do without it.
_CALLING = ("__call__", "_call_impl", "__getattr__", "__getattribute__")
_STORING = (
    "state_dict",
    "load_state_dict",
    "_save_to_state_dict",
    "_load_from_state_dict",
    "get_extra_state",
)


def _checks_dims_as(layer: nn.Module, live: Any) -> bool:
    return getattr(type(layer), "_check_input_dim", None) is live._check_input_dim


def _is_batch_norm(module: nn.Module) -> bool:
    return (
        isinstance(module, batchnorm._BatchNorm)
        or _is_scripted_batch_norm(module)
        or _is_like_batch_norm(module)
    )


def _is_like_batch_norm(module: nn.Module) -> bool:
    """Return whether a module of some other class keeps running statistics of its own."""
    if torch_jit.is_script_module(module) or is_frozen_layer(module):
        return False
    if isinstance(module, nn.modules.instancenorm._InstanceNorm):
        return False
    if "Frozen" in type(module).__name__ or type(module).forward is nn.Module.forward:
        return False  # The latter only holds tensors, as in a traced graph.
    statistics = (module._buffers.get("running_mean"), module._buffers.get("running_var"))
    return all(isinstance(tensor, Tensor) and tensor.dim() == 1 for tensor in statistics)


def _type_name(layer: nn.Module) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def _is_scripted_batch_norm(module: nn.Module) -> bool:
    return torch_jit.is_script_module(module) and "BatchNorm" in getattr(
        module, "original_name", ""
    )


def _is_timm_batch_norm_act(layer: nn.Module) -> bool:
    for kind in type(layer).__mro__:
        if kind.__module__.startswith("timm.") and kind.__name__ in (
            "BatchNormAct2d",
            "SyncBatchNormAct",
        ):
            return type(layer).forward is kind.__dict__.get("forward")
    return False


def _reason_of_dims(layer: nn.Module, wanted: frozenset[int]) -> str | None:
    """Return the reason of a layer that is of other dimensions; what takes any is of each."""
    dims = dims_of_layer(layer)
    if dims is None or dims in wanted:
        return None
    meant = kinds_of(wanted)
    others = ", ".join(str(each) for each in sorted({*wanted, dims}))
    return f"{type(layer).__name__}, not {meant} (dims=({others}) takes it in)"


def _reason_left_alone(layer: Any) -> str | None:
    """Return why ``layer`` cannot be frozen without changing what it does, or None."""
    if torch_jit.is_script_module(layer):
        return "compiled TorchScript: convert its file with `frozenbn convert`"
    if not isinstance(layer, batchnorm._BatchNorm):
        return f"{_type_name(layer)}, no BatchNorm"
    if isinstance(layer, batchnorm._LazyNormBase):
        return "lazy layer that never ran: it has no statistics yet"
    if parametrize.is_parametrized(layer):
        return "parametrised: its tensors are computed anew in each forward"
    return _reason_of_code(layer) or _reason_of_tensors(layer)


def _reason_of_code(layer: Any) -> str | None:
    kind = type(layer)
    if "forward" in vars(layer):
        return "its forward was replaced on the instance"
    if kind.forward not in _FORWARDS and not _is_timm_batch_norm_act(layer):
        return f"subclass {_type_name(layer)}, whose forward may do something else"
    for name in (*_CALLING, *_STORING):
        if getattr(kind, name, None) is not getattr(nn.BatchNorm2d, name, None):
            return f"subclass {_type_name(layer)}, which has a {name} of its own"
    return None


def _reason_of_tensors(layer: Any) -> str | None:
    if layer.running_mean is None or layer.running_var is None:
        return "no running statistics (track_running_stats=False)"
    known = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    known |= {"drop", "act"} if _is_timm_batch_norm_act(layer) else set()
    own = [*layer._parameters, *layer._buffers, *layer._modules]
    if extra := [name for name in own if name not in known]:
        return f"it carries entries of its own that would be lost: {', '.join(extra)}"
    computed = {"weight", "bias"} - set(layer._parameters)
    computed |= {"running_mean", "running_var"} - set(layer._buffers)
    if computed:
        return f"computed instead of stored: {', '.join(sorted(computed))}"
    return None
