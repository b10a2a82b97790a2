"""The report of a verification, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.text import Text

from frozenbn_cli.reports.claims_text import claims_table, evidence, verdict_line
from frozenbn_cli.reports.console import printable, symbol
from frozenbn_cli.reports.pieces import by_reason_lines, separated, size_text, took_text
from frozenbn_cli.wording import counted

if TYPE_CHECKING:
    from frozenbn_cli.verification.files import VerificationResult

__all__ = ["verification_report"]


def verification_report(result: VerificationResult, console: Console) -> RenderableType:
    """Return the report of a verification.

    Args:
        result: What was found.
        console: Where it will be printed, for its encoding.
    """
    live = by_reason_lines("live", result.live)
    return separated(
        [
            [_header(result, console)],
            [claims_table(result.claims, console)],
            evidence(result.claims, console),
            live,
            [verdict_line(result.claims)],
        ]
    )


def _header(result: VerificationResult, console: Console) -> Text:
    dot = symbol(console, "·")
    header = Text()
    for label, path, kind, size in (
        ("original ", result.original_path, result.original_kind, result.original_bytes),
        ("converted", result.converted_path, result.converted_kind, result.converted_bytes),
    ):
        header.append(f"{label}  ")
        header.append(printable(path), "bold")
        key = f", key {result.key}" if result.key and label.startswith("original") else ""
        header.append(f" {dot} {printable(kind + key)} {dot} {size_text(size)}\n")
    frozen = counted(len(result.frozen), "layer")
    exactness = f"compared {result.tolerance}"
    header.append(f"{frozen} frozen {dot} {exactness} {dot} {took_text(result.seconds)}")
    return header
