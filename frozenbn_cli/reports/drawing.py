"""Draws bars on a logarithmic axis, with matplotlib, as SVG for a page."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from frozenbn_cli.batch_norms.summaries import Spread
from frozenbn_cli.reports.svg import COLOURS, Spot, to_svg

__all__ = ["Bar", "Look", "picture"]

# It warns of fonts and caches, which are no concern of who asks for a report.
logging.getLogger("matplotlib").setLevel(logging.ERROR)


@dataclass(frozen=True, slots=True)
class Bar:
    """One thing on the horizontal axis, or several neighbours as one.

    Attributes:
        first: Its place, from 1.
        last: The place of the last one that it stands for.
        words: What a pointer shows.
        spread: What is drawn; None if nothing can be.
        level: What a line over it marks, such as eps; None for nothing.
    """

    first: int
    last: int
    words: str
    spread: Spread | None
    level: float | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """How a figure is drawn for one kind of screen.

    Attributes:
        name: Of the kind of screen.
        width: In inches.
        height: In inches.
        font: In points.
        most_bars: How many there is room for.
    """

    name: str
    width: float
    height: float
    font: float
    most_bars: int


def picture(
    name: str,
    label: str,
    bars: Sequence[Bar],
    *,
    look: Look,
    bounds: tuple[float, float],
    below: str,
    has_spots: bool,
) -> str:
    """Return bars as SVG.

    Args:
        name: Of its own on the page.
        label: What is shown.
        bars: In their order, not more than there is room for.
        look: How to draw them.
        bounds: The foot and the top of the axis; what is beyond is marked.
        below: What the horizontal axis counts.
        has_spots: Whether a pointer shows the words of each bar.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        parameters: Any = mpl.rcParams
        parameters.update(_style(look))
        figure = Figure(figsize=(look.width, look.height), dpi=72)
        FigureCanvasSVG(figure)  # type: ignore[no-untyped-call, unused-ignore]
        axes = figure.add_axes(_place(look))
        _set_axes(axes, bars, bounds, below)
        room = axes.get_window_extent().width
        width = min(0.7 * room / max(len(bars), 12), 14)
        _draw_bars(axes, bars, bounds, points=width, units=width * _length(bars) / room)
        if any(bar.level for bar in bars):
            _draw_level(axes, bars)
        spots = _spots(axes, bars) if has_spots else ()
        return to_svg(figure, f"{name}-{look.name}", label, spots)


def _place(look: Look) -> tuple[float, float, float, float]:
    """Return where the axes lie, in parts of the figure; names of numbers have room beside it.

    To let matplotlib find that out takes as long as all the rest.
    """
    across, down = look.font / (72 * look.width), look.font / (72 * look.height)
    return 4 * across, 3.6 * down, 1 - 4.5 * across, 1 - 4.4 * down


def _style(look: Look) -> dict[str, object]:
    return {
        "font.size": look.font,
        "path.simplify": False,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "axes.edgecolor": COLOURS["line"],
        "axes.labelcolor": COLOURS["muted"],
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": COLOURS["line"],
        "grid.linewidth": 0.6,
        "text.color": COLOURS["ink"],
        "xtick.color": COLOURS["line"],
        "ytick.color": COLOURS["line"],
        "xtick.labelcolor": COLOURS["muted"],
        "ytick.labelcolor": COLOURS["muted"],
        "ytick.major.size": 0,
    }


def _set_axes(axes: Axes, bars: Sequence[Bar], bounds: tuple[float, float], below: str) -> None:
    foot, top = bounds
    axes.set_yscale("log")
    axes.set_ylim(foot / 2, top)
    axes.set_xlim(bars[0].first - 1, bars[-1].last + 1)
    axes.set_xlabel(below)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
    # Numbers begin at 1; the axis goes a little beyond them.
    numbers = range(bars[0].first, bars[-1].last + 1)
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.0f}" if value in numbers else "")
    )
    # Their names are powers of ten, of which there is room for about eight.
    lowest, highest = round(math.log10(foot)), round(math.log10(top))
    powers = range(lowest, highest + 1, math.ceil((highest - lowest) / 8))
    axes.yaxis.set_major_locator(FixedLocator([10.0**power for power in powers]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_power))


def _power(value: float, _: object) -> str:
    return f"{value:g}" if 1e-3 <= value <= 1e4 else f"{value:.0e}"


def _length(bars: Sequence[Bar]) -> int:
    """Return the length of the horizontal axis."""
    return bars[-1].last - bars[0].first + 2


def _draw_bars(
    axes: Axes,
    bars: Sequence[Bar],
    bounds: tuple[float, float],
    *,
    points: float,
    units: float,
) -> None:
    """Draw each bar: all channels, the middle half of them, and the median.

    Args:
        axes: Where.
        bars: What.
        bounds: Of the vertical axis.
        points: The width of a bar, in points.
        units: The same, in units of the horizontal axis.
    """
    foot, top = bounds
    drawn = [(_middle(bar), bar.spread) for bar in bars if bar.spread]

    def upright(ends: Callable[[Spread], tuple[float, float]], *, alpha: float) -> None:
        strokes = []
        for place, spread in drawn:
            low, high = (min(max(end, foot / 2), top) for end in ends(spread))
            strokes.append((place, place, low, high))
        _draw_strokes(axes, strokes, points, alpha)

    upright(lambda spread: (spread.lowest, spread.highest), alpha=0.3)
    upright(lambda spread: (spread.lower_quartile, spread.upper_quartile), alpha=0.55)
    middles = [(place, spread.median) for place, spread in drawn]
    medians = [
        (place - 0.6 * units, place + 0.6 * units, median, median)
        for place, median in middles
        if foot <= median <= top
    ]
    _draw_strokes(axes, medians, 1.8, 1)
    marks: tuple[tuple[str, str, list[float], float], ...] = (
        ("v", "warn", [place for place, spread in drawn if spread.lowest < foot], foot * 0.7),
        ("^", "bad", [place for place, spread in drawn if spread.highest > top], top * 0.7),
        ("x", "bad", [_middle(bar) for bar in bars if not bar.spread], foot * 0.7),
    )
    for mark, colour, places, height in marks:
        if places:
            heights = [height] * len(places)
            axes.plot(
                places, heights, marker=mark, linestyle="", color=COLOURS[colour], markersize=3.5
            )


def _draw_strokes(
    axes: Axes, strokes: Iterable[tuple[float, float, float, float]], width: float, alpha: float
) -> None:
    """Draw strokes (two places, two heights) as one line with gaps, which takes little space."""
    places: list[float] = []
    heights: list[float] = []
    for left, right, low, high in strokes:
        places += [left, right, math.nan]
        heights += [low, high, math.nan]
    axes.plot(
        places,
        heights,
        color=COLOURS["accent"],
        alpha=alpha,
        linewidth=width,
        solid_capstyle="butt",
    )


def _draw_level(axes: Axes, bars: Sequence[Bar]) -> None:
    """Draw eps as a line over the bars, with its value if there is one."""
    places: list[float] = []
    heights: list[float] = []
    for bar in bars:
        places += [bar.first - 0.5, bar.last + 0.5]
        heights += [bar.level or math.nan] * 2
    axes.plot(places, heights, color=COLOURS["warn"], linewidth=1.2, dashes=(4, 2))
    values = {bar.level for bar in bars if bar.level}
    words = f"eps {next(iter(values)):g}" if len(values) == 1 else "eps"
    last = next(bar for bar in reversed(bars) if bar.level)
    axes.annotate(
        words,
        (1, last.level or 1),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        color=COLOURS["warn"],
        horizontalalignment="right",
        annotation_clip=True,
    )


def _spots(axes: Axes, bars: Sequence[Bar]) -> list[Spot]:
    spots = []
    for bar in bars:
        left, right = (
            float(axes.transData.transform((place, 1.0))[0])
            for place in (bar.first - 0.5, bar.last + 0.5)
        )
        words = f"{bar.first}: {bar.words}" if bar.first == bar.last else bar.words
        spots.append(Spot(left, right - left, words))
    return spots


def _middle(bar: Bar) -> float:
    return (bar.first + bar.last) / 2
