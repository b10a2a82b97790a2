"""What a conversion changed in a training checkpoint, as the record in its output says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from frozenbn_cli.batch_norms.batch_norm import BatchNorm
from frozenbn_cli.batch_norms.frozen_model import FrozenModel
from frozenbn_cli.batch_norms.plan import Edit, LayerPlan, Plan
from frozenbn_cli.batch_norms.record import ConversionRecord, FrozenLayers
from frozenbn_cli.batch_norms.target_eps import Retargeting, retargeted
from frozenbn_cli.checkpoints import Checkpoint, StateDict
from frozenbn_cli.checkpoints.pickled import read_stored
from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.errors import located
from frozenbn_cli.training.edited import (
    EditedCheckpoint,
    patches_of,
    read_checkpoint,
)
from frozenbn_cli.training.editing import storage_keys
from frozenbn_cli.training.optimizer_states import find_optimizers
from frozenbn_cli.training.reconciling import Reconciled
from frozenbn_cli.verification.checkpoints import verify_checkpoint_contents
from frozenbn_cli.verification.claims import Claim
from frozenbn_cli.verification.tolerance import Tolerance

__all__ = ["contents_of_all", "recorded_keys"]


def contents_of_all(
    files: tuple[Checkpoint, Checkpoint],
    parts: Sequence[tuple[StateDict, Plan]],
    claims: Sequence[Claim],
    tolerance: Tolerance,
) -> Claim:
    """Return the claim on the contents of a training checkpoint that stayed one.

    Args:
        files: The original and the converted one.
        parts: The models that were frozen, as they are in the original, with their layers.
        claims: Those on the contents of each alone.
        tolerance: Of the values.
    """
    before, after = files
    for claim in claims:
        if claim.status != "equal":
            return claim
    if not tolerance.exact:
        said = "; what stands beside the state dicts is not compared within a tolerance"
        return replace(claims[0], detail=claims[0].detail + said)
    record = ConversionRecord.from_metadata(after.metadata)
    if record is None:
        return claims[0]
    with located(str(before.path)):
        edit = _recorded_edit(before, after.path, record, parts)
        return verify_checkpoint_contents(before, after.path, edit, lambda _: None)


def _recorded_edit(
    checkpoint: Checkpoint,
    written: Path,
    record: ConversionRecord,
    parts: Sequence[tuple[StateDict, Plan]],
) -> EditedCheckpoint:
    """Return what was to change, as the record of the converted file says."""
    stored = read_checkpoint(checkpoint)
    root = stored.pickle.value
    models = [_model(part, plan, record) for part, plan in parts]
    found = find_optimizers(root, stored.finder) if record.optimizers else []
    optimizers = tuple(
        Reconciled(each, "", frozenset(record.optimizers[each.key]), (), "the record")
        for each in found
        if each.key in record.optimizers
    )
    with closing(ByteSource(written)) as source:
        left = storage_keys([read_stored(source).pickle.value])
    return EditedCheckpoint(
        stored,
        tuple(models),
        optimizers,
        frozenset(storage_keys([root]) - left),
        patches_of(models, stored),
    )


def recorded_keys(before: Checkpoint, after: Checkpoint, key: str | None) -> tuple[str, ...]:
    """Return the models that are verified together with all else in a training checkpoint.

    Args:
        before: The original.
        after: The converted file.
        key: The one state dict that is meant, so that nothing else is.

    Returns:
        Their keys; none where one state dict is meant, or either file is no such checkpoint.
    """
    record = ConversionRecord.from_metadata(after.metadata)
    if record is None or key is not None or before.container != after.container:
        return ()
    there = {part.key for part in before.state_dicts}
    keys = [own for own in record.state_dicts if own in there]
    if len(keys) < len(record.state_dicts) or before.script:
        return ()
    known = ConversionRecord.from_metadata(before.metadata)
    done = known.state_dicts if known else {}
    return tuple(own for own in keys if record.state_dicts[own] != done.get(own))


def _model(part: StateDict, plan: Plan, record: ConversionRecord) -> FrozenModel:
    own = record.of(part)
    known = FrozenLayers(own.layers, own.dims_of, own.rewritten)
    items = tuple(
        _as_recorded(item, known)
        for item in plan.layers
        if item.layer.name in known.layers and not item.layer.frozen_already
    )
    edits = tuple(
        Edit("drop", item.layer.entry_name("num_batches_tracked"), "as recorded")
        for item in items
        if "num_batches_tracked" in item.layer.tensors
    )
    return FrozenModel(part, Plan(items, edits), _retargeting(Plan(items, edits), known))


def _as_recorded(item: LayerPlan, known: FrozenLayers) -> LayerPlan:
    """Return the plan of a layer that was frozen, with the eps that it had."""
    layer: BatchNorm = item.layer
    eps = known.rewritten.get(layer.name, known.layers[layer.name])
    return replace(item, layer=replace(layer, eps=eps), action="freeze", reason=None)


def _retargeting(plan: Plan, known: FrozenLayers) -> Retargeting | None:
    targets: Mapping[float, None] = dict.fromkeys(
        known.layers[name].value for name in known.rewritten if name in known.layers
    )
    if len(targets) != 1:
        return None
    return retargeted(plan, next(iter(targets)))[1]
