"""Facts as reports put them into words, wherever they are shown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from frozenbn_cli.reports.console import printable
from frozenbn_cli.verification.claims import Claim, verdict

__all__ = [
    "by_reason",
    "count_text",
    "named",
    "range_text",
    "sentence",
    "size_text",
    "took_text",
    "verdict_parts",
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


def took_text(seconds: Mapping[str, float]) -> str:
    """Return the time that all stages took."""
    return f"{sum(seconds.values()):.1f} s"


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


def verdict_parts(claims: Sequence[Claim]) -> tuple[str, str, str]:
    """Return what claims amount to: PASSED or FAILED, what is so, and what is not verified."""
    found = verdict(claims)
    by_status: dict[str, list[str]] = {"equal": [], "different": [], "not verified": []}
    for claim in claims:
        by_status[claim.status].append(claim.name)
    if found == "not verified":
        return found.upper(), "", ""
    status = "equal" if found == "passed" else "different"
    open_ = by_status["not verified"]
    return (
        found.upper(),
        f": {_joined(by_status[status])} {status}",
        f"; {_joined(open_)} not verified" if open_ else "",
    )


def _joined(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
