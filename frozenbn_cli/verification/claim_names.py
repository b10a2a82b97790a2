"""What is claimed of a converted file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from frozenbn_cli.errors import UsageError

__all__ = ["CLAIMS", "ClaimName", "check_required"]

ClaimName = Literal["contents", "layers", "model"]
CLAIMS: tuple[ClaimName, ...] = ("contents", "layers", "model")


def check_required(required: Iterable[str]) -> None:
    """Refuse what is no claim.

    Raises:
        UsageError: There is no claim of such a name.
    """
    for name in required:
        if name not in CLAIMS:
            raise UsageError(f"no claim is called {name!a}", expected=" or ".join(CLAIMS))
