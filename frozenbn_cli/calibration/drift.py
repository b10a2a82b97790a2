"""How far the running statistics of a layer are from what they were."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from frozenbn_cli.batch_norms.summaries import Spread, spread_of

__all__ = ["Drift", "drift_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far the statistics of a layer have moved.

    Attributes:
        means: How far the means are apart, in standard deviations sqrt(variance + eps) of before:
            the average over the channels.
        variances: The factor between the variances, with eps, whichever is larger: the geometric
            mean over the channels, 1 or more.
        mean_spread: How far the mean of each channel has moved, in standard deviations of before.
        variance_spread: What the variance of each channel, with eps, was multiplied by.
        worst_mean: The channel whose mean has moved farthest.
        worst_variance: The channel whose variance has changed by the largest factor.
        worst_factor: What it was multiplied by.
        broken: How many channels had no sound statistics before, and are not in these numbers.
    """

    means: float
    variances: float
    mean_spread: Spread
    variance_spread: Spread
    worst_mean: int
    worst_variance: int
    worst_factor: float
    broken: int = 0

    @property
    def gravity(self) -> float:
        """By which layers are sorted: a standard deviation counts as much as a factor of e."""
        return max(self.means, math.log(self.variances))


def drift_of(
    before: tuple[Sequence[float], Sequence[float]],
    after: tuple[Sequence[float], Sequence[float]],
    eps: float,
) -> Drift | None:
    """Return how far statistics have moved; None if there was no sound channel.

    Args:
        before: Means and variances, one for each channel.
        after: The same, with variances of 0 or more.
        eps: Of the layer.
    """
    sound = [
        channel
        for channel, (mean, variance) in enumerate(zip(*before, strict=True))
        if math.isfinite(mean) and math.isfinite(variance) and variance >= 0
    ]
    if not sound:
        return None
    means, factors = {}, {}
    for channel in sound:
        (mean, new_mean), (variance, new_variance) = (
            (before[role][channel], after[role][channel]) for role in (0, 1)
        )
        means[channel] = _quotient(abs(new_mean - mean), math.sqrt(variance + eps), empty=0.0)
        factors[channel] = _quotient(new_variance + eps, variance + eps, empty=1.0)
    logs = {channel: _log(factor) for channel, factor in factors.items()}
    worst_variance = max(sound, key=lambda channel: abs(logs[channel]))
    return Drift(
        means=sum(means.values()) / len(means),
        variances=_exp(sum(map(abs, logs.values())) / len(logs)),
        mean_spread=spread_of(means.values()),
        variance_spread=spread_of(factors.values()),
        worst_mean=max(sound, key=lambda channel: means[channel]),
        worst_variance=worst_variance,
        worst_factor=factors[worst_variance],
        broken=len(before[0]) - len(sound),
    )


def _quotient(above: float, below: float, *, empty: float) -> float:
    if below:
        return above / below
    return math.inf if above else empty


def _log(factor: float) -> float:
    return math.log(factor) if factor else -math.inf


def _exp(exponent: float) -> float:
    return math.exp(exponent) if exponent < 700 else math.inf
