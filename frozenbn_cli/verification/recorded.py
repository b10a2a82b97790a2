"""What the record of a converted file says of its making, where the user does not say it anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from frozenbn_cli.batch_norms.batch_norm import find_batch_norms
from frozenbn_cli.batch_norms.plan import Plan
from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.checkpoints import Checkpoint, StateDict
from frozenbn_cli.errors import UsageError
from frozenbn_cli.selection import Selection
from frozenbn_cli.verification.terms import Recorded, VerifyOptions

__all__ = ["are_swapped", "check_order", "recorded_of"]


def recorded_of(before: Checkpoint, after: Checkpoint, options: VerifyOptions) -> Recorded:
    """Return what the record of the converted file adds to what the user says.

    Args:
        before: The original; a key that it lacks is that of another file.
        after: The converted file.
        options: What the user says, which comes first.
    """
    record = ConversionRecord.from_metadata(after.metadata)
    if record is None:
        return Recorded()
    said = record.options or {}
    key = said.get("key")
    keys = {part.key for part in before.state_dicts} | set(before.others)
    # A target eps is not what the layers had.
    had = {**record.layers, **record.rewritten}
    given = {eps.value for eps in had.values() if eps.source == "given"}
    is_open = options.selection == Selection()
    return Recorded(
        key=key if options.key is None and key in keys else None,
        eps=tuple(sorted(given)) if options.eps is None else (),
        selection=_selection(said) if is_open else Selection(),
        dims=None if options.dims else record.dims,
        renamed=record.renamed_by,
    )


def _selection(said: Mapping[str, Any]) -> Selection:
    """Return the selection that a record holds, as far as it is one."""
    dims_of, state = said.get("dims_of"), said.get("state")
    pairs = dims_of.items() if isinstance(dims_of, dict) else ()
    return Selection(
        _texts(said.get("include")),
        _texts(said.get("exclude")),
        tuple((name, dims) for name, dims in pairs if dims in (1, 2, 3)),
        state if state in ("live", "frozen") else None,
    )


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def check_order(before: Checkpoint, after: Checkpoint) -> None:
    """Refuse files in the wrong order.

    Raises:
        UsageError: The first was made of the second.
    """
    record = ConversionRecord.from_metadata(before.metadata)
    if (
        record is not None
        and record.source.get("size_bytes") == after.size_bytes
        and record.source.get("sha256") == after.fingerprint()
    ):
        raise UsageError(
            f"was made of {after.path}",
            where=(str(before.path),),
            advice="Name the original first, and the converted file after it.",
        )


def are_swapped(plan: Plan, after: Checkpoint, converted: StateDict) -> bool:
    """Return whether the original alone is frozen."""
    if not plan.layers or not all(item.layer.frozen_already for item in plan.layers):
        return False
    live = find_batch_norms(converted)
    return (
        ConversionRecord.from_metadata(after.metadata) is None
        and bool(live)
        and not any(layer.frozen_already for layer in live)
    )
