"""Looks at a checkpoint: what it is, which BatchNorm layers it holds, what `convert` would do."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from frozenbn_cli.batch_norms.batch_norm import BatchNorm
from frozenbn_cli.batch_norms.findings import STRUCTURAL
from frozenbn_cli.batch_norms.plan import LayerPlan, Plan, plan_state_dict
from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.batch_norms.summaries import Summary, summaries_of
from frozenbn_cli.checkpoints import StateDict, open_checkpoint
from frozenbn_cli.errors import located
from frozenbn_cli.live_models.resolving import fitted_to
from frozenbn_cli.live_models.target import name_of_model, no_model_wanted
from frozenbn_cli.selection import Selection
from frozenbn_cli.stages import import_torch_for

__all__ = [
    "FIRST_DECADE",
    "InspectedStateDict",
    "Inspection",
    "Statistics",
    "inspect_file",
]

FIRST_DECADE = -5
"""The first bin of a distribution holds what is below 10 to this power, the last what is above."""

_DECADES = 8


@dataclass(frozen=True, slots=True)
class Statistics:
    """The running statistics of one layer at a glance.

    Attributes:
        mean: The smallest and the largest running mean.
        variance: The smallest and the largest running variance.
        variance_decades: How many channels have a variance below 1e-5, from there to 1e-4, and so
            on by powers of ten, and from 10 upward.
    """

    mean: tuple[float, float]
    variance: tuple[float, float]
    variance_decades: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedStateDict:
    """One model in a file.

    Attributes:
        key: Where in the file it stands; empty if it is the whole file.
        prefix: What was taken off every name, such as ``module.``.
        renamed: What else names begin with in the file, and what instead here.
        entries: The number of tensors.
        elements: The number of their elements, per dtype.
        left_out: What else it holds, which is no entry: name and description.
        unsupported: Tensors that `convert` cannot write, such as sparse ones.
        plan: The BatchNorm layers, findings, and what `convert` would do.
        statistics: Of each layer that has readable ones, by name.
        summaries: The numbers of each layer, by name, where they are asked for.
        misfits: How its entries do not fit the model that was given, in words.
    """

    key: str
    prefix: str
    renamed: tuple[tuple[str, str], ...] = ()
    entries: int
    elements: Mapping[str, int]
    left_out: Mapping[str, str]
    unsupported: Mapping[str, str]
    plan: Plan
    statistics: Mapping[str, Statistics]
    summaries: Mapping[str, Summary] = field(default_factory=dict)
    misfits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What a file is.

    Attributes:
        path: As the user gave it.
        kind: What it holds.
        container: How it is stored.
        size_bytes: Its size, or that of all shards.
        state_dicts: The models in it.
        beside: What it holds beside them: name and description.
        foreign_names: What unpickling it would import that a model has no need of, with whether
            it would also be called.
        advice: What can be done with a kind that holds no state dict.
        model: The name of the model that its layers were described by; empty if there is none.
        record: What the file says of its conversion, if frozenbn wrote it.
        seconds: How long it took.
    """

    path: Path
    kind: str
    container: str
    size_bytes: int
    state_dicts: tuple[InspectedStateDict, ...]
    beside: Mapping[str, str]
    foreign_names: Mapping[str, bool]
    advice: str
    model: str = ""
    record: ConversionRecord | None = None
    seconds: float

    @property
    def has_errors(self) -> bool:
        """Whether there is a finding that is an error, or a name that would be called."""
        return any(self.foreign_names.values()) or any(
            finding.severity == "error"
            for part in self.state_dicts
            for item in part.plan.layers
            for finding in item.findings
        )


def inspect_file(
    path: str | Path,
    *,
    key: str | None = None,
    keep_prefix: bool = False,
    strip_prefix: str = "",
    add_prefix: str = "",
    eps: float | None = None,
    selection: Selection | None = None,
    dims: Collection[int] | None = None,
    model: Callable[[], Any] | None = None,
    summarize: bool = False,
    may_recognise: bool = True,
) -> Inspection:
    """Look at a checkpoint. Nothing in it is executed, and of the tensors only statistics are read.

    Args:
        path: A file, or a folder with the index of a sharded safetensors checkpoint.
        key: Which state dict of a file that holds several; all if None.
        keep_prefix: Keep what wrappers put into names.
        strip_prefix: Taken off the names that begin with it.
        add_prefix: Put in front of every name.
        eps: Of every layer whose eps the file does not hold.
        selection: Which layers `convert` would be asked to freeze.
        dims: Of how many spatial dimensions, of 1, 2 and 3; None for no choice, which is 2.
        model: Returns a new module that the file belongs to, which knows each layer's class and
            eps; this imports torch.
        summarize: Sum up the numbers of each layer, for a report that draws them.
        may_recognise: Look layers up whose eps is not known among those of public architectures.

    Raises:
        InputError: The file is damaged or of an unsupported kind.
        UsageError: There is no state dict at ``key``, or a pattern matches no layer; or the model
            cannot be built, or contradicts the file.
    """
    started = time.perf_counter()
    rename = not (keep_prefix or strip_prefix or add_prefix)
    with open_checkpoint(
        path, keep_prefix=keep_prefix, strip_prefix=strip_prefix, add_prefix=add_prefix
    ) as checkpoint:
        planned = partial(
            plan_state_dict,
            metadata=checkpoint.metadata,
            eps=eps,
            selection=selection or Selection(),
            dims=dims,
            may_recognise=may_recognise,
        )
        with located(str(path)):
            parts = checkpoint.state_dicts if key is None else (checkpoint.state_dict(key),)
            if model is not None and (checkpoint.script or checkpoint.program):
                raise no_model_wanted()
            record = ConversionRecord.from_metadata(checkpoint.metadata)
            models = [fitted_to(part, model) for part in parts]
            inspected = tuple(
                _inspect(*_described(part, own, rename=rename), planned)
                for part, own in zip(parts, models, strict=True)
            )
            if summarize:
                inspected = tuple(
                    replace(part, summaries=summaries_of(part.plan)) for part in inspected
                )
        return Inspection(
            path=checkpoint.path,
            kind=checkpoint.kind,
            container=checkpoint.container,
            size_bytes=checkpoint.size_bytes,
            state_dicts=inspected,
            beside=checkpoint.beside,
            foreign_names=checkpoint.foreign_names,
            advice=checkpoint.advice,
            model=", ".join(dict.fromkeys(map(name_of_model, models))),
            record=record,
            seconds=time.perf_counter() - started,
        )


def _described(
    part: StateDict, model: Callable[[], Any] | None, *, rename: bool
) -> tuple[StateDict, tuple[str, ...]]:
    """Return a state dict with what a model says of it, and how it does not fit that model."""
    if model is None:
        return part, ()
    live_models = import_torch_for("frozenbn_cli.live_models.describing")
    described: tuple[StateDict, tuple[str, ...]] = live_models.described_by(
        model, part, rename=rename
    )
    return described


def _inspect(
    part: StateDict, misfits: tuple[str, ...], planned: Callable[[StateDict], Plan]
) -> InspectedStateDict:
    plan = planned(part)
    elements: Counter[str] = Counter()
    for tensor in part.entries.values():
        elements[tensor.dtype.name] += tensor.elements
    return InspectedStateDict(
        key=part.key,
        prefix=part.prefix,
        renamed=part.renaming.others,
        entries=len(part.entries),
        elements=dict(elements),
        left_out=part.left_out,
        unsupported=part.unsupported,
        plan=plan,
        misfits=misfits,
        statistics={
            item.layer.name: _statistics(item.layer) for item in plan.layers if _is_readable(item)
        },
    )


def _is_readable(plan: LayerPlan) -> bool:
    codes = {finding.code for finding in plan.findings}
    both = {"running_mean", "running_var"} <= plan.layer.tensors.keys()
    return both and not plan.layer.oddity and plan.layer.channels > 0 and not codes & STRUCTURAL


def _statistics(layer: BatchNorm) -> Statistics:
    means = layer.tensors["running_mean"].values()
    variances = layer.tensors["running_var"].values()
    decades = [0] * _DECADES
    for variance in variances:
        decades[_decade(variance)] += 1
    return Statistics(_range(means), _range(variances), tuple(decades))


def _range(values: tuple[float, ...]) -> tuple[float, float]:
    # NaN compares with nothing, so it would hide or spread at random.
    if any(math.isnan(value) for value in values):
        return math.nan, math.nan
    return min(values), max(values)


def _decade(variance: float) -> int:
    if not variance > 0:
        return 0
    exponent = math.floor(math.log10(variance)) if variance < math.inf else _DECADES
    return min(max(exponent - FIRST_DECADE + 1, 0), _DECADES - 1)
