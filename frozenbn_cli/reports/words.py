"""Facts as reports put them into words, wherever they are shown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from frozenbn_cli.reports.console import printable
from frozenbn_cli.verification.claims import Claim, verdict

__all__ = [
    "VerdictWords",
    "by_reason",
    "count_text",
    "eps_text",
    "factor_text",
    "mean_drift_text",
    "named",
    "range_text",
    "sentence",
    "size_text",
    "took_text",
    "verdict_words",
]


def sentence(words: str) -> str:
    """Return words with a capital in front."""
    return words[:1].upper() + words[1:]


def size_text(count: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{count:,} bytes" if unit == "bytes" else f"{value:,.1f} {unit}"


def count_text(count: int) -> str:
    """Return a number of elements in the unit that suits it."""
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def eps_text(counts: Mapping[tuple[float, str], int]) -> str:
    """Return every eps with its source, and of how many layers it is if there are several."""
    return ", ".join(
        f"{value:g} {source}" + (f" ({count:,})" if len(counts) > 1 else "")
        for (value, source), count in counts.items()
    )


def took_text(seconds: Mapping[str, float]) -> str:
    """Return the time that all stages took."""
    return f"{sum(seconds.values()):.1f} s"


def mean_drift_text(sigmas: float) -> str:
    """Return how far a mean has moved, in standard deviations."""
    return f"{sigmas:.2g} σ" if sigmas < 100 else f"{sigmas:,.0f} σ"


def factor_text(factor: float) -> str:
    """Return what a variance was multiplied by."""
    return f"×{factor:,.0f}" if 100 <= factor < 1e6 else f"×{factor:.3g}"


def range_text(low: float, high: float) -> str:
    """Return the smallest and the largest value."""
    return "NaN" if math.isnan(low) else f"{_short(low)} … {_short(high)}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if 100 <= abs(value) < 1e5 else f"{value:.2g}"


def named(names: Iterable[str], at_most: int = 3) -> str:
    """Return the first names, and how many there are beyond."""
    names = list(names)
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(printable(name) for name in names[:at_most]) + more


def by_reason(title: str, reasons: Mapping[str, str]) -> list[str]:
    """Return a line for each reason, with the layers that it concerns."""
    by_text: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_text.setdefault(reason, []).append(name)
    return [f"{title}: {named(names)}: {printable(reason)}" for reason, names in by_text.items()]


@dataclass(frozen=True, slots=True)
class VerdictWords:
    """What claims amount to, in the parts of one sentence.

    Attributes:
        first: What the inputs that the user chose could not tell; empty for all else.
        word: PASSED, FAILED or NOT VERIFIED.
        what: What is so.
        rest: What is not verified, or all the same equal.
    """

    first: str
    word: str
    what: str
    rest: str

    def __str__(self) -> str:
        return f"{self.first}{self.word}{self.what}{self.rest}"


def verdict_words(claims: Sequence[Claim]) -> VerdictWords:
    """Return what claims amount to, in words."""
    found = verdict(claims)
    by_status: dict[str, list[str]] = {"equal": [], "different": [], "not verified": []}
    for claim in claims:
        by_status[claim.status].append(claim.name)
    equal, open_ = by_status["equal"], by_status["not verified"]
    if found == "not verified":
        missing = [claim.name for claim in claims if claim.is_missing]
        what = f": {_joined(missing)}, which {_is(missing)} required" if missing else ""
        rest = f"; {_joined(equal)} equal" if missing and equal else ""
        return VerdictWords("", found.upper(), what, rest)
    given = [claim.name for claim in claims if claim.inputs_were_given]
    open_ = [name for name in open_ if name not in given]
    return VerdictWords(
        f"{_joined(given)} not verified on the inputs that were given; " if given else "",
        found.upper(),
        f": {_joined(equal if found == 'passed' else by_status['different'])} "
        f"{'equal' if found == 'passed' else 'different'}",
        f"; {_joined(open_)} not verified" if open_ else "",
    )


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _joined(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
