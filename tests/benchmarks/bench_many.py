"""Measures `frozenbn convert` of many files with several jobs, beside one file after the other.

    python -m tests.benchmarks.bench_many               # 16 files of 30 MB
    python -m tests.benchmarks.bench_many --jobs 4

Bar: 2 jobs on 2 cores at least 1.6 times as fast as one file after the other, which is meant in two
ways: the command once for each file, and one command with one job. With one job a file is hashed
beside its conversion already, so that more than one core is busy there too. Files are read once
before, so that the disk is not what is measured; every output is brought to the disk.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

_RUNS = 3

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


def measured(rows: dict[str, Callable[[], None]], output: Path) -> dict[str, list[float]]:
    """Return the seconds of each row; one round after the other, so that all see the same load."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(_RUNS):
        for name, work in rows.items():
            shutil.rmtree(output, ignore_errors=True)
            output.mkdir()
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def rows_of(
    files: list[Path], output: Path, jobs: int, options: list[str]
) -> dict[str, Callable[[], None]]:
    """Return what is measured, by name."""
    convert = [sys.executable, "-m", "frozenbn_cli", "convert", "--quiet", *options]

    def each() -> None:
        for path in files:
            subprocess.run([*convert, path, "-o", output / path.name], check=True)

    def together(jobs: int) -> None:
        command = [*convert, files[0].parent, "--output-dir", output, "--jobs", str(jobs)]
        subprocess.run(command, check=True)

    return {
        "a command for each file": each,
        "one command, 1 job": lambda: together(1),
        f"one command, {jobs} jobs": lambda: together(jobs),
    }


def main() -> None:
    """Make the files, measure, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="4 files")
    arguments = parser.parse_args()
    count = 4 if arguments.quick else arguments.files
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "zoo"), Path(folder, "out")
        source.mkdir()
        subprocess.run([sys.executable, "-c", _MAKE, source, str(count)], check=True)
        files = sorted(source.iterdir())
        total = sum(path.stat().st_size for path in files)
        print(f"{len(files)} files, {total / 1e6:,.0f} MB")
        print(f"{'what':<40}{'seconds':>9}{'spread':>9}{'files/s':>9}{'speed-up':>10}")
        for name, options in (("verified", []), ("not verified", ["--no-verify"])):
            seconds = measured(rows_of(files, output, arguments.jobs, options), output)
            first = median(next(iter(seconds.values())))
            for row, times in seconds.items():
                middle, spread = median(times), max(times) - min(times)
                print(
                    f"{f'{name}: {row}':<40}{middle:>9.2f}{spread:>9.2f}"
                    f"{len(files) / middle:>9.1f}{first / middle:>10.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
