"""Makes TorchScript out of the live model of a file. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from frozenbn_cli import torch_jit
from frozenbn_cli.batch_norms.batch_norm import Eps
from frozenbn_cli.checkpoints import Checkpoint, StateDict
from frozenbn_cli.errors import DependencyError, UnsupportedFileError, UsageError
from frozenbn_cli.live_models.building import scripted, state_of
from frozenbn_cli.live_models.guarding import first_line, foreign_code
from frozenbn_cli.live_models.inputs import dtype_of
from frozenbn_cli.live_models.run_options import RunOptions
from frozenbn_cli.loading import freeze_layers
from frozenbn_cli.stages import begin
from frozenbn_cli.verification.models import module_loader
from frozenbn_cli.verification.running import Loader, find_inputs

__all__ = ["Made", "make_archive"]


@dataclass(frozen=True, slots=True)
class Made:
    """What came of making an archive.

    Attributes:
        how: ``scripted``, or ``traced`` where scripting failed.
        scripting_error: Why scripting failed; empty if it did not.
        added: The buffers that a state dict leaves out, and TorchScript cannot.
    """

    how: Literal["scripted", "traced"]
    scripting_error: str
    added: frozenset[str]


def make_archive(
    checkpoint: Checkpoint,
    part: StateDict,
    layers: Mapping[str, Eps],
    path: Path,
    options: RunOptions,
) -> Made:
    """Freeze layers of the live model of a file, and save it as TorchScript.

    Args:
        checkpoint: A file that is no archive.
        part: The state dict of it that is meant.
        layers: The layers to freeze, with their eps.
        path: Where the archive goes.
        options: The model that the file belongs to, or that it is trusted; inputs for tracing.

    Raises:
        DependencyError: This PyTorch has no TorchScript.
        UsageError: There is no model, or it does not fit the file.
        UnsupportedFileError: It can be neither scripted nor traced.
    """
    if not torch_jit.IS_THERE:
        raise DependencyError(torch_jit.MISSING, advice="Write --to safetensors instead.")
    loader = module_loader(checkpoint, part, options)
    if isinstance(loader, str):
        raise UsageError("--to torchscript", found=loader)
    model = loader()
    with foreign_code():
        model = freeze_layers(model, layers)
    added = frozenset(dict(model.named_buffers())) - frozenset(state_of(model))
    compiled, error = scripted(model)
    how: Literal["scripted", "traced"] = "traced" if error else "scripted"
    if error:
        compiled = _traced(model, loader, options, error)
    with foreign_code():
        torch_jit.save(compiled, path)
    return Made(how, error, added)


def _traced(model: nn.Module, loader: Loader, options: RunOptions, scripting_error: str) -> Any:
    inputs = find_inputs(loader, options)
    if isinstance(inputs, str):
        raise _impossible(scripting_error, inputs)
    begin("tracing the model")
    try:
        with foreign_code(), torch.no_grad():
            arguments, keywords = inputs.of_dtype(dtype_of(model))
            return torch_jit.trace(model, arguments, keywords)
    except Exception as error:  # As above.
        raise _impossible(scripting_error, first_line(error)) from error


def _impossible(scripting: str, tracing: str) -> UnsupportedFileError:
    return UnsupportedFileError(
        f"the model can be neither scripted ({scripting}) nor traced ({tracing})",
        advice="Write --to safetensors instead.",
    )
