"""Makes an exported program out of the live model of a file. Imports torch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from frozenbn_cli.batch_norms.batch_norm import Eps
from frozenbn_cli.batch_norms.record import METADATA_KEY
from frozenbn_cli.checkpoints import Checkpoint, StateDict
from frozenbn_cli.checkpoints.exported_programs import program_record_path
from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.conversion.making import Made, frozen_model
from frozenbn_cli.errors import UnsupportedFileError
from frozenbn_cli.exported.program_archive import ProgramArchive
from frozenbn_cli.live_models.guarding import first_line, foreign_code
from frozenbn_cli.live_models.inputs import USUAL_SIZES, Inputs, dtype_of
from frozenbn_cli.live_models.run_options import RunOptions
from frozenbn_cli.stages import begin
from frozenbn_cli.verification.loaders import Loader
from frozenbn_cli.verification.running import find_inputs

__all__ = ["make"]

_BATCH = "batch"


def make(
    checkpoint: Checkpoint,
    part: StateDict,
    layers: Mapping[str, Eps],
    path: Path,
    options: RunOptions,
) -> Made:
    """Freeze layers of the live model of a file, and save it as an exported program.

    The program takes batches of any size, where the model lets itself be exported so. It holds
    neither the inputs that it was made with nor where on this machine the code of the model is.

    Args:
        checkpoint: The file.
        part: The state dict of it that is meant.
        layers: The layers to freeze, with their eps.
        path: Where the archive goes.
        options: The model that the file belongs to, or that it is trusted; its inputs.

    Raises:
        UsageError: There is no model, or it does not fit the file.
        UnsupportedFileError: It cannot be exported.
    """
    loader = frozen_model(checkpoint, part, layers, options, "pt2")
    inputs = find_inputs(loader, options, sizes=USUAL_SIZES)
    if isinstance(inputs, str):
        raise _impossible(inputs)
    reason = ""
    begin("exporting the model for batches of any size")
    try:
        program = _exported_for_batches(loader, inputs)
    except Exception as error:  # A model is foreign code, which may raise anything.
        reason = f"a batch of any size failed: {first_line(error)}"
        begin("exporting the model")
        program = _exported_as_is(loader, inputs)
    _save(program, path)
    batches = "batches of this size alone" if reason else "batches of any size"
    return Made(
        f"exported for {inputs.shown}, and {batches}",
        reason,
        _record_path(path),
        beside=frozenset(program.constants) & frozenset(part.entries),
    )


def _exported_for_batches(loader: Loader, inputs: Inputs) -> Any:
    """Export a model for batches of any size, and have it run on one of the size that was found."""
    model = loader()
    # A batch of one is taken for one that never has another size.
    several = _bound(model, inputs.doubled())
    one = _bound(model, inputs)
    with foreign_code(), torch.no_grad():
        program = _export(model, several, _any_batch(several))
        program.module()(*one.args, **one.kwargs)
    return program


def _exported_as_is(loader: Loader, inputs: Inputs) -> Any:
    model = loader()
    bound = _bound(model, inputs)
    try:
        with foreign_code(), torch.no_grad():
            return _export(model, bound, None)
    except Exception as error:  # As above.
        raise _impossible(first_line(error)) from error


def _bound(model: nn.Module, inputs: Inputs) -> inspect.BoundArguments:
    """Return copies of inputs, by position wherever they can be: so the program takes them too."""
    arguments, keywords = inputs.of_dtype(dtype_of(model))
    return inspect.signature(model.forward).bind(*arguments, **keywords)


def _export(model: nn.Module, bound: inspect.BoundArguments, shapes: Any) -> Any:
    return torch.export.export(model, bound.args, bound.kwargs, dynamic_shapes=shapes, strict=False)


def _any_batch(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Return which dimension of which argument is the batch, in the form that PyTorch wants."""
    batch = torch.export.Dim(_BATCH)

    def shape_of(value: Any) -> Any:
        if isinstance(value, Tensor):
            return {0: batch} if value.dim() > 1 else None
        if isinstance(value, (list, tuple)):
            return type(value)(shape_of(part) for part in value)
        if isinstance(value, dict):
            return {name: shape_of(part) for name, part in value.items()}
        return None

    return {name: shape_of(value) for name, value in bound.arguments.items()}


def _save(program: Any, path: Path) -> None:
    """Save a program without its inputs, and without paths of this machine."""
    program._example_inputs = None  # Before 2.8, what has a setter does not take it.
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            node.meta.pop("stack_trace", None)
    with foreign_code():
        # PyTorch decides where in an archive such files have their place.
        torch.export.save(program, path, extra_files={METADATA_KEY: ""})


def _record_path(path: Path) -> str:
    with closing(ByteSource(path)) as source:
        return program_record_path(ProgramArchive(ZipArchive(source)))


def _impossible(reason: str) -> UnsupportedFileError:
    return UnsupportedFileError(
        f"the model cannot be exported ({reason})",
        advice="Write --to safetensors instead.",
    )
