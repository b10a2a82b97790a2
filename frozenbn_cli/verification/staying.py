"""Whether frozen layers stay as they are, whoever would change them. Runs models, imports torch."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch

from frozenbn_cli import torch_jit
from frozenbn_cli.live_models.guarding import foreign_code, last_line
from frozenbn_cli.live_models.inputs import Inputs, dtype_of
from frozenbn_cli.verification.claims import Claim, Difference

__all__ = ["changes_of_frozen", "claim_of_changes", "train_once"]

_ADVICE = "The model's own code changes it; leave the layer alone with --exclude."


def changes_of_frozen(changed: Iterable[str], frozen: Collection[str]) -> list[Difference]:
    """Return which of the buffers that a run changed are those of frozen layers.

    Args:
        changed: The names of the buffers.
        frozen: The names of the layers.
    """
    layers = set(frozen)
    return [
        Difference(name, "is changed by a run, and its layer is frozen")
        for name in changed
        if name.rpartition(".")[0] in layers
    ]


def claim_of_changes(changes: list[Difference], mode: str) -> Claim:
    """Return the claim on a model whose frozen layers change.

    Args:
        changes: Which buffers do.
        mode: In which the model was run.
    """
    said = f"{changes[0]}, {mode}"
    if len(changes) > 1:
        said += f"; and {len(changes) - 1:,} more"
    return Claim("model", "different", said, len(changes), tuple(changes), advice=_ADVICE)


def train_once(model: Any, inputs: Inputs) -> str | None:
    """Run a model with all of it in training mode; return why that fails, if it does."""
    try:
        with (
            foreign_code(),
            torch.random.fork_rng(devices=()),
            torch.no_grad(),
            torch_jit.as_written(),
        ):
            arguments, keywords = inputs.of_dtype(dtype_of(model))
            model.train()
            model(*arguments, **keywords)
    except Exception as error:  # A model is foreign code, which may raise anything.
        return last_line(error)
    return None
