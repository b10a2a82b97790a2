"""How a result came about: what was typed, when, and with which versions."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from frozenbn_cli.reports.console import printable
from frozenbn_cli.version import __version__, torch_version
from frozenbn_cli.wording import date_text

__all__ = ["Provenance"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """How a result came about, so that it can be had again.

    Attributes:
        command_line: What was typed, word by word.
        date: When the command began.
        frozenbn: Its version.
        torch: The version of PyTorch that is installed; empty if none is.
        python: The version of Python.
    """

    command_line: tuple[str, ...]
    date: datetime
    frozenbn: str
    torch: str
    python: str

    @classmethod
    def here(cls, arguments: Sequence[str], date: datetime) -> Provenance:
        """Return that of a run of the command line with ``arguments``, on this machine."""
        return cls(
            command_line=("frozenbn", *arguments),
            date=date,
            frozenbn=__version__,
            torch=torch_version(),
            python=platform.python_version(),
        )

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """Labels and values, for people."""
        return (
            ("command", printable(shlex.join(self.command_line))),
            ("date", self.date.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")),
            ("frozenbn", self.frozenbn),
            ("PyTorch", self.torch or "not installed"),
            ("Python", self.python),
        )

    def document(self) -> dict[str, Any]:
        """Return the same for programs."""
        return {
            "command_line": list(self.command_line),
            "date": date_text(self.date),
            "frozenbn": self.frozenbn,
            "torch": self.torch or None,
            "python": self.python,
        }
