"""The frozen BatchNorm layers that there are, by the whole names of their classes."""

from __future__ import annotations

import re

__all__ = ["may_be_frozen_class", "names_frozen_class"]

_ELSEWHERE = {
    "torchvision.ops.misc.FrozenBatchNorm2d",
    "timm.layers.norm_act.FrozenBatchNormAct2d",
    "timm.models.layers.norm_act.FrozenBatchNormAct2d",
    "detectron2.layers.batch_norm.FrozenBatchNorm2d",
}
_OURS = {f"frozenbn_cli.nn.FrozenBatchNorm{kind}" for kind in ("1d", "2d", "3d", "Nd", "Act2d")}
# A frozen layer of an archive keeps the name that its class had, behind ours.
_REWRITTEN = re.compile(r"frozenbn_cli\.nn\.Frozen\w+")


def names_frozen_class(type_name: str) -> bool:
    """Return whether a class, with its module, is a frozen BatchNorm."""
    return type_name in _ELSEWHERE or type_name in _OURS


def may_be_frozen_class(type_name: str) -> bool:
    """Return whether a class of an archive is called as frozen ones are; its code decides."""
    return names_frozen_class(type_name) or _REWRITTEN.fullmatch(type_name) is not None
