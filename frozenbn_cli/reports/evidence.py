"""The differences that a verification found: rows of a table in a file, lines on a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from frozenbn_cli.reports.console import printable, suited
from frozenbn_cli.reports.pieces import plain_table
from frozenbn_cli.reports.words import named
from frozenbn_cli.verification.claims import Claim, Difference, Measure

__all__ = ["COLUMNS", "DifferenceRow", "difference_rows", "evidence", "tolerance_words"]

COLUMNS = (
    "#", "Where", "What", "Elements", "Largest", "Before → after", "Relative", "ULP", "Mean", "99 %"
)  # fmt: skip
"""The titles of the columns."""


_MANY = 10**6
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class DifferenceRow:
    """One difference.

    Attributes:
        cells: In the order of `COLUMNS`.
        tolerated: Whether it is within the tolerance that was given.
    """

    cells: tuple[str, ...]
    tolerated: bool


def difference_rows(claim: Claim, *, at_most: int) -> tuple[list[DifferenceRow], str]:
    """Return the differences of a claim in their order, and what was left out, in words.

    Of more than ``at_most``, those are shown that are no mere numbers, and the largest.
    """
    numbered = list(enumerate(claim.differences, 1))
    grave = sorted(numbered, key=lambda item: _gravity(item[1]), reverse=True)[:at_most]
    rows = [_row(number, item) for number, item in sorted(grave, key=lambda item: item[0])]
    left_out = ""
    if more := len(numbered) - len(rows):
        left_out = f"Shown are the {len(rows):,} largest; a report in JSON has the other {more:,}."
    return rows, left_out


def _gravity(item: Difference) -> tuple[bool, float]:
    return not item.tolerated, item.measure.absolute if item.measure else math.inf


def _row(number: int, item: Difference) -> DifferenceRow:
    cells = (f"{number:,}", printable(item.place), printable(item.problem or _what(item)))
    numbers = _numbers(item.measure) if item.measure and item.measure.differing else ("",) * 7
    return DifferenceRow((*cells, *numbers), item.tolerated)


def _what(item: Difference) -> str:
    if item.measure is None or not item.measure.differing:
        return "bits that are no value: the sign of 0, or of which NaN"
    return "values, within tolerance" if item.tolerated else "values"


def _numbers(measure: Measure, digits: int = 3) -> tuple[str, ...]:
    """Return a measure in words, in the order of the columns, differences with so many digits."""
    many = digits < _DIGITS and (measure.ulps or 0) >= _MANY
    return (
        f"{measure.differing:,} of {measure.elements:,}",
        f"{measure.absolute:.{digits}g} at {list(measure.index)}",
        f"{measure.before:.9g} → {measure.after:.9g}",
        f"{measure.relative:.{digits}g} at {list(measure.relative_index)}",
        "" if measure.ulps is None else f"{measure.ulps:.1e}" if many else f"{measure.ulps:,}",
        f"{measure.mean:.{digits}g}",
        f"{measure.percentile_99:.{digits}g}",
    )


def tolerance_words(claim: Claim) -> str:
    """Return a sentence on the tolerance that a claim with differences passes, or would."""
    if claim.status != "different":
        return "Within the tolerance that was given."
    words = remedy(claim)
    return f"{words[0].upper()}{words[1:]}."


def remedy(claim: Claim) -> str:
    """Return which tolerance would do; rounded up, so that it really does."""
    if claim.smallest_atol is None:
        return "no tolerance would let it pass"
    line = f"would pass with --atol {_rounded_up(claim.smallest_atol)}"
    if claim.smallest_rtol is not None:
        line += f", or with --rtol {_rounded_up(claim.smallest_rtol)}"
    return line


def _rounded_up(value: float) -> str:
    text = f"{value:.3g}"
    return text if float(text) >= value else f"{value * 1.005:.3g}"


# For a terminal


def evidence(claims: Iterable[Claim], console: Console) -> list[RenderableType]:
    """Return by how much each claim fails, and which tolerance would let it pass."""
    lines: list[RenderableType] = []
    for claim in claims:
        if claim.status == "different" and claim.differences:
            parts = _evidence(claim, console)
            lines += [
                Text(claim.name, "bold red"),
                *(Padding(part, (0, 0, 0, 2)) for part in parts),
            ]
    return lines


def _evidence(claim: Claim, console: Console) -> list[RenderableType]:
    measured = [
        item
        for item in claim.differences
        if item.measure and item.measure.differing and not item.tolerated
    ]
    others = [item for item in claim.differences if item.problem]
    parts: list[RenderableType] = [Text(_problems(others))] if others else []
    if measured:
        parts.append(_measures(measured, console))
    if claim.begins:
        parts.append(Text(printable(claim.begins)))
    return [*parts, Text(remedy(claim))]


def _problems(differences: Sequence[Difference]) -> str:
    by_problem: dict[str, list[str]] = {}
    for item in differences:
        by_problem.setdefault(item.problem, []).append(item.place)
    return "\n".join(
        f"{printable(problem)}: {named(names)}"
        if len(names) > 1
        else f"{printable(names[0])}: {printable(problem)}"
        for problem, names in by_problem.items()
    )


def _measures(differences: Sequence[Difference], console: Console) -> Table:
    """Return the numbers of the first difference, and of the largest if that is another."""
    first = differences[0]
    largest = max(differences, key=lambda item: item.measure.absolute if item.measure else 0)
    table = plain_table(no_wrap=1)
    for title, item in (("first", first), ("largest", largest)):
        if item.measure is None or (title == "largest" and item is first):
            continue
        table.add_row(Text(title, "bold"), Text(printable(item.place), "bold"))
        differing, largest_text, change, relative, ulps, mean, percentile = _numbers(
            item.measure, _DIGITS
        )
        absolute = f"{largest_text} ({change}){f', {ulps} ULP' if ulps else ''}"
        for label, text in (
            ("differing", f"{differing} elements"),
            ("absolute", suited(absolute, console)),
            ("relative", relative),
            ("mean", f"{mean}, 99th percentile {percentile}"),
        ):
            table.add_row(Text(label), Text(text))
    return table
