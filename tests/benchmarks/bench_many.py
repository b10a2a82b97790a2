"""Measures `frozenbn convert` of many files with several jobs, beside one file after the other.

    python -m tests.benchmarks.bench_many               # 100 files of 30 MB
    python -m tests.benchmarks.bench_many --jobs 4

Bar: 2 jobs on 2 cores at least 1.6 times as fast as one file after the other, which is meant in two
ways: the command once for each file, and one command with one job. With one job a file is hashed
beside its conversion already, so that more than one core is busy there too. Files are read once
before, so that the disk is not what is measured; every output is brought to the disk.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests.benchmarks.processes import FROZENBN

_RUNS = 3
_COMMANDS = 8  # How many files are converted by a command for each.

_MAKE = """
import sys, torch
from pathlib import Path
state = {}
for block in range(50):
    channels = 64 if block < 40 else 512
    name = f"layer{block}"
    state[f"{name}.conv.weight"] = torch.randn(channels, 64 if block < 40 else 128, 3, 3)
    state[f"{name}.bn.weight"] = torch.ones(channels)
    state[f"{name}.bn.bias"] = torch.zeros(channels)
    state[f"{name}.bn.running_mean"] = torch.randn(channels)
    state[f"{name}.bn.running_var"] = torch.rand(channels) + 0.5
    state[f"{name}.bn.num_batches_tracked"] = torch.tensor(1000)
for index in range(int(sys.argv[2])):
    torch.save(state, Path(sys.argv[1], f"model{index}.pt"))
"""


@dataclass
class _Row:
    """One way to convert files: what it is called, how many it converts, and how."""

    name: str
    count: int
    work: Callable[[], None]
    seconds: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Files per second, in the median run."""
        return self.count / median(self.seconds)


def _measure(rows: Sequence[_Row], output: Path) -> None:
    """Take the seconds of each row; one round after the other, so that all see the same load."""
    for _ in range(_RUNS):
        for row in rows:
            shutil.rmtree(output, ignore_errors=True)
            output.mkdir()
            os.sync()
            started = time.perf_counter()
            row.work()
            row.seconds.append(time.perf_counter() - started)


def _rows(files: Sequence[Path], output: Path, jobs: int, options: Sequence[str]) -> list[_Row]:
    convert: list[str | Path] = [*FROZENBN, "convert", "--quiet", *options]
    some = files[:_COMMANDS]

    def each() -> None:
        for path in some:
            subprocess.run([*convert, path, "-o", output / f"{path.stem}.safetensors"], check=True)

    def together(jobs: int) -> None:
        command = [*convert, files[0].parent, "--output-dir", output, "--jobs", str(jobs)]
        subprocess.run(command, check=True)

    return [
        _Row("a command for each file", len(some), each),
        _Row("one command, 1 job", len(files), lambda: together(1)),
        _Row(f"one command, {jobs} jobs", len(files), lambda: together(jobs)),
    ]


def main() -> None:
    """Make the files, measure, and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="8 files")
    arguments = parser.parse_args()
    count = 8 if arguments.quick else arguments.files
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "zoo"), Path(folder, "out")
        source.mkdir()
        subprocess.run([sys.executable, "-c", _MAKE, source, str(count)], check=True)
        files = sorted(source.iterdir())
        total = sum(path.stat().st_size for path in files)
        print(f"{len(files)} files, {total / 1e6:,.0f} MB; a command for each of {_COMMANDS}")
        print(f"{'what':<40}{'files/s':>9}{'seconds':>9}{'spread':>9}{'/ each':>9}{'/ 1 job':>9}")
        for name, options in (("verified", []), ("not verified", ["--no-verify"])):
            rows = _rows(files, output, arguments.jobs, options)
            _measure(rows, output)
            for row in rows:
                spread = max(row.seconds) - min(row.seconds)
                print(
                    f"{f'{name}: {row.name}':<40}{row.rate:>9.1f}{median(row.seconds):>9.2f}"
                    f"{spread:>9.2f}{row.rate / rows[0].rate:>9.1f}{row.rate / rows[1].rate:>9.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
