"""Measures commands as processes: time and peak memory, several commands in turns.

A process that measures stays small, for a child's peak memory starts from its parent's: it imports
no torch, and files are made in a child too (`make_file`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

FROZENBN = (sys.executable, "-m", "frozenbn_cli")

# As in an installed package, whose modules are compiled.
_ENVIRONMENT = {
    name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
}


@dataclass(slots=True)
class Measured:
    """The runs of one command.

    Attributes:
        seconds: Of each run, from start to exit.
        peak_bytes: The most resident memory of any run, mapped pages included.
    """

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)

    def ratio_to(self, other: Measured) -> float:
        """Return how many times as long as ``other`` it takes: the median over the turns."""
        return median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def in_turns(
    commands: Mapping[str, Sequence[str]], *, runs: int, output: Path | None = None
) -> dict[str, Measured]:
    """Run each command once to warm up and then ``runs`` times, all of them in turns.

    Args:
        commands: By what they are called.
        runs: Of each.
        output: Is removed before each run, and what is on its way to the disk gets there first.
    """
    measured = {name: Measured() for name in commands}
    for turn in range(runs + 1):
        for name, command in commands.items():
            if output:
                output.unlink(missing_ok=True)
                os.sync()
            seconds, peak_bytes = _run(command)
            if turn:
                measured[name].seconds.append(seconds)
                measured[name].peak_bytes = max(measured[name].peak_bytes, peak_bytes)
    return measured


def _run(command: Sequence[str]) -> tuple[float, int]:
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=_ENVIRONMENT)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    return seconds, usage.ru_maxrss * unit


def make_file(script: str, path: Path, *arguments: object) -> Path:
    """Run a Python script that writes ``path``, and read the file once."""
    words = [sys.executable, "-c", script, str(path), *map(str, arguments)]
    subprocess.run(words, check=True)
    with path.open("rb") as file:
        while file.read(1 << 20):
            pass
    return path


def print_head(*extra: str) -> None:
    print(f"{'what':<42}{'size':>10}{'median s':>10}{'best s':>9}{'peak MB':>9}", end="")
    print(*(f"{name:>10}" for name in extra), sep="", flush=True)


def print_row(what: str, size_bytes: int, row: Measured, *extra: str) -> None:
    print(f"{what:<42}{size_bytes / 1e6:>7.0f} MB{row.median:>10.2f}{row.best:>9.2f}", end="")
    print(f"{row.peak_bytes / 1e6:>9.0f}", *(f"{text:>10}" for text in extra), sep="", flush=True)


MAKE_STATE_DICT = """
import sys, torch
path, layers, channels, kernel = sys.argv[1], *map(int, sys.argv[2:])
generator = torch.Generator().manual_seed(0)
state = {}
for index in range(layers):
    name = f"block{index}"
    state[f"{name}.conv.weight"] = torch.randn(
        channels, channels, kernel, kernel, generator=generator
    )
    state[f"{name}.bn.weight"] = torch.ones(channels)
    state[f"{name}.bn.bias"] = torch.zeros(channels)
    state[f"{name}.bn.running_mean"] = torch.randn(channels, generator=generator)
    state[f"{name}.bn.running_var"] = torch.rand(channels, generator=generator) + 0.5
    state[f"{name}.bn.num_batches_tracked"] = torch.tensor(1000)
torch.save(state, path)
"""
"""Arguments: the path, the number of layers, the channels and the kernel size."""


def state_dict_of(folder: Path, megabytes: int) -> Path:
    """Write a state dict of about this size, a BatchNorm2d for each 6.5 MB."""
    path = folder / f"{megabytes}.pt"
    return make_file(MAKE_STATE_DICT, path, max(round(megabytes / 6.56), 1), 256, 5)
