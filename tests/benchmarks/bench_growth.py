"""Measures how `frozenbn` grows with the size of a file and with the number of its layers.

Bars: memory does not grow with the size; time grows linearly with the number of layers, so that the
milliseconds for each layer beyond the first ten stay the same.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.benchmarks.processes import (
    FROZENBN,
    MAKE_STATE_DICT,
    Measured,
    in_turns,
    make_file,
    print_head,
    print_row,
    state_dict_of,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="3 runs, up to 400 MB, 1,000 layers")
    quick = parser.parse_args().quick
    runs = 3 if quick else 5
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print_head()
        for megabytes in (100, 200, 400) if quick else (100, 200, 400, 800, 1600):
            path = state_dict_of(folder, megabytes)
            _print_rows(path, _measure(path, runs))
            path.unlink()
        print_head("ms/layer")
        first: dict[str, Measured] = {}
        for layers in (10, 100, 1000) if quick else (10, 100, 1000, 3000):
            path = make_file(MAKE_STATE_DICT, folder / "layers.pt", layers, 16, 3)
            rows = _measure(path, runs)
            print(f"{layers:,} BatchNorm2d")
            first = first or rows
            _print_rows(path, rows, first, layers)


def _measure(path: Path, runs: int) -> dict[str, Measured]:
    output = path.with_name(f"{path.stem}_frozen")
    convert = (*FROZENBN, "convert", str(path), "-o", str(output), "--quiet")
    commands = {
        "frozenbn inspect": (*FROZENBN, "inspect", str(path)),
        "frozenbn convert --no-verify": (*convert, "--no-verify"),
        "frozenbn convert": convert,
    }
    return in_turns(commands, runs=runs, output=output)


def _print_rows(
    path: Path, rows: dict[str, Measured], first: dict[str, Measured] | None = None, layers: int = 0
) -> None:
    for name, row in rows.items():
        extra = []
        if first and layers > 10:
            extra = [f"{1000 * (row.best - first[name].best) / (layers - 10):.2f}"]
        print_row(f"  {name}", path.stat().st_size, row, *extra)


if __name__ == "__main__":
    main()
