"""What was typed, and when: what reports tell of how they came about."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from frozenbn_cli.errors import UsageError

if TYPE_CHECKING:
    from frozenbn_cli.reports.provenance import Provenance

__all__ = ["Invocation", "current_date"]

_EPOCH = "SOURCE_DATE_EPOCH"


@dataclass(frozen=True, slots=True)
class Invocation:
    """One run of the command line.

    Attributes:
        arguments: What was typed after the name of the program.
        date: When it began.
    """

    arguments: tuple[str, ...]
    date: datetime

    def __call__(self) -> Provenance:
        """Return it with the versions that are installed here."""
        from frozenbn_cli.reports.provenance import Provenance

        return Provenance.here(self.arguments, self.date)


def current_date() -> datetime:
    """Return the time, or that which the environment wants builds to have.

    See https://reproducible-builds.org/specs/source-date-epoch/.

    Raises:
        UsageError: The environment has none that could be one.
    """
    wanted = os.environ.get(_EPOCH)
    if not wanted:
        return datetime.now(timezone.utc)
    try:
        return datetime.fromtimestamp(int(wanted), timezone.utc)
    except (ValueError, OverflowError, OSError):
        raise UsageError(
            f"{_EPOCH} in the environment", expected="seconds since 1970", found=repr(wanted)
        ) from None
