"""The numbers of each layer at a glance, for a report that draws them. Nothing else needs these."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from frozenbn_cli.batch_norms.batch_norm import BatchNorm
from frozenbn_cli.batch_norms.findings import STRUCTURAL
from frozenbn_cli.batch_norms.plan import LayerPlan, Plan

__all__ = ["Spread", "Summary", "spread_of", "summaries_of"]


@dataclass(frozen=True, slots=True)
class Spread:
    """How the values of a layer's channels are distributed.

    Attributes:
        lowest: The smallest.
        lower_quartile: A quarter of the channels lie below.
        median: Half of them do.
        upper_quartile: Three quarters do.
        highest: The largest.
    """

    lowest: float
    lower_quartile: float
    median: float
    upper_quartile: float
    highest: float


@dataclass(frozen=True, slots=True)
class Summary:
    """What freezing a layer will fix.

    Attributes:
        variance: Of the running variances.
        scale: Of what each channel is multiplied by, |weight| / sqrt(variance + eps).
    """

    variance: Spread
    scale: Spread


def summaries_of(plan: Plan) -> dict[str, Summary]:
    """Return a summary of each layer whose numbers make sense, by name; their file is still open.

    A layer that lacks entries, or holds NaN, Inf or a negative variance, has none.
    """
    found = ((item.layer.name, _summary(item.layer)) for item in plan.layers if _may_be_read(item))
    return {name: summary for name, summary in found if summary}


def _may_be_read(plan: LayerPlan) -> bool:
    """Return whether a layer holds numbers, and not more than a layer has."""
    if STRUCTURAL & {finding.code for finding in plan.findings}:
        return False
    tensors = plan.layer.tensors
    used = [tensors[role] for role in ("running_var", "weight") if role in tensors]
    # Layers that are no BatchNorm were not examined.
    return "running_var" in tensors and all(
        tensor.shape == (plan.layer.channels,)
        and tensor.dtype.kind == "float"
        and tensor.dtype.item_bytes > 1
        for tensor in used
    )


def _summary(layer: BatchNorm) -> Summary | None:
    variances = layer.tensors["running_var"].values()
    weight = layer.tensors.get("weight")
    weights = weight.values() if weight else (1.0,) * len(variances)
    if not variances or not all(map(math.isfinite, (*variances, *weights))) or min(variances) < 0:
        return None
    eps = layer.eps.value
    scales = [
        abs(factor) / math.sqrt(variance + eps) if variance + eps else math.inf
        for factor, variance in zip(weights, variances, strict=True)
    ]
    return Summary(spread_of(variances), spread_of(scales))


def spread_of(values: Iterable[float]) -> Spread:
    """Return how values are distributed, of which there is one at least."""
    ordered = sorted(values)
    lowest, lower, median, upper, highest = (
        _quantile(ordered, part) for part in (0, 0.25, 0.5, 0.75, 1)
    )
    return Spread(lowest, lower, median, upper, highest)


def _quantile(ordered: list[float], part: float) -> float:
    place = part * (len(ordered) - 1)
    below, above = ordered[math.floor(place)], ordered[math.ceil(place)]
    # Infinite neighbours have no number between them.
    return below if below == above else below + (above - below) * (place % 1)
