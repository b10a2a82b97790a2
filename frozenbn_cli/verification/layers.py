"""The second claim: frozen layers compute what BatchNorm does in eval."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from frozenbn_cli.batch_norms.batch_norm import BatchNorm, Eps
from frozenbn_cli.checkpoints import StoredTensor
from frozenbn_cli.containers.source import BytesExtent
from frozenbn_cli.foreign_code import apart
from frozenbn_cli.stages import begin, import_torch_for
from frozenbn_cli.verification.claims import Claim
from frozenbn_cli.verification.told_claims import claim_of, told
from frozenbn_cli.verification.tolerance import EXACT, Tolerance
from frozenbn_cli.verification.written import InertFile, StoredEntries, WrittenFile

__all__ = ["verify_layers"]

_RUNS = "frozenbn_cli.verification.layer_runs"
_MOST_SECONDS = 300.0


def verify_layers(
    written: WrittenFile,
    layers: Mapping[str, BatchNorm],
    *,
    stated: Mapping[str, Eps] | None = None,
    rewritten: Collection[str] = (),
    tolerance: Tolerance = EXACT,
) -> Claim:
    """Compare each frozen layer with its BatchNorm in eval, bit by bit, on probe inputs.

    A probe has the dimensions that the layer takes; of a layer that takes any, or of which it is
    not known, there are probes of all. They lie around the layer's running statistics and beyond,
    in both memory formats, with gradients and without, with the frozen layer in eval and in
    training mode.

    Where another process has imported PyTorch to run a model, it runs the layers too, in a fork in
    which no code of a file has run: importing it here as well takes longer.

    Args:
        written: The file, opened anew.
        layers: The source layers, by their names in the file.
        stated: The eps of each frozen layer; as the file states it if None.
        rewritten: The layers whose variances were rewritten, so that they may have another eps.
        tolerance: Of the outputs.
    """
    stated = written.stated_eps() if stated is None else stated
    how = stated, rewritten, tolerance
    if apart.is_prepared() and "torch" not in sys.modules and isinstance(written, InertFile):
        names = {layer.entry_name(role) for layer in layers.values() for role in layer.tensors}
        entries = {name: _held(written.entries[name]) for name in names & written.names()}
        held = {name: _held_layer(layer) for name, layer in layers.items()}
        begin("importing torch")  # As the other process may do still.
        with suppress(apart.JobFailed):
            job = partial(_run, StoredEntries(entries), held, *how)
            return claim_of("layers", apart.run_apart(job, timeout=_MOST_SECONDS))
    claim: Claim = import_torch_for(_RUNS).run_layers(written, layers, *how)
    return claim


def _run(*arguments: Any) -> dict[str, Any]:
    return told(import_torch_for(_RUNS).run_layers(*arguments))


def _held_layer(layer: BatchNorm) -> BatchNorm:
    return replace(layer, tensors={role: _held(each) for role, each in layer.tensors.items()})


def _held(stored: StoredTensor) -> StoredTensor:
    """Return a tensor in memory, from where another process can get it."""
    return StoredTensor.contiguous(stored.dtype, stored.shape, BytesExtent(stored.read()))
