"""What the record of a conversion says: of the input, what decided, and the layers it froze."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from frozenbn_cli.batch_norms.frozen_model import FrozenModel
from frozenbn_cli.batch_norms.record import ConversionRecord, FrozenLayers, RecordedClaim
from frozenbn_cli.conversion.planning import ConversionPlan
from frozenbn_cli.verification.claims import CLAIMS
from frozenbn_cli.version import __version__, torch_version

__all__ = ["longest_record"]


def longest_record(plan: ConversionPlan, *, sha256: str, date: str) -> ConversionRecord:
    """Return the record with every claim, which is as long as it can become.

    Args:
        plan: What is to be written.
        sha256: Of the input.
        date: When the conversion was begun.
    """
    checkpoint, part = plan.checkpoint, plan.part
    source: dict[str, str | int] = {
        "file": checkpoint.path.name,
        "sha256": sha256,
        "size_bytes": checkpoint.size_bytes,
    }
    before = ConversionRecord.from_metadata(checkpoint.metadata)
    own = _frozen_layers(plan.main, before, in_file=plan.edited is not None)
    deciding = plan.options.deciding(plan.to)
    if part.renaming.steps and not plan.edited:
        deciding["renamed"] = [list(step) for step in part.renaming.steps]
    recognised = {match.prefix: match.names for match in plan.main.plan.matches}
    record = ConversionRecord(
        __version__,
        source,
        own.layers,
        (),
        deciding,
        recognised,
        dims_of=own.dims_of,
        rewritten=own.rewritten,
        state_dicts=_recorded_models(plan.models, before) if plan.edited else {},
        optimizers={
            each.optimizer.key: tuple(sorted(each.places))
            for each in (plan.edited.optimizers if plan.edited else ())
        },
        date=date,
        torch=torch_version(),
    )
    return replace(record, verified=CLAIMS, claims=tuple(map(RecordedClaim.longest, CLAIMS)))


def _frozen_layers(
    model: FrozenModel, before: ConversionRecord | None, *, in_file: bool
) -> FrozenLayers:
    """Return what a record says of the layers of one model, those frozen before included.

    Args:
        model: The model, with what becomes of its layers.
        before: The record of an earlier conversion, if the input has one.
        in_file: Whether the output has the names of the input; else those of the report.
    """
    known = FrozenLayers()
    if before is not None:
        own = before.of(model.part)
        renamed = FrozenLayers(own.layers, own.dims_of, own.rewritten)
        known = before.of_key(model.key) if in_file else renamed
    layers, dims_of = dict(known.layers), dict(known.dims_of)
    rewritten = dict(known.rewritten)
    for item in model.frozen:
        layer = item.layer
        name = model.stored_layer(item) if in_file else layer.name
        layers[name] = model.retargeting.stated if model.retargeting else layer.eps
        if layer.spatial_dims not in (None, 2):
            dims_of[name] = layer.spatial_dims
        if model.retargeting and layer.name in model.retargeting.before:
            rewritten[name] = layer.eps
    return FrozenLayers(layers, dims_of, rewritten)


def _recorded_models(
    models: Iterable[FrozenModel], before: ConversionRecord | None
) -> dict[str, FrozenLayers]:
    """Return what a record says of each model of a training checkpoint, by its key.

    What was frozen before, in a model that is left alone now, stays recorded.
    """
    known = dict(before.state_dicts) if before else {}
    return known | {model.key: _frozen_layers(model, before, in_file=True) for model in models}
