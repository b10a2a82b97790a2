"""The figure of the recipe: what was measured while fine-tuning, as PNG or SVG."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fine_tuning import Measurements, Norm, Outcome, Reading
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["draw"]

# Told apart also by those who see red and green alike, and by their line styles.
_COLOURS = {Norm.TRAIN: "#d55e00", Norm.EVAL: "#0072b2", Norm.FROZEN: "#009e73"}
_STYLES = {Norm.TRAIN: "-", Norm.EVAL: "--", Norm.FROZEN: "-"}
# The dashed line on top, so that a line beneath it is seen too.
_LAYERS = {Norm.TRAIN: 2.1, Norm.EVAL: 2.3, Norm.FROZEN: 2.2}
_INCHES = (9.0, 6.0)
_DOTS_PER_INCH = 110


def draw(measurements: Measurements, path: Path) -> None:
    """Draw ``measurements`` into ``path``, whose suffix decides on the format."""
    outcomes, seconds = measurements.outcomes, measurements.step_seconds
    figure = Figure(figsize=_INCHES, layout="constrained")
    ((accuracies, drifts), (saved, times)) = figure.subplots(
        2, 2, gridspec_kw={"height_ratios": (2, 1)}
    )
    _curves(accuracies, outcomes, lambda reading: 100 * reading.accuracy)
    accuracies.set_title("Accuracy on the shifted test images, %")
    _curves(drifts, outcomes, lambda reading: reading.drift.means)
    drifts.set_title("Drift of the running means, σ")
    _bars(
        saved,
        {norm: runs[0].saved_bytes / 1000 for norm, runs in outcomes.items()},
    )
    saved.set_title("Activations saved for backward, kB")
    _bars(
        times,
        {norm: 1000 * statistics.median(each) for norm, each in seconds.items()},
    )
    times.set_title("Median time of a step, ms")
    for axes in (accuracies, drifts, saved, times):
        axes.title.set_fontsize("medium")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*accuracies.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=_DOTS_PER_INCH)


def _curves(
    axes: Axes,
    outcomes: Mapping[Norm, Sequence[Outcome]],
    value: Callable[[Reading], float],
) -> None:
    """Draw the mean over the seeds as a line, in a band of one standard deviation."""
    for norm, runs in outcomes.items():
        steps = [reading.step for reading in runs[0].readings]
        curves = [[value(reading) for reading in run.readings] for run in runs]
        columns = list(zip(*curves, strict=True))
        means = [statistics.mean(column) for column in columns]
        spreads = [statistics.stdev(column) if len(column) > 1 else 0.0 for column in columns]
        colour = _COLOURS[norm]
        axes.plot(
            steps,
            means,
            _STYLES[norm],
            color=colour,
            linewidth=2,
            zorder=_LAYERS[norm],
            label=norm.value,
        )
        axes.fill_between(
            steps,
            [mean - spread for mean, spread in zip(means, spreads, strict=True)],
            [mean + spread for mean, spread in zip(means, spreads, strict=True)],
            color=colour,
            alpha=0.15,
            linewidth=0,
        )
    axes.set_xlabel("Step")
    axes.grid(axis="y", alpha=0.3)


def _bars(axes: Axes, values: Mapping[Norm, float]) -> None:
    """Draw each value as a bar that is labelled with it, the first one on top."""
    norms = list(values)[::-1]
    bars = axes.barh(
        [norm.value for norm in norms],
        [values[norm] for norm in norms],
        color=[_COLOURS[norm] for norm in norms],
    )
    axes.bar_label(bars, [f"{values[norm]:,.3g}" for norm in norms], padding=3)
    for place, norm in enumerate(norms):
        axes.annotate(
            norm.value,
            (0, place),
            xytext=(6, 0),
            textcoords="offset points",
            color="white",
            verticalalignment="center",
        )
    axes.margins(x=0.1)
    axes.tick_params(labelleft=False, left=False, labelbottom=False, bottom=False)
