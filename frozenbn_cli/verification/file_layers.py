"""The second claim on two files: each layer that was frozen computes the same."""

from __future__ import annotations

from dataclasses import replace

from frozenbn_cli.batch_norms.batch_norm import BatchNorm, Eps
from frozenbn_cli.verification.claims import Claim
from frozenbn_cli.verification.file_pair import FilePair
from frozenbn_cli.verification.freezing import (
    frozen_already,
    live_layers,
    unexpected_layers,
    with_unexpected,
)
from frozenbn_cli.verification.layers import verify_layers
from frozenbn_cli.wording import listed

__all__ = ["verify_file_layers"]


def verify_file_layers(pair: FilePair) -> Claim:
    """Run each layer that was frozen before and after, and check that no other layer was."""
    layers = (item.layer for item in pair.plan.layers)
    compared = {
        layer.name: _with_eps(layer, pair)
        for layer in layers
        if layer.name in pair.stated and layer.has_statistics
    }
    count = len(compared)
    claim = verify_layers(
        pair.written,
        {name: source for name, (source, _) in compared.items()},
        stated={name: eps for name, (_, eps) in compared.items()},
        rewritten=pair.rewritten,
        tolerance=pair.tolerance,
    )
    if unexpected := unexpected_layers(pair.plan, pair.stated, live_layers(pair.converted)):
        return with_unexpected(claim, unexpected, count)
    silent = [name for name in compared if pair.stated[name] is None]
    if silent and claim.status == "equal":
        reason = (
            f"the converted file does not state the eps of {len(silent):,} of "
            f"{count:,} layers; with the same eps their outputs are equal"
        )
        return Claim("layers", "not verified", reason, count)
    if not pair.stated and (unknown := frozen_already(pair.plan)):
        reason = (
            f"the converted file does not say whether {len(unknown):,} layers are frozen, "
            f"which the original froze: {listed(unknown)}"
        )
        return Claim("layers", "not verified", reason, count)
    return claim


def _with_eps(layer: BatchNorm, pair: FilePair) -> tuple[BatchNorm, Eps]:
    """Return a layer with the eps that it had, and the eps that it has once it is frozen.

    An original that does not hold it takes what the conversion was told.
    """
    eps = pair.stated[layer.name] or layer.eps
    is_open = layer.eps.source in ("assumed", "recognised")
    if layer.name in pair.rewritten:
        before = pair.rewritten[layer.name] if is_open else layer.eps
        return replace(layer, eps=before), eps
    if is_open and eps.source != "assumed":
        return replace(layer, eps=eps), eps
    # One that was assumed then is no statement against what is recognised now.
    return layer, layer.eps if is_open else eps
