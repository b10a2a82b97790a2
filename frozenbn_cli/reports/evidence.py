"""The differences that a verification found, as rows of a table in a report."""

from __future__ import annotations

import math
from dataclasses import dataclass

from frozenbn_cli.reports.console import printable
from frozenbn_cli.verification.claims import Claim, Difference, Measure

__all__ = ["COLUMNS", "DifferenceRow", "difference_rows", "remedy", "tolerance_words"]

COLUMNS = (
    "#", "Where", "What", "Elements", "Largest", "Before → after", "Relative", "ULP", "Mean", "99 %"
)  # fmt: skip
"""The titles of the columns."""


_MANY = 10**6


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


def _numbers(measure: Measure) -> tuple[str, ...]:
    return (
        f"{measure.differing:,} of {measure.elements:,}",
        f"{measure.absolute:.3g} at {list(measure.index)}",
        f"{measure.before:.9g} → {measure.after:.9g}",
        f"{measure.relative:.3g}",
        _count(measure.ulps),
        f"{measure.mean:.3g}",
        f"{measure.percentile_99:.3g}",
    )


def _count(ulps: int | None) -> str:
    if ulps is None:
        return ""
    return f"{ulps:,}" if ulps < _MANY else f"{ulps:.1e}"


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
