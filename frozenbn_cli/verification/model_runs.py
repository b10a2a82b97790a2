"""One model, run once: what came out of it, and what it changed. Runs models, and imports torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from frozenbn_cli import torch_jit
from frozenbn_cli.errors import FrozenBNError
from frozenbn_cli.live_models.guarding import first_line, foreign_code, last_line
from frozenbn_cli.live_models.inputs import Inputs, dtype_of
from frozenbn_cli.stages import begin
from frozenbn_cli.verification.leaves import Leaves, leaf_differences, leaves_of
from frozenbn_cli.verification.loaders import Loader
from frozenbn_cli.verification.tolerance import EXACT

__all__ = [
    "LoadingError",
    "ModelError",
    "Run",
    "buffers_of",
    "changed",
    "load",
    "ran",
]


class ModelError(Exception):
    """A model raised something.

    Attributes:
        first: The first line of it.
        last: The last line, which in TorchScript comes after its traceback.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.first = first_line(error)
        self.last = last_line(error)


class LoadingError(ModelError):
    """A model cannot be loaded."""


@dataclass(frozen=True, slots=True)
class Run:
    """What became of a model on one set of inputs.

    Attributes:
        inputs: What it was called with.
        outputs: The parts of what came out, each with its place.
        changed: The buffers that it changed, by name, as they are after it.
    """

    inputs: Inputs
    outputs: Leaves
    changed: dict[str, Leaves]


def load(loader: Loader) -> Any:
    """Load a model, and put it in eval.

    Raises:
        LoadingError: It, or PyTorch, raised something.
    """
    begin("loading the model")
    try:
        with foreign_code():
            model = loader()
            model.eval()  # Models that overwrite it often return nothing.
    except FrozenBNError:
        raise
    except Exception as error:  # A model is foreign code, which may raise anything.
        raise LoadingError(error) from error
    return model


def ran(model: Any, inputs: Inputs, count: Callable[[int], None] = lambda _: None) -> Run:
    """Run a model, as it is.

    Args:
        model: The model.
        inputs: What it is called with.
        count: Is told of the run once it is over.

    Raises:
        ModelError: It raised something.
    """
    try:
        buffers = buffers_of(model)
        outputs = _outputs(model, inputs)
        after = buffers_of(model)
    except Exception as error:  # As above.
        raise ModelError(error) from error
    count(1)
    return Run(inputs, outputs, changed(buffers, after))


def changed(before: dict[str, Leaves], after: dict[str, Leaves]) -> dict[str, Leaves]:
    """Return the buffers that are other than before, or were not there, as they are now."""
    return {
        name: value
        for name, value in after.items()
        if name not in before or leaf_differences(before[name], value, EXACT)
    }


def buffers_of(model: Any) -> dict[str, Leaves]:
    """Return the buffers of a model under each of their names."""
    named = model.named_buffers(remove_duplicate=False)
    return {name: leaves_of(value, name) for name, value in named}


def _outputs(model: Any, inputs: Inputs) -> Leaves:
    """Return what comes out, without an optimiser that changes an archive from run to run."""
    with foreign_code(), torch.no_grad(), torch_jit.as_written():
        arguments, keywords = inputs.of_dtype(dtype_of(model))
        return leaves_of(model(*arguments, **keywords))
