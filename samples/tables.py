"""The tables of the recipe, for a terminal of 80 columns, and the numbers in them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from across_ranks import RankedOutcome
from fine_tuning import Measurements, Norm
from going_on import GoneOn
from rich.console import JustifyMethod
from rich.table import Table
from when_not_to_freeze import Trial

__all__ = [
    "comparison",
    "going_on_table",
    "in_percent",
    "outcome_table",
    "ranks_table",
    "trial_table",
]


def outcome_table(measurements: Measurements) -> Table:
    """Return a row for the trained backbone, and one for each way to treat the normalisation."""
    table = _table(
        "", "Accuracy\n%", "Means'\ndrift, σ", "Variances'\ndrift, ×", "Saved\nkB", "Step\nms"
    )
    start = measurements.outcomes[Norm.TRAIN][0].readings[0]
    table.add_row("before fine-tuning", in_percent(start.accuracy))
    for norm, runs in measurements.outcomes.items():
        table.add_row(
            norm.value,
            mean_and_spread([100 * run.accuracy for run in runs], 1),
            mean_and_spread([run.drift.means for run in runs], 3),
            mean_and_spread([run.drift.variances for run in runs], 2),
            f"{statistics.mean(run.saved_bytes for run in runs) / 1000:,.0f}",
            f"{1000 * statistics.median(measurements.step_seconds[norm]):.1f}",
        )
    return table


def trial_table(trials: Iterable[Trial]) -> Table:
    """Return a row for each way of training."""
    table = _table("", "Accuracy, %")
    for trial in trials:
        table.add_row(trial.name, mean_and_spread([100 * share for share in trial.accuracies], 1))
    return table


def going_on_table(ways: Iterable[GoneOn]) -> Table:
    """Return a row for each way to go on from the middle of a run."""
    table = _table("", "Loss, first\n10 steps", "Accuracy\n%")
    for way in ways:
        table.add_row(
            way.name,
            mean_and_spread(way.first_losses, 3),
            mean_and_spread([100 * share for share in way.accuracies], 1),
        )
    return table


def ranks_table(outcomes: Iterable[RankedOutcome]) -> Table:
    """Return a row for each fine-tuning on several processes."""
    table = _table(
        "",
        "Broadcast\nkB a step",
        "Statistics\nunequal",
        "Apart by\nσ",
        "Accuracy by rank\n%",
    )
    for outcome in outcomes:
        table.add_row(
            outcome.norm.value,
            f"{outcome.broadcast_bytes / 1000:.0f}",
            f"{outcome.unequal} of {outcome.count}",
            mean_and_spread([outcome.drift_of_means], 3),
            "  ".join(in_percent(share) for share in outcome.accuracies),
        )
    return table


def comparison(measurements: Measurements, other: Norm) -> str:
    """Return how frozen layers compare with ``other``, seed by seed and step by step."""
    outcomes, seconds = measurements.outcomes, measurements.step_seconds
    pairs = list(zip(outcomes[Norm.FROZEN], outcomes[other], strict=True))
    points = mean_and_spread(
        [100 * (one.accuracy - two.accuracy) for one, two in pairs], 1, sign="+"
    )
    saved = statistics.mean(one.saved_bytes / two.saved_bytes for one, two in pairs)
    times = zip(seconds[Norm.FROZEN], seconds[other], strict=True)
    time = statistics.median(one / two for one, two in times)
    return (
        f"{Norm.FROZEN.value} against {other.value}: accuracy {points} points seed by seed, "
        f"{saved:.0%} of the saved bytes, {time:.0%} of the time"
    )


def mean_and_spread(values: Sequence[float], digits: int, *, sign: str = "") -> str:
    """Return mean ± standard deviation; the value alone where all are the same.

    Args:
        values: At least one.
        digits: Behind the decimal point; a value that is 0 or 1 exactly is shown without.
        sign: "+" to show it also where it is one.
    """
    mean = statistics.mean(values)
    if len(set(values)) == 1:
        return f"{mean:.0f}" if mean in (0, 1) else f"{mean:{sign}.{digits}f}"
    return f"{mean:{sign}.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def in_percent(share: float) -> str:
    """Return a share from 0 to 1 in percent."""
    return f"{100 * share:.1f}"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        justify: JustifyMethod = "right" if column else "left"
        table.add_column(column, justify=justify, vertical="bottom", no_wrap=True)
    return table
