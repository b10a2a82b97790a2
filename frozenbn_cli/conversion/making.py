"""What archives that are made of the live model of a file have in common. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn

from frozenbn_cli.batch_norms.batch_norm import Eps
from frozenbn_cli.checkpoints import Checkpoint, StateDict
from frozenbn_cli.errors import UsageError
from frozenbn_cli.live_models.guarding import foreign_code
from frozenbn_cli.live_models.run_options import RunOptions
from frozenbn_cli.loading import freeze_layers
from frozenbn_cli.outputs import OutputFormat
from frozenbn_cli.verification.loaders import Loader, module_loader

__all__ = ["Made", "frozen_model"]


@dataclass(frozen=True, slots=True)
class Made:
    """What came of making an archive.

    Attributes:
        how: It was made, in words, such as ``scripted``.
        reason: Why it was not made in the way that was tried first; empty if it was.
        record_path: The record of the archive, empty yet, in which our own belongs.
        added: The buffers that a state dict leaves out, and the archive cannot.
        beside: The entries that the archive keeps as constants, beside those of a state dict.
    """

    how: str
    reason: str
    record_path: str
    added: frozenset[str] = frozenset()
    beside: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.how} ({self.reason})" if self.reason else self.how


def frozen_model(
    checkpoint: Checkpoint,
    part: StateDict,
    layers: Mapping[str, Eps],
    options: RunOptions,
    to: OutputFormat,
) -> Loader:
    """Return what loads the live model of a file, with layers of it frozen.

    Args:
        checkpoint: The file.
        part: The state dict of it that is meant.
        layers: The layers to freeze, with their eps.
        options: The model that the file belongs to, or that it is trusted.
        to: The format that it becomes.

    Raises:
        UsageError: There is no model.
    """
    loader = module_loader(checkpoint, part, options)
    if isinstance(loader, str):
        raise UsageError(f"--to {to}", found=loader)
    return partial(_frozen, loader, layers)


def _frozen(loader: Loader, layers: Mapping[str, Eps]) -> nn.Module:
    model = loader()
    with foreign_code():
        return freeze_layers(model, layers)
