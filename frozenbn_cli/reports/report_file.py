"""Writes a report into a file, in the format of its suffix; complete, or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from frozenbn_cli.containers.atomic_output import AtomicOutput
from frozenbn_cli.errors import UsageError
from frozenbn_cli.importing import import_quietly
from frozenbn_cli.reports.console import printable
from frozenbn_cli.reports.description import Page
from frozenbn_cli.reports.documents import to_json

__all__ = ["SUFFIXES", "ReportFile"]

SUFFIXES = (".html", ".json", ".md")
"""The formats that a report can have."""


class ReportFile:
    """A report that was asked for.

    Args:
        path: Where it belongs; the suffix says in which format.
        replace: Whether a file that is there already may be replaced.

    Raises:
        UsageError: There is no such format.
    """

    def __init__(self, path: Path, *, replace: bool = False) -> None:
        self.path = path
        self.suffix = path.suffix.lower()
        self._output = AtomicOutput(path, replace=replace)
        if self.suffix not in SUFFIXES:
            raise UsageError(
                "a report in an unknown format",
                where=(str(path),),
                expected="a name that ends in .html, .json or .md",
                found=repr(path.suffix) if path.suffix else "no suffix",
            )

    def check(self, others: Iterable[Path | None] = ()) -> None:
        """Raise if the report could not be written, before any work is done.

        Args:
            others: The files that the command reads and writes.

        Raises:
            UsageError: The report exists and may not be replaced, or is one of the others.
            OutputError: Its folder does not exist, or it is one.
        """
        for other in others:
            if other is not None and _is_same(self.path, other):
                raise UsageError(
                    "is named as the report, and also as input or output",
                    where=(str(self.path),),
                    advice="Give the report a name of its own.",
                )
        self._output.check_target()

    def write(self, page: Page, document: dict[str, Any]) -> None:
        """Write the report.

        Args:
            page: What it says to people.
            document: What it says to programs, the same as ``--json``.

        Raises:
            UsageError: It has come into being meanwhile, and may not be replaced.
            OutputError: It cannot be written.
        """
        text = to_json(document) if self.suffix == ".json" else _render(self.suffix, page)
        with self._output as output:
            with output.writing() as file:
                # What is no Unicode came out of a file's names, and is no reason to fail.
                file.write(text.encode("utf-8", "backslashreplace") + b"\n")
            output.commit()

    @property
    def announcement(self) -> str:
        """Where the report is, and how to have charts in it if they are left out."""
        words = f"report: {printable(self.path)}"
        if self.suffix == ".html" and not import_quietly("frozenbn_cli.reports.html").has_charts():
            words += " (without charts, which need: pip install 'frozenbn-cli[report]')"
        return words


def _render(suffix: str, page: Page) -> str:
    name = {".html": "html", ".md": "markdown"}[suffix]
    text: str = import_quietly(f"frozenbn_cli.reports.{name}").render(page)
    return text


def _is_same(report: Path, other: Path) -> bool:
    """Return whether a report is another file, or one in the folder of a sharded checkpoint."""
    with suppress(OSError):
        return report.samefile(other) or (other.is_dir() and report.parent.samefile(other))
    return report.resolve() == other.resolve()
