"""Why a layer is left as it is: what it is stands against freezing it, or that is not known."""

from __future__ import annotations

from collections.abc import Collection

from frozenbn_cli.batch_norms.batch_norm import BatchNorm
from frozenbn_cli.selection import kinds_of

__all__ = ["reason_left"]

_FREEZABLE = {
    "torch.nn.modules.batchnorm.BatchNorm1d",
    "torch.nn.modules.batchnorm.BatchNorm2d",
    "torch.nn.modules.batchnorm.BatchNorm3d",
    "torch.nn.modules.batchnorm.SyncBatchNorm",
    "timm.layers.norm_act.BatchNormAct2d",
    "timm.layers.norm_act.SyncBatchNormAct",
    "timm.models.layers.norm_act.BatchNormAct2d",
}


def reason_left(layer: BatchNorm, meant: Collection[int]) -> str | None:
    """Return why a layer is left, whatever its numbers are; None if it may be frozen.

    Args:
        layer: The layer.
        meant: The spatial dimensions of the layers to freeze.
    """
    if layer.frozen_already:
        return "frozen already"
    if layer.oddity:
        return layer.oddity
    if layer.facts.may_be_frozen:
        return (
            "live or frozen already: version 1 without a count is what PyTorch 0.4.0 wrote for "
            "live layers and others for frozen ones; --model, --live or --frozen decides"
        )
    if layer.is_instance_norm:
        return f"{layer.type_name}, no BatchNorm"
    if layer.facts.live:
        return layer.facts.live
    if not layer.has_statistics:
        return "no running statistics (track_running_stats=False)"
    if of_other_dims := _reason_of_dims(layer, meant):
        return of_other_dims
    if layer.facts.obstacle:
        return layer.facts.obstacle
    is_known = layer.facts.code_is_known or layer.type_name in _FREEZABLE
    if layer.type_name and not is_known:
        return f"{layer.type_name}, whose forward may do something else"
    known = layer.recognised if not layer.type_name else None
    if known and len(known.not_batch_norm) == len(known.kinds):
        return f"{known.not_batch_norm[0]}, no BatchNorm"
    return None


def _reason_of_dims(layer: BatchNorm, meant: Collection[int]) -> str | None:
    """Return the reason of a layer that has other dimensions than those which are meant.

    One whose dimensions are unknown is taken for a BatchNorm2d, unless the user says more.
    """
    if layer.takes_any_dims or (layer.spatial_dims or 2) in meant:
        return None
    if layer.spatial_dims is None:
        return f"nothing proves that it is a {kinds_of(meant)}"
    inferred = f", inferred from {layer.dims_source}" if layer.dims_source else ""
    return f"BatchNorm{layer.spatial_dims}d{inferred}"
