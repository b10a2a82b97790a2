"""Which layers a converted file has frozen, and which it should have."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from frozenbn_cli.batch_norms.batch_norm import Eps, find_batch_norms
from frozenbn_cli.batch_norms.plan import Plan
from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.checkpoints import StateDict, StoredTensor
from frozenbn_cli.verification.claims import Claim, Difference, summary
from frozenbn_cli.verification.written import WrittenFile

__all__ = [
    "COUNT",
    "frozen_already",
    "frozen_layers",
    "kept_entries",
    "live_layers",
    "rewritten_layers",
    "unexpected_layers",
    "with_unexpected",
]

COUNT = "num_batches_tracked"
"""What a layer that is frozen needs no more."""


def frozen_layers(
    part: StateDict, metadata: Mapping[str, str], plan: Plan
) -> dict[str, Eps | None]:
    """Return the layers that a converted file froze, with the eps that it states.

    By its record or its classes; a file with neither is taken to have frozen the layers whose
    counts of batches are gone.
    """
    record = ConversionRecord.from_metadata(metadata)
    found: dict[str, Eps | None] = {}
    if record:
        # A class in the file counts for more than what its record says.
        live = live_layers(part)
        recorded = record.of(part).layers
        found |= {name: eps for name, eps in recorded.items() if name not in live}
    counted = {item.layer.name for item in plan.layers if COUNT in item.layer.tensors}
    for layer in find_batch_norms(part):
        # Where the original counts batches, what may be frozen is: no live layer lost its count.
        if layer.frozen_already or (layer.facts.may_be_frozen and layer.name in counted):
            found[layer.name] = layer.eps if layer.eps.source == "read" else found.get(layer.name)
    if found or any(not facts.may_be_frozen for facts in part.layers.values()):
        return found
    return {
        item.layer.name: None
        for item in plan.layers
        if item.action == "freeze"
        and COUNT in item.layer.tensors
        and item.layer.entry_name(COUNT) not in part.entries
        and item.layer.entry_name("running_var") in part.entries
    }


def rewritten_layers(
    part: StateDict, metadata: Mapping[str, str], frozen: Collection[str]
) -> dict[str, Eps]:
    """Return the eps that frozen layers had before their variances were rewritten for another."""
    record = ConversionRecord.from_metadata(metadata)
    before = record.of(part).rewritten if record else {}
    return {name: eps for name, eps in before.items() if name in frozen}


def live_layers(part: StateDict) -> set[str]:
    """Return the layers that a file's own classes show to be live."""
    if not part.is_module:
        return set()
    return {layer.name for layer in find_batch_norms(part) if not layer.frozen_already}


def kept_entries(
    original: StateDict, written: WrittenFile, frozen: Collection[str]
) -> dict[str, StoredTensor]:
    """Return the entries that have to be there still: all but the counts of frozen layers.

    Such a count may stay, for code that reads it, if it is the same.
    """
    names = written.names()
    return {
        name: entry
        for name, entry in original.entries.items()
        if name in names or not (name.endswith(COUNT) and name[: -len(COUNT) - 1] in frozen)
    }


def unexpected_layers(
    plan: Plan, stated: Mapping[str, object], live: Collection[str]
) -> list[Difference]:
    """Return the layers that should be frozen and are not, and the reverse."""
    found = []
    for item in plan.layers:
        name, shown = item.layer.name, item.layer.name or "the layer"
        if item.action == "freeze" and name not in stated:
            kind = f"BatchNorm{item.layer.spatial_dims or 2}d"
            found.append(Difference(shown, f"a {kind} that is live in the converted file"))
        elif item.layer.frozen_already and name in live:
            found.append(Difference(shown, "frozen in the original, live in the converted file"))
        elif item.action == "leave" and not item.layer.frozen_already and name in stated:
            meant = " (--dims 1,2,3 takes it in)" if item.stays_live else ""
            said = f"frozen in the converted file, but {item.reason}{meant}"
            found.append(Difference(shown, said))
    known = {item.layer.name for item in plan.layers}
    found += [Difference(name, "no layer of the original") for name in stated if name not in known]
    return found


def frozen_already(plan: Plan) -> list[str]:
    """Return the layers that are frozen in the original."""
    return [item.layer.name for item in plan.layers if item.layer.frozen_already]


def with_unexpected(claim: Claim, unexpected: list[Difference], count: int) -> Claim:
    """Return the claim on layers with what is wrong beside their outputs."""
    found = [*(claim.differences if claim.status == "different" else ()), *unexpected]
    said = summary(found, max(count, len(found)), "layers")
    if not count:
        said = f"no layer of the original is frozen in the converted file; {said}"
    return Claim("layers", "different", said, count, tuple(found))
