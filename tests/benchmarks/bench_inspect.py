"""Measures `frozenbn inspect` as a process: time and peak memory, beside listing with torch.

    python -m tests.benchmarks.bench_inspect            # 100 MB
    python -m tests.benchmarks.bench_inspect --large    # and 2 GB, on disk as well

Bars: 100 MB within 0.5 s and 64 MB resident, hardly more for 2 GB. Files are read once before, so
that the disk is not what is measured. This process stays small, for a child's peak memory starts
from its parent's: the files are made in a child too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

_RUNS = 5

_MAKE = """
import sys, torch
path, copies = sys.argv[1], int(sys.argv[2])
state = {}
for index in range(copies):
    generator = torch.Generator().manual_seed(index)
    for block in range(16):
        name = f"stage{index}.block{block}"
        state[f"{name}.conv.weight"] = torch.randn(256, 256, 5, 5, generator=generator)
        state[f"{name}.bn.weight"] = torch.ones(256)
        state[f"{name}.bn.bias"] = torch.zeros(256)
        state[f"{name}.bn.running_mean"] = torch.randn(256, generator=generator)
        state[f"{name}.bn.running_var"] = torch.rand(256, generator=generator) + 0.5
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(1000)
torch.save(state, path)
"""
_LIST_WITH_TORCH = """
import sys, torch
for name, tensor in torch.load(sys.argv[1], weights_only=True).items():
    if name.endswith("running_var"):
        print(name, tuple(tensor.shape), tensor.min(), tensor.max())
"""


def run(*command: str) -> tuple[float, int, float]:
    """Return the median seconds, the peak resident bytes and the spread of seconds of a command."""
    seconds, peaks = [], []
    for _ in range(_RUNS):
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds.append(time.perf_counter() - started)
        peaks.append(usage.ru_maxrss * 1024)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed")
    return median(seconds), max(peaks), max(seconds) - min(seconds)


def main() -> None:
    """Make the files, measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--large", action="store_true", help="measure a 2 GB file too")
    arguments = parser.parse_args()
    print(f"{'what':<34}{'size':>10}{'seconds':>10}{'spread':>9}{'peak MB':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for copies in (1, 19) if arguments.large else (1,):
            path = Path(folder) / f"{copies}.pt"
            subprocess.run([sys.executable, "-c", _MAKE, path, str(copies)], check=True)
            commands = {"frozenbn inspect": [sys.executable, "-m", "frozenbn_cli", "inspect"]}
            commands["torch.load, list the variances"] = [sys.executable, "-c", _LIST_WITH_TORCH]
            for name, command in commands.items():
                seconds, peak, spread = run(*command, str(path))
                size = path.stat().st_size / 1e6
                print(f"{name:<34}{size:>7.0f} MB{seconds:>10.2f}{spread:>9.2f}{peak / 1e6:>9.0f}")


if __name__ == "__main__":
    main()
