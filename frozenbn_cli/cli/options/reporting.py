"""The options that say what is shown, and in which form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from frozenbn_cli.cli.invocation import Invocation
from frozenbn_cli.cli.sink import Sink

__all__ = ["AllLayers", "Check", "ForceReport", "ReportArguments"]

_REPORT = "Report"

AllLayers = Annotated[
    bool, typer.Option("--all", help="Show every layer, or file.", rich_help_panel=_REPORT)
]
Check = Annotated[
    bool,
    typer.Option(
        "--check",
        help="Exit with 1 if statistics are broken or were never formed, or if loading the file "
        "without care would call what no model needs.",
        rich_help_panel=_REPORT,
    ),
]
ForceReport = Annotated[
    bool,
    typer.Option("--force", help="Replace a report that exists.", rich_help_panel=_REPORT),
]


@dataclass(frozen=True, slots=True)
class ReportArguments:
    """What is shown, and in which form."""

    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE",
            help="Write a report, also where the answer is no: one .html file with charts and all "
            "layers, .md for GitHub, or .json, which is what --json prints.",
            show_default=False,
            rich_help_panel=_REPORT,
        ),
    ] = None
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document.", rich_help_panel=_REPORT)
    ] = False
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=_REPORT),
    ] = False

    def sink(self, invocation: Invocation, others: Sequence[Path | None], *, force: bool) -> Sink:
        """Return where the words of a command go.

        Args:
            invocation: What was typed, and when.
            others: The files of the command, which a report never replaces.
            force: Whether a report replaces one that exists.
        """
        return Sink(
            invocation,
            as_json=self.as_json,
            quiet=self.quiet,
            report=self.report,
            others=others,
            force=force,
        )
