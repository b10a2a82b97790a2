"""The charts of a report: of layers, and of differences. Needs the extra `report`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from frozenbn_cli.batch_norms.summaries import Spread
from frozenbn_cli.reports.console import printable
from frozenbn_cli.reports.description import LayerRow
from frozenbn_cli.reports.drawing import Bar, Look, picture
from frozenbn_cli.reports.words import range_text
from frozenbn_cli.verification.claims import Claim, Measure

__all__ = [
    "Chart",
    "difference_chart",
    "mean_drift_chart",
    "scale_chart",
    "variance_chart",
    "variance_drift_chart",
]

_FEWEST_DIFFERENCES = 6
_SPAN = 1e9  # What lies further below the largest value is drawn at the foot.
_SPAN_TO_LEVEL = 1e20  # Eps is shown also where it is far away.
_WIDE = Look("wide", width=11, height=3.0, font=8.5, most_bars=300)
_NARROW = Look("narrow", width=4.7, height=3.2, font=10.5, most_bars=110)


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture and how to read it.

    Attributes:
        title: What it shows.
        wide: SVG for a wide page.
        narrow: SVG for a phone.
        notes: What else there is to know about what is drawn.
    """

    title: str
    wide: str
    narrow: str
    notes: tuple[str, ...]


def variance_chart(name: str, rows: Sequence[LayerRow]) -> Chart | None:
    """Return how the running variances of each layer lie to its eps; None if there are none."""
    bars = []
    for row in rows:
        spread = row.summary.variance if row.summary else None
        bars.append(_layer_bar(row, spread, "variance", row.plan.layer.eps.value))
    return _layer_chart(name, "Running variance of each layer, against eps", bars)


def scale_chart(name: str, rows: Sequence[LayerRow]) -> Chart | None:
    """Return what the channels of each layer are multiplied by; None if there are no numbers."""
    bars = [_layer_bar(row, row.summary.scale if row.summary else None, "scale") for row in rows]
    return _layer_chart(name, "Scale of each layer: |weight| / sqrt(variance + eps)", bars)


def mean_drift_chart(name: str, rows: Sequence[LayerRow]) -> Chart | None:
    """Return how far the means of each layer have moved; None if none was formed anew."""
    title = "How far the running means of each layer moved, in standard deviations of before"
    return _drift_chart(name, title, rows, "mean_spread")


def variance_drift_chart(name: str, rows: Sequence[LayerRow]) -> Chart | None:
    """Return what the variances of each layer were multiplied by; None if none was formed anew."""
    title = "What the running variances of each layer, with eps, were multiplied by"
    return _drift_chart(name, title, rows, "variance_spread")


def _drift_chart(name: str, title: str, rows: Sequence[LayerRow], what: str) -> Chart | None:
    if not any(row.drift for row in rows):
        return None
    in_order = sorted(rows, key=lambda row: row.number)
    bars = [
        _layer_bar(row, getattr(row.drift, what) if row.drift else None, "drift")
        for row in in_order
    ]
    return _layer_chart(name, title, bars)


def difference_chart(name: str, claim: Claim) -> Chart | None:
    """Return by how much the places of a claim differ; None if they are too few to draw."""
    bars = [
        _difference_bar(number, item.place, item.measure)
        for number, item in enumerate(claim.differences, 1)
        if item.measure and item.measure.differing
    ]
    if len(bars) < _FEWEST_DIFFERENCES:
        return None
    title = "How large each difference is"
    return _drawn(name, title, bars, "difference, by its number in the table", [])


def _layer_bar(row: LayerRow, spread: Spread | None, what: str, level: float | None = None) -> Bar:
    words = f"{row.name}: no {what} that could be drawn"
    if spread:
        words = (
            f"{row.name}: {what} {range_text(spread.lowest, spread.highest)}, "
            f"median {spread.median:.2g}"
        )
    return Bar(row.number, row.number, words, spread, level)


def _difference_bar(number: int, place: str, measure: Measure) -> Bar:
    low, high = measure.mean, measure.absolute
    spread = Spread(low, low, measure.percentile_99, measure.percentile_99, high)
    words = f"{printable(place)}: up to {high:.3g}, mean {low:.3g}"
    return Bar(number, number, words, spread)


def _layer_chart(name: str, title: str, bars: list[Bar]) -> Chart | None:
    spreads = [bar.spread for bar in bars if bar.spread]
    if not any(spread.highest > 0 for spread in spreads):
        return None
    notes = []
    if len(spreads) < len(bars):
        count = len(bars) - len(spreads)
        notes.append(f"× no numbers that could be drawn: {count:,} of {len(bars):,} layers")
    return _drawn(name, title, bars, "layer, by its number in the table", notes)


def _drawn(name: str, title: str, bars: list[Bar], below: str, notes: list[str]) -> Chart:
    foot, top = _bounds(bars)
    if any(bar.spread and bar.spread.lowest < foot for bar in bars):
        notes.append(f"▾ goes on below {foot:.0e}, maybe to 0")
    if any(bar.spread and bar.spread.highest > top for bar in bars):
        notes.append("▴ infinite")
    wide, narrow = (
        picture(
            name,
            title,
            _merged(bars, look.most_bars),
            look=look,
            bounds=(foot, top),
            below=below,
            has_spots=look is _WIDE and len(bars) <= look.most_bars,
        )
        for look in (_WIDE, _NARROW)
    )
    if (step := math.ceil(len(bars) / _WIDE.most_bars)) > 1:
        notes.append(f"each bar stands for {step} neighbours")
    return Chart(title, wide, narrow, tuple(notes))


def _bounds(bars: Sequence[Bar]) -> tuple[float, float]:
    """Return the foot and the top of an axis that shows the bars and their levels."""
    ends = [(bar.spread.lowest, bar.spread.highest) for bar in bars if bar.spread]
    numbers = [value for pair in ends for value in pair if 0 < value < math.inf] or [1.0]
    highest = max(numbers)
    lowest = max(min(numbers), highest / _SPAN)
    levels = [
        bar.level
        for bar in bars
        if bar.level and highest / _SPAN_TO_LEVEL < bar.level < highest * _SPAN_TO_LEVEL
    ]
    foot = _power_of_ten(min([lowest, *levels]), math.floor, -0.1)
    return foot, _power_of_ten(max([highest, *levels]), math.ceil, 0.1)


def _power_of_ten(value: float, rounded: Callable[[float], int], margin: float) -> float:
    # A float64 reaches to 1e308, and twice that has to be one too.
    return 10.0 ** min(max(rounded(math.log10(value) + margin), -300), 300)


def _merged(bars: Sequence[Bar], most: int) -> list[Bar]:
    """Return at most so many bars, each for as many neighbours as that takes."""
    step = math.ceil(len(bars) / most)
    if step <= 1:
        return list(bars)
    return [_one(bars[start : start + step]) for start in range(0, len(bars), step)]


def _one(bars: Sequence[Bar]) -> Bar:
    spreads = [bar.spread for bar in bars if bar.spread]
    levels = [bar.level for bar in bars if bar.level is not None]
    spread = None
    if spreads:
        medians = sorted(item.median for item in spreads)
        spread = Spread(
            min(item.lowest for item in spreads),
            min(item.lower_quartile for item in spreads),
            medians[len(medians) // 2],
            max(item.upper_quartile for item in spreads),
            max(item.highest for item in spreads),
        )
    return Bar(bars[0].first, bars[-1].last, "", spread, max(levels, default=None))
