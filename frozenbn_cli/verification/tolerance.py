"""How far values may lie apart that are called equal."""

from __future__ import annotations

import math
from dataclasses import dataclass

from frozenbn_cli.errors import UsageError

__all__ = ["EXACT", "Tolerance"]


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far values may lie apart: |after - before| <= atol + rtol * |before|.

    Attributes:
        atol: Absolute.
        rtol: Relative to the original's value.
    """

    atol: float = 0.0
    rtol: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("atol", self.atol), ("rtol", self.rtol)):
            if not 0 <= value < math.inf:
                raise UsageError(f"{name} {value}", expected="a finite number, 0 or more")

    @property
    def exact(self) -> bool:
        """Whether every bit has to be the same."""
        return not (self.atol or self.rtol)

    def __str__(self) -> str:
        return "to the last bit" if self.exact else f"within atol {self.atol:g}, rtol {self.rtol:g}"


EXACT = Tolerance()
