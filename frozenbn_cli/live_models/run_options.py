"""Which model is run to verify a file, and on what."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frozenbn_cli.errors import UsageError

if TYPE_CHECKING:  # The command line need not wait for what opens files.
    from frozenbn_cli.checkpoints import Checkpoint, StateDict

__all__ = ["MOST_RUNS", "RunOptions"]

MOST_RUNS = 100
"""The outputs of all runs of the original are kept until the converted model gives its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """Which model is run to verify a file, and on what.

    Attributes:
        model: Returns a new module, of the architecture that the file belongs to; None where the
            file itself holds all of the model, or nothing is to be run.
        input_shapes: Of the inputs, one each; found from the first convolution if there are none.
        inputs: A file of inputs instead: .npz, .npy, .safetensors or .pt.
        seed: Of the first random inputs.
        runs: On how many random inputs, at most 100; each has a seed of its own.
        timeout: For how many seconds the code of a file may run, in a process of its own.
        trust: Load pickled modules, which executes code in the file, and run archives also where
            their code has operators that read or write files.
    """

    model: Callable[[], Any] | None = None
    input_shapes: tuple[tuple[int, ...], ...] = ()
    inputs: Path | None = None
    seed: int = 0
    runs: int = 1
    timeout: float = 300.0
    trust: bool = False

    def runs_code_of(self, checkpoint: Checkpoint, part: StateDict) -> bool:
        """Return whether verifying a state dict of a file runs code that is in the file."""
        is_pickle = part.is_module and checkpoint.program is None
        is_trusted = is_pickle and self.trust and self.model is None
        return bool(checkpoint.script or checkpoint.program or is_trusted)

    def __post_init__(self) -> None:
        if not 1 <= self.runs <= MOST_RUNS:
            raise UsageError(f"runs {self.runs}", expected=f"1 to {MOST_RUNS}")
        if not 0 <= self.seed < 1 << 63:
            raise UsageError(f"seed {self.seed}", expected="0 or more, below 2^63")
        if not 0 < self.timeout < math.inf:
            raise UsageError(f"timeout {self.timeout:g}", expected="seconds, more than 0")
        if self.inputs is not None and (self.input_shapes or self.runs > 1 or self.seed):
            raise UsageError("inputs are given by a file, and also by shapes, runs or a seed")
