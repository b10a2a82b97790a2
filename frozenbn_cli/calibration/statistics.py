"""Forms the running statistics of a live model anew from data. Imports torch.

A network that runs with fixed statistics normalises each layer's inputs, which the statistics of
the layers before it have shaped. So that is how they are measured: in eval, over all batches, with
the statistics that the layers before are going to have. A pass over the data settles those layers
that stand behind settled ones alone; passes go on until one measures what is there already. Other
than an average of batch statistics (PreciseBN, `torch.optim.swa_utils.update_bn`), the outcome is
the same however the data are cut into batches, and sorted.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import batchnorm

from frozenbn_cli.calibration.batches import Batches
from frozenbn_cli.calibration.drift import drift_of
from frozenbn_cli.calibration.measuring import MeasuredLayer
from frozenbn_cli.calibration.moments import Moments
from frozenbn_cli.calibration.passes import Passes
from frozenbn_cli.calibration.terms import CalibratedLayer, Calibration
from frozenbn_cli.calibration.unchanged import as_it_was
from frozenbn_cli.errors import RefusedError, UsageError
from frozenbn_cli.freezing.frozen_elsewhere import is_frozen_layer
from frozenbn_cli.freezing.survey import decisions_on
from frozenbn_cli.live_models.building import unwrapped
from frozenbn_cli.selection import Selection
from frozenbn_cli.stages import Progress, telling

__all__ = ["calibrate_statistics", "form_statistics"]

_FROZEN = "frozen"
_TAKES_BATCH_STATISTICS = "normalises with batch statistics in eval too"
_NEVER_REACHED = "never reached: the data lead the model past it, or it is of training alone"


def calibrate_statistics(
    model: nn.Module,
    batches: Any,
    *,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    max_batches: int | None = None,
    passes: int | None = None,
    progress: Progress | None = None,
) -> Calibration:
    """Form the running statistics of the BatchNorm layers of ``model`` anew, in place.

    No labels are needed, and nothing but statistics and counters changes. The model runs in eval,
    so that dropout and the like are off; afterwards modes and random numbers are as before.

    ``running_mean`` and ``running_var`` become the mean and the unbiased variance of all that a
    layer is given, over all batches, computed in float64, with the new statistics in the layers
    before it. That takes as many passes over the data as there are layers behind one another, and
    one to prove it; ``passes`` allows fewer, which come close. ``num_batches_tracked`` becomes the
    number of batches.

    BatchNorm1d, 2d and 3d, SyncBatchNorm and classes derived from them are calibrated. A layer that
    is used twice gets the statistics of both uses. Frozen layers, and those that the data do not
    reach, are left as they are.

    Args:
        model: Any module, on any device, to which the inputs are taken.
        batches: An iterable of batches, or what returns one when it is called; an iterator is kept
            in memory. A batch is a tensor, a tuple whose first is the input, or a dict of inputs by
            name.
        include: Names of submodules, or glob patterns of layer names; only these are calibrated.
        exclude: Names of submodules, or glob patterns of layer names; these are not calibrated.
        max_batches: How many batches count; all if None.
        passes: How often the data are gone through at most; until all is settled if None.
        progress: Is told the pass, the batches done, and how many there are (0 for unknown).

    Returns:
        What became of each layer, and how far its statistics have moved.

    Raises:
        InputError: There is no batch, or one that is none or holds NaN or Inf.
        UsageError: The code of the data or of the model fails.
        RefusedError: There is no layer to calibrate, or one is given NaN or Inf. In all these cases
            nothing is changed.
    """
    for name, value in (("max_batches", max_batches), ("passes", passes)):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value}", expected="1 or more")
    with telling(progress):
        return form_statistics(
            unwrapped(model),
            batches,
            selection=Selection.of(include, exclude),
            max_batches=max_batches,
            passes=passes,
        )


def form_statistics(
    model: nn.Module,
    batches: Any,
    *,
    selection: Selection,
    max_batches: int | None,
    passes: int | None,
    frozen: Set[str] = frozenset(),
) -> Calibration:
    """Form the running statistics of a model anew, see `calibrate_statistics`.

    Args:
        model: The model.
        batches: The data.
        selection: Which layers are calibrated.
        max_batches: How many batches count.
        passes: How often the data are gone through at most.
        frozen: Names of layers that stay, since they are frozen wherever the model belongs to.
    """
    layers, left = _layers(model, selection, frozen)
    if not layers:
        raise RefusedError("no BatchNorm layer whose statistics could be formed")
    before = {id(layer): _values(layer.mean, layer.variance) for layer in layers}
    with as_it_was(model):
        found = Passes(model, layers, Batches(batches, max_batches)).run(passes)
    for layer in layers:
        if layer.takes_batch_statistics:
            left |= dict.fromkeys(layer.names, _TAKES_BATCH_STATISTICS)
        elif layer not in found.uses:
            left |= dict.fromkeys(layer.names, _NEVER_REACHED)
    with torch.no_grad():
        for layer, uses in found.uses.items():
            layer.write(cast(Moments, layer.formed))
            for counter in layer.counters:
                counter.fill_(uses)
    return Calibration(
        layers=tuple(
            _calibrated(layer, uses, before[id(layer)]) for layer, uses in found.uses.items()
        ),
        left=left,
        batches=found.batches,
        passes=found.passes,
        settled=found.settled,
        apart=found.apart,
        steady=found.steady,
    )


def _layers(
    model: nn.Module, selection: Selection, frozen: Set[str]
) -> tuple[list[MeasuredLayer], dict[str, str]]:
    """Return the layers to calibrate, and the names of all others with the reason."""
    found: dict[int, MeasuredLayer] = {}
    left: dict[str, str] = {}
    for module, decision in decisions_on(model, selection, dims=(1, 2, 3)).items():
        layer: Any = module
        reason = selection.reason_left_out(decision.names)
        if not frozen.isdisjoint(decision.names):
            reason = _FROZEN
        has_code = isinstance(layer, batchnorm._BatchNorm)
        if reason is None and not (has_code and _has_statistics(layer)):
            reason = decision.reason or f"{decision.type_name}, no BatchNorm"
        if reason is not None:
            left |= dict.fromkeys(decision.names, reason)
            continue
        new = MeasuredLayer([], layer.running_mean, layer.running_var, float(layer.eps))
        measured = found.setdefault(id(layer.running_mean), new)
        measured.names += decision.names
        if layer.num_batches_tracked is not None:
            measured.counters.append(layer.num_batches_tracked)
    for name, module in model.named_modules(remove_duplicate=False):
        if is_frozen_layer(module):
            left[name] = _FROZEN
    return list(found.values()), left


def _has_statistics(layer: Any) -> bool:
    # What is no buffer, such as a parameter, is not for data to form.
    tensors = (layer._buffers.get("running_mean"), layer._buffers.get("running_var"))
    return all(
        isinstance(tensor, Tensor) and not nn.parameter.is_lazy(tensor) and not tensor.is_meta
        for tensor in tensors
    )


def _values(*tensors: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    first, second = (tuple(tensor.detach().double().tolist()) for tensor in tensors)
    return first, second


def _calibrated(
    layer: MeasuredLayer, uses: int, before: tuple[tuple[float, ...], tuple[float, ...]]
) -> CalibratedLayer:
    means, variances = after = _values(layer.mean, layer.variance)
    return CalibratedLayer(
        names=tuple(layer.names),
        means=means,
        variances=variances,
        elements=cast(Moments, layer.formed).count,
        uses=uses,
        drift=drift_of(before, after, layer.eps),
    )
