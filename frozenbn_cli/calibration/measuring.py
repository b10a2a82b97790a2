"""Measures what BatchNorm layers are given while a model runs. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from frozenbn_cli.calibration.moments import Moments

__all__ = ["Enough", "MeasuredLayer", "Measuring"]


class Enough(BaseException):  # No error, and none that code of a model would catch.
    """All that was to be measured in this batch is measured."""


@dataclass(eq=False, slots=True)
class MeasuredLayer:
    """A layer whose statistics are formed anew, or several that share one pair of these.

    Attributes:
        names: Its names in the model.
        mean: The buffer ``running_mean``.
        variance: The buffer ``running_var``.
        eps: Added to the variance.
        counters: The buffers ``num_batches_tracked``.
        moments: Of what it was given in this pass.
        formed: Of what its statistics are formed from; None before that.
        takes_batch_statistics: Whether it normalises with batch statistics in eval too.
    """

    names: list[str]
    mean: Tensor
    variance: Tensor
    eps: float
    counters: list[Tensor] = field(default_factory=list)
    moments: Moments = field(default_factory=Moments)
    formed: Moments | None = None
    takes_batch_statistics: bool = False

    def begin(self) -> None:
        """Forget what was measured, for another pass."""
        self.moments = Moments()

    def form(self) -> None:
        """Form the statistics of what was measured."""
        self.formed = self.moments
        self.write(self.formed)

    def write(self, moments: Moments) -> None:
        """Put what was measured into the buffers; a variance of one value is as good as any."""
        if moments.mean is not None:
            self.mean.copy_(moments.mean)
            variance = moments.variance
            self.variance.copy_(variance) if variance is not None else self.variance.fill_(1)


class Measuring(TorchFunctionMode):
    """Measures the input of each normalisation that uses the statistics of a layer.

    The call itself is watched, not the layer: code that turns its input around before it, or that
    calls the function with a layer's buffers, is measured where it normalises.

    Args:
        layers: Those that are watched.
        measured: Those of them that are measured.
        forming: Those of these that normalise, from each batch on, with what was measured up to
            there, instead of with the statistics that they have.

    Attributes:
        uses: Which layers were used, one after the other, since `begin`.
    """

    def __init__(
        self,
        layers: Iterable[MeasuredLayer],
        *,
        measured: Iterable[MeasuredLayer],
        forming: Iterable[MeasuredLayer] = (),
    ) -> None:
        super().__init__()
        self._layers = {id(layer.mean): layer for layer in layers}
        self._measured = frozenset(measured)
        self._forming = frozenset(forming)
        self._last: int | None = None
        self.uses: list[MeasuredLayer] = []

    def begin(self, last: int | None = None) -> None:
        """Begin a batch, which is over with the use of this number, if one is given."""
        self.uses, self._last = [], last

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Measure the input of a call, if it is one of these, and make the call."""
        kwargs = dict(kwargs or {})
        if func in _ARGUMENTS:
            given = dict(zip(_ARGUMENTS[func], args, strict=False)) | kwargs
            layer = self._layers.get(id(given.get("running_mean")))
            if layer is not None:
                self._use(layer, given["input"], takes_batch=bool(given.get("training")))
        return func(*args, **kwargs)

    def _use(self, layer: MeasuredLayer, value: Tensor, *, takes_batch: bool) -> None:
        self.uses.append(layer)
        layer.takes_batch_statistics |= takes_batch
        if layer in self._measured and value.dim() > 1:
            layer.moments.add(value)
            if layer in self._forming:
                layer.write(layer.moments)
        if len(self.uses) == self._last:
            raise Enough


_NATIVE = ("input", "weight", "bias", "running_mean", "running_var", "training")
_ARGUMENTS: Mapping[Callable[..., Any], tuple[str, ...]] = {
    nn.functional.batch_norm: (
        "input",
        "running_mean",
        "running_var",
        "weight",
        "bias",
        "training",
    ),
    torch.batch_norm: _NATIVE,
    torch.native_batch_norm: _NATIVE,
}
