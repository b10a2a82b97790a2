"""Makes TorchScript out of the live model of a file. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frozenbn_cli import torch_jit
from frozenbn_cli.batch_norms.batch_norm import Eps
from frozenbn_cli.checkpoints import Checkpoint, StateDict
from frozenbn_cli.checkpoints.torchscript import record_path
from frozenbn_cli.conversion.making import Made, frozen_model
from frozenbn_cli.errors import DependencyError, UnsupportedFileError
from frozenbn_cli.live_models.building import scripted, state_of
from frozenbn_cli.live_models.guarding import first_line, foreign_code
from frozenbn_cli.live_models.inputs import dtype_of
from frozenbn_cli.live_models.run_options import RunOptions
from frozenbn_cli.stages import begin
from frozenbn_cli.verification.loaders import Loader
from frozenbn_cli.verification.running import find_inputs

__all__ = ["make"]


def make(
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
    loader = frozen_model(checkpoint, part, layers, options, "torchscript")
    model = loader()
    added = frozenset(dict(model.named_buffers())) - frozenset(state_of(model))
    compiled, error = scripted(model)
    if error:
        compiled = _traced(model, loader, options, error)
    with foreign_code():
        torch_jit.save(compiled, path)
    # PyTorch calls the folder in an archive as the file.
    how = "traced" if error else "scripted"
    return Made(how, error, record_path(f"{path.stem}/"), added)


def _traced(model: nn.Module, loader: Loader, options: RunOptions, scripting_error: str) -> Any:
    inputs = find_inputs(loader, options)
    if isinstance(inputs, str):
        raise _impossible(scripting_error, inputs)
    begin("tracing the model")
    try:
        with foreign_code(), torch.no_grad():
            arguments, keywords = inputs.of_dtype(dtype_of(model))
            return torch_jit.trace(model, arguments, keywords)
    except Exception as error:  # A model is foreign code, which may raise anything.
        raise _impossible(scripting_error, first_line(error)) from error


def _impossible(scripting: str, tracing: str) -> UnsupportedFileError:
    return UnsupportedFileError(
        f"the model can be neither scripted ({scripting}) nor traced ({tracing})",
        advice="Write --to safetensors instead.",
    )
