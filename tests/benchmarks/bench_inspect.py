"""Measures `frozenbn --help` and `frozenbn inspect` as processes, beside listing with torch.

Bars: help within 0.3 s; 100 MB within 0.5 s and 64 MB resident, hardly more for 2 GB.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.processes import FROZENBN, in_turns, print_head, print_row, state_dict_of

_LIST_WITH_TORCH = """
import sys, torch
for name, tensor in torch.load(sys.argv[1], weights_only=True).items():
    if name.endswith("running_var"):
        print(name, tuple(tensor.shape), tensor.min(), tensor.max())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="3 runs, and no large file")
    quick = parser.parse_args().quick
    runs = 3 if quick else 7
    print_head()
    starts = {
        "frozenbn --help": (*FROZENBN, "--help"),
        "python -c 'import typer, rich.table'": (sys.executable, "-c", "import typer, rich.table"),
        "python -c 'import torch'": (sys.executable, "-c", "import torch"),
    }
    for name, row in in_turns(starts, runs=runs).items():
        print_row(name, 0, row)
    with tempfile.TemporaryDirectory() as folder:
        for megabytes in (100,) if quick else (100, 2000):
            path = state_dict_of(Path(folder), megabytes)
            commands = {
                "frozenbn inspect": (*FROZENBN, "inspect", str(path)),
                "torch.load, list the variances": (
                    sys.executable, "-c", _LIST_WITH_TORCH, str(path)
                ),
            }  # fmt: skip
            for name, row in in_turns(commands, runs=runs).items():
                print_row(name, path.stat().st_size, row)


if __name__ == "__main__":
    main()
