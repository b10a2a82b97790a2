"""The report of a conversion of many files, for people: while it goes on, and at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from frozenbn_cli.many_files.file_results import FileResult
from frozenbn_cli.reports.console import printable, symbol
from frozenbn_cli.reports.pieces import lean_table, separated
from frozenbn_cli.reports.words import size_text
from frozenbn_cli.verification.claims import verdict
from frozenbn_cli.wording import counted

__all__ = ["batch_report", "file_line", "file_table", "state_cell"]

_FOLD_ABOVE = 12
_EXCEPTIONS_SHOWN = 20
_EXAMPLES_SHOWN = 3
_LOOKS = {
    "waiting": (" ", "dim"),
    "running": (" ", "bold"),
    "done": ("✓", "green"),
    "planned": ("✓", "green"),
    "skipped": ("–", "cyan"),
    "failed": ("✗", "bold red"),
}


def batch_report(
    results: Sequence[FileResult],
    console: Console,
    *,
    total: int,
    seconds: float,
    table: bool = True,
    all_files: bool = False,
) -> RenderableType:
    """Return what became of many files.

    Args:
        results: Of the files that are finished.
        console: Where it will be printed.
        total: How many files there were; more than results where it was interrupted.
        seconds: The time that all took.
        table: Show a line for each file; not wanted where it was printed already.
        all_files: Show every file; a long table is folded otherwise.
    """
    blocks: list[list[RenderableType]] = []
    if table and results:
        blocks.append(_folded(results, console, all_files))
    blocks.append([_summary(results, console, total, seconds)])
    return separated(blocks)


def file_line(result: FileResult, console: Console) -> Text:
    """Return one line on a file that is finished."""
    label = _label(result)
    line = Text(f"{label:<8}", _LOOKS[label][1])
    line.append(printable(result.path))
    if result.output:
        line.append(f" {symbol(console, '→')} {printable(result.output)}")
    facts = [_frozen(result), _findings(result), _time(result)]
    if result.error:
        facts.insert(0, f"exit code {result.exit_code}")
    dot = symbol(console, "·")
    line.append("".join(f" {dot} {fact}" for fact in facts if fact))
    return line


def file_table(console: Console, *, header: bool = True) -> Table:
    """Return an empty table for files: name, state and time."""
    table = lean_table(console, header=header)
    table.add_column("File", overflow="fold", min_width=12)
    table.add_column("State", no_wrap=True)
    return table


def state_cell(result: FileResult, console: Console) -> Text:
    """Return the state of a file, with its mark."""
    label = _label(result)
    mark, style = _LOOKS[label]
    return Text(f"{symbol(console, mark)} {label}", style)


def _label(result: FileResult) -> str:
    planned = result.summary and result.summary.outcome == "planned"
    return "planned" if result.state == "done" and planned else result.state


def _folded(
    results: Sequence[FileResult], console: Console, all_files: bool
) -> list[RenderableType]:
    shown = list(results)
    if len(results) > _FOLD_ABOVE and not all_files:
        exceptions = [result for result in results if result.error]
        exceptions += [result for result in results if not result.error and _has_warnings(result)]
        shown = exceptions[:_EXCEPTIONS_SHOWN] or shown[:_EXAMPLES_SHOWN]
    kept = set(map(id, shown))
    rest = [result for result in results if id(result) not in kept]
    table = file_table(console)
    table.add_column("Frozen", no_wrap=True)
    table.add_column("Findings", no_wrap=True)
    table.add_column("Time", no_wrap=True, justify="right")
    for result in results:
        if id(result) in kept:
            table.add_row(
                Text(printable(result.path)),
                state_cell(result, console),
                _frozen(result) or symbol(console, "–"),
                _findings(result) or symbol(console, "–"),
                _time(result),
            )
    if not rest:
        return [table]
    facts = [counted(len(rest), "more file"), _counts(rest), "--all shows each"]
    return [table, Text("  " + f" {symbol(console, '·')} ".join(facts), "dim")]


def _has_warnings(result: FileResult) -> bool:
    return bool(result.summary and result.summary.findings.keys() & {"error", "warning"})


def _frozen(result: FileResult) -> str:
    if result.summary is None:
        return ""
    if not result.summary.layers:
        return "no BatchNorm"
    return f"{result.summary.frozen:,} of {counted(result.summary.layers, 'layer')}"


def _findings(result: FileResult) -> str:
    """Return in how many layers there are errors and warnings; notes are for `inspect`."""
    found = result.summary.findings if result.summary else {}
    return ", ".join(
        counted(found[severity], severity) for severity in ("error", "warning") if severity in found
    )


def _time(result: FileResult) -> str:
    return f"{result.seconds:.1f} s"


def _counts(results: Iterable[FileResult]) -> str:
    counts = Counter(map(_label, results))
    return ", ".join(f"{counts[label]:,} {label}" for label in _LOOKS if label in counts)


def _summary(results: Sequence[FileResult], console: Console, total: int, seconds: float) -> Text:
    failed = any(result.error for result in results)
    cut = len(results) < total
    line = Text()
    if cut:
        line.append("interrupted", "bold red")
        line.append(f" after {len(results):,} of ")
    line.append(counted(total, "file"), "bold")
    if results:
        line.append(": ")
        line.append(_counts(results), "bold red" if failed else "bold green")
    facts = [*_verified(results), *_sizes(results, console), f"{seconds:.1f} s"]
    dot = symbol(console, "·")
    line.append("".join(f" {dot} {fact}" for fact in facts))
    if cut:
        line.append(
            "\nWhat is finished stays; the same command with --skip-existing does the rest."
        )
    return line


def _verified(results: Iterable[FileResult]) -> list[str]:
    written = [
        result.summary for result in results if result.summary and result.summary.output_bytes
    ]
    if not written:
        return []
    passed = sum(verdict(summary.claims) == "passed" for summary in written)
    return [f"{passed:,} of {len(written):,} verified" if passed else "not verified"]


def _sizes(results: Iterable[FileResult], console: Console) -> list[str]:
    written = [
        (result.summary.input_bytes, result.summary.output_bytes, result.summary.output_format)
        for result in results
        if result.summary and result.summary.output_bytes
    ]
    if not written:
        return []
    befores, afters, formats = zip(*written, strict=True)
    arrow, named = symbol(console, "→"), " and ".join(dict.fromkeys(formats))
    return [f"{size_text(sum(befores))} {arrow} {size_text(sum(afters))}, {named}"]
