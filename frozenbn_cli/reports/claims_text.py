"""The claims of a verification, their evidence and what they amount to, for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from frozenbn_cli.reports.console import printable, symbol
from frozenbn_cli.reports.evidence import remedy
from frozenbn_cli.reports.pieces import named
from frozenbn_cli.verification.claims import Claim, Difference, Measure, verdict

__all__ = ["claims_table", "evidence", "verdict_line"]

_LOOKS = {
    "equal": ("✓", "green"),
    "different": ("✗", "bold red"),
    "not verified": ("–", "yellow"),
}
_VERDICTS = {"passed": "bold green", "failed": "bold red", "not verified": "bold yellow"}


def claims_table(claims: Iterable[Claim], console: Console) -> Table:
    """Return a line for each claim: its name, its status, and what was compared."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for claim in claims:
        mark, style = _LOOKS[claim.status]
        table.add_row(
            Text(claim.name, "bold"),
            Text(f"{symbol(console, mark)} {claim.status}", style),
            Text(printable(claim.detail)),
        )
    return table


def evidence(claims: Iterable[Claim], console: Console) -> list[RenderableType]:
    """Return by how much each claim fails, and which tolerance would let it pass."""
    lines: list[RenderableType] = []
    for claim in claims:
        if claim.status == "different" and claim.differences:
            lines += _evidence(claim, console)
    return lines


def _evidence(claim: Claim, console: Console) -> list[RenderableType]:
    measured = [
        item
        for item in claim.differences
        if item.measure and item.measure.differing and not item.tolerated
    ]
    others = [item for item in claim.differences if item.problem]
    parts: list[RenderableType] = [Text(claim.name, "bold red")]
    if others:
        parts.append(_indented(_problems(others)))
    if measured:
        parts.append(_indented(_measures(measured, console)))
    if claim.begins:
        parts.append(_indented(Text(printable(claim.begins))))
    parts.append(_indented(Text(remedy(claim))))
    return parts


def _indented(content: RenderableType) -> Padding:
    return Padding(content, (0, 0, 0, 2))


def _problems(differences: Sequence[Difference]) -> Text:
    by_problem: dict[str, list[str]] = {}
    for item in differences:
        by_problem.setdefault(item.problem, []).append(item.place)
    lines = []
    for problem, names in by_problem.items():
        if len(names) == 1:
            lines.append(f"{printable(names[0])}: {printable(problem)}")
        else:
            lines.append(f"{printable(problem)}: {named(names)}")
    return Text("\n".join(lines))


def _measures(differences: Sequence[Difference], console: Console) -> Table:
    """Return the numbers of the first difference, and of the largest if that is another."""
    first = differences[0]
    largest = max(differences, key=lambda item: item.measure.absolute if item.measure else 0)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for title, item in (("first", first), ("largest", largest)):
        if item.measure is None or (title == "largest" and item is first):
            continue
        table.add_row(Text(title, "bold"), Text(printable(item.place), "bold"))
        for name, text in _facts(item.measure, console):
            table.add_row(Text(name), Text(text))
    return table


def _facts(measure: Measure, console: Console) -> list[tuple[str, str]]:
    arrow = symbol(console, "→")
    ulps = f", {measure.ulps:,} ULP" if measure.ulps is not None else ""
    return [
        ("differing", f"{measure.differing:,} of {measure.elements:,} elements"),
        (
            "absolute",
            f"{measure.absolute:.6g} at {list(measure.index)} ({measure.before:.9g} {arrow} "
            f"{measure.after:.9g}){ulps}",
        ),
        ("relative", f"{measure.relative:.6g} at {list(measure.relative_index)}"),
        ("mean", f"{measure.mean:.6g}, 99th percentile {measure.percentile_99:.6g}"),
    ]


def verdict_line(claims: Sequence[Claim]) -> Text:
    """Return what the claims amount to: PASSED, FAILED, or PASSED but for what is not verified."""
    found = verdict(claims)
    line = Text(found.upper(), _VERDICTS[found])
    by_status = {
        status: [claim.name for claim in claims if claim.status == status] for status in _LOOKS
    }
    if found == "passed":
        line.append(f": {_joined(by_status['equal'])} equal")
    if found == "failed":
        line.append(f": {_joined(by_status['different'])} different")
    if found != "not verified" and by_status["not verified"]:
        line.append(f"; {_joined(by_status['not verified'])} not verified", "yellow")
    return line


def _joined(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
