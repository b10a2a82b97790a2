"""What a verification found out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Claim", "ClaimName"]

ClaimName = Literal["contents", "layers", "model"]


@dataclass(frozen=True, slots=True)
class Claim:
    """Something that has to hold of the written file.

    Attributes:
        name: ``contents``: every entry that was not to change is bit-identical. ``layers``: every
            frozen layer computes what its BatchNorm2d does in eval. ``model``: the whole does.
        status: ``equal``, ``different`` or ``not verified``.
        detail: What was compared, where the first difference is, or why nothing was compared.
        checked: How many entries or layers were compared.
    """

    name: ClaimName
    status: Literal["equal", "different", "not verified"]
    detail: str
    checked: int = 0
