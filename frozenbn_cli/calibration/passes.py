"""Passes over the data, until each layer's statistics are those of its inputs. Imports torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from frozenbn_cli.calibration.batches import Batches
from frozenbn_cli.calibration.measuring import Enough, MeasuredLayer, Measuring
from frozenbn_cli.calibration.unchanged import RandomState
from frozenbn_cli.errors import InputError, RefusedError, UnhealthyStatisticsError, UsageError
from frozenbn_cli.live_models.guarding import first_line
from frozenbn_cli.live_models.inputs import Inputs, dtype_of
from frozenbn_cli.stages import begin
from frozenbn_cli.wording import counted

__all__ = ["Found", "Passes"]

# A layer that is used twice may shape its own inputs: no end is certain.
_MOST_SWEEPS, _MOST_ROUNDS = 10, 30
_ROUNDINGS = 4


@dataclass(frozen=True, slots=True)
class Found:
    """What the passes came to, see `Calibration`.

    Attributes:
        uses: How often each layer that was measured is used in a pass, in the order of first use.
        batches: In the data.
        passes: How many there were.
        settled: Whether the last one measured what is there.
        apart: How far it found means and variances from what is there at most; None if it did not
            look.
        steady: Whether the first layer got the same in the last pass as in the first.
    """

    uses: Counter[MeasuredLayer]
    batches: int
    passes: int
    settled: bool = False
    apart: tuple[float, float] | None = None
    steady: bool = True


class Passes:
    """The passes over the data.

    Each forms the statistics of one layer, the next in the order of their use, with those of the
    layers before it fixed, and ends each batch there; so all are formed by passes of half the
    length. A last pass, over the whole model, measures each layer again. Where fewer passes are
    allowed, each forms several layers, which normalise with what was measured up to there.

    Args:
        model: In eval.
        layers: Those to form.
        data: The batches.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[MeasuredLayer],
        data: Batches,
    ) -> None:
        self._model = model
        self._layers = layers
        self._data = data
        self._random = RandomState()
        self._dtype = dtype_of(model)
        self._device = next((tensor.device for tensor in model.state_dict().values()), None)
        self._uses: list[list[MeasuredLayer]] = []  # In each batch, one after the other.
        self._batches = 0
        self._passes = 0

    def run(self, at_most: int | None) -> Found:
        """Go through the data until all is settled, or so often.

        Raises:
            InputError: There is no batch, or one that is none or holds NaN or Inf.
            UsageError: The code of the data or of the model fails, or the data come to an end.
            RefusedError: No layer is reached, or one is given NaN or Inf.
        """
        order = self._survey()
        uses = Counter(dict.fromkeys(order, 0))
        uses.update(layer for batch in self._uses for layer in batch if layer in uses)
        groups = _groups(order, len(order) if at_most is None else max(at_most - 1, 1))
        for number, group in enumerate(groups):
            later = [layer for other in groups[number + 1 :] for layer in other]
            if number == 0:
                _settle(group)
            else:
                self._form(group, forming=[*group, *later])
            if at_most is None and uses[group[0]] > self._batches:
                self._repeat(group[0])
        if at_most == 1:
            return Found(uses, self._batches, self._passes)
        steps = self._prove(order)
        for _ in range(_MOST_SWEEPS if at_most is None else 0):
            if all(step.is_rounding for step in steps) or not steps[0].is_rounding:
                break
            for layer, step in zip(order, steps, strict=True):
                if not step.is_rounding:
                    self._form([layer])
            steps = self._prove(order)
        return Found(
            uses,
            self._batches,
            self._passes,
            settled=all(step.is_rounding for step in steps),
            apart=(max(step.mean for step in steps), max(step.variance for step in steps)),
            steady=steps[0].is_rounding,
        )

    def _survey(self) -> list[MeasuredLayer]:
        """Go through all data for the first time; return the layers that are used, in order."""
        measuring = Measuring(self._layers, measured=self._layers, forming=self._layers)
        for number, inputs in enumerate(self._pass(), 1):
            measuring.begin()
            self._call(measuring, inputs, number)
            self._uses.append(measuring.uses)
            if number == 1:  # What fails for good fails early.
                _check_finite(measuring.uses)
        if not self._batches:
            raise InputError("holds no batch", where=("the data",))
        used = dict.fromkeys(layer for uses in self._uses for layer in uses)
        order = [layer for layer in used if not layer.takes_batch_statistics]
        _check_finite(order)
        if not order:
            raise RefusedError("the data reach no BatchNorm layer that takes running statistics")
        for layer in order:
            if layer.moments.variance is None:
                raise InputError(
                    f"layer {layer.names[0]!a} gets one value of each channel in all",
                    where=("the data",),
                    advice="A variance takes two; give more data.",
                )
        return order

    def _form(
        self, group: Collection[MeasuredLayer], forming: Collection[MeasuredLayer] = ()
    ) -> list[_Step]:
        """Form a group of layers, all others with the statistics that they have."""
        measuring = Measuring(self._layers, measured=forming or group, forming=forming)
        for number, inputs in enumerate(self._pass(), 1):
            last = _last_use(self._uses[number - 1], group)
            if last:
                measuring.begin(last)
                self._call(measuring, inputs, number)
        return _settle(group)

    def _repeat(self, layer: MeasuredLayer) -> None:
        """Form a layer again that is used several times, until that changes nothing."""
        for _ in range(_MOST_ROUNDS):
            if self._form([layer])[0].is_rounding:
                break

    def _prove(self, order: Sequence[MeasuredLayer]) -> list[_Step]:
        """Measure all layers with the statistics that they have; return how far off these are."""
        measuring = Measuring(self._layers, measured=order)
        for number, inputs in enumerate(self._pass(), 1):
            measuring.begin()
            self._call(measuring, inputs, number)
        _check_finite(order)
        return [_step(layer) for layer in order]

    def _pass(self) -> Iterator[Inputs]:
        """Yield the inputs of every batch.

        Raises:
            UsageError: They are not as many as before.
        """
        self._passes += 1
        for layer in self._layers:
            layer.begin()
        self._random.restore()  # What is drawn at random is the same in each pass.
        count = begin(f"pass {self._passes}", self._batches or self._data.count())
        done = 0
        for done, inputs in enumerate(self._data, 1):
            if self._passes > 1 and done > self._batches:
                break
            yield inputs
            count(1)
        if self._passes > 1 and done != self._batches:
            raise UsageError(
                f"{counted(self._batches, 'batch', 'batches')} at first, and "
                f"{'more' if done > self._batches else f'{done:,}'} when gone through again",
                where=("the data",),
                advice="What gives them has to give the same each time that it is asked.",
            )
        self._batches = done

    def _call(self, measuring: Measuring, inputs: Inputs, number: int) -> None:
        arguments, keywords = inputs.of_dtype(self._dtype, self._device)
        try:
            # A pass that ends early draws less, and the next batch is to get the same all the same.
            with measuring, RandomState.seeded(number):
                self._model(*arguments, **keywords)
        except Enough:
            pass
        except Exception as error:  # The code of the model is the user's.
            raise UsageError(
                f"the model fails on it ({type(error).__name__}: {first_line(error)})",
                where=("the data", f"batch {number:,} of {inputs.shown}"),
                advice="Is this what its forward takes?",
            ) from error


def _groups(order: Sequence[MeasuredLayer], at_most: int) -> list[list[MeasuredLayer]]:
    """Return the layers in so many groups of neighbours, or fewer, of nearly the same size."""
    size = math.ceil(len(order) / at_most)
    return [list(order[start : start + size]) for start in range(0, len(order), size)]


def _last_use(uses: Sequence[MeasuredLayer], group: Collection[MeasuredLayer]) -> int:
    """Return the number of the last use of any of a group in a batch, from 1; 0 for none."""
    return max((place for place, layer in enumerate(uses, 1) if layer in group), default=0)


def _settle(group: Iterable[MeasuredLayer]) -> list[_Step]:
    """Make what was measured the statistics of layers; return how far off they were."""
    group = list(group)
    _check_finite(group)
    steps = [_step(layer) for layer in group]
    for layer in group:
        layer.form()
    return steps


def _check_finite(layers: Iterable[MeasuredLayer]) -> None:
    for layer in layers:
        for tensor in (layer.moments.mean, layer.moments.variance):
            if tensor is not None and not bool(torch.isfinite(tensor).all()):
                raise UnhealthyStatisticsError(
                    f"layer {layer.names[0]!a} is given NaN or Inf, and the data hold none",
                    advice="Are the weights sound? In float16, activations may overflow.",
                )


@dataclass(frozen=True, slots=True)
class _Step:
    """How far what was measured is from what is there.

    Attributes:
        mean: The largest distance of two means, in standard deviations.
        variance: The largest factor between two variances, with eps.
        is_rounding: Whether that is no more than what rounding does.
    """

    mean: float
    variance: float
    is_rounding: bool


def _step(layer: MeasuredLayer) -> _Step:
    mean, variance = layer.moments.mean, layer.moments.variance
    if mean is None or variance is None:
        raise UsageError(
            f"layer {layer.names[0]!a} is used in one pass over the data, and not in another"
        )
    rounding = _ROUNDINGS * torch.finfo(layer.mean.dtype).eps
    there, spread = layer.mean.to(mean), layer.variance.to(mean) + layer.eps
    sigma = spread.clamp_min(torch.finfo(torch.float32).tiny).sqrt()
    apart = (mean.to(layer.mean.dtype).to(mean) - there).abs()
    change = (variance.to(layer.variance.dtype).to(mean) + layer.eps - spread).abs()
    is_rounding = (apart <= rounding * (there.abs() + sigma)) & (change <= rounding * spread)
    factor = ((variance + layer.eps) / spread).log().abs().nan_to_num(0.0)
    return _Step(float((apart / sigma).max()), float(factor.max().exp()), bool(is_rounding.all()))
