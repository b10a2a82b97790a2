"""Measures `frozenbn convert` as a process, for each format and size, beside plain torch.

Bars, for files of the sizes without --quick: without verification a state dict to safetensors takes
1.3 times the floor, and archives of code or graphs 1.5 times, in the best run of each, which is the
least disturbed one; 64 MB resident. The floor reads, hashes and writes as we must: `cp`, a `sync`
of the copy and `openssl dgst -sha256` of the input, all at once. Files are in memory when they are
read. Unlike the plain way, `frozenbn` waits until its output is on the disk.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.processes import (
    FROZENBN,
    Measured,
    in_turns,
    make_file,
    print_head,
    print_row,
    state_dict_of,
)

_MAX_PEAK_BYTES = 64e6
_LAYERS = 75  # Of 6.6 MB: half a gigabyte.
_FLOOR = """
(cp "$0" "$1" && sync "$1") & openssl dgst -sha256 "$0"
wait
"""
_MAKE_SCRIPT = """
import sys, warnings, torch
from torch import nn
warnings.simplefilter("ignore")
layers = []
for _ in range(int(sys.argv[2])):
    layers += [nn.Conv2d(256, 256, 5, padding=2), nn.BatchNorm2d(256), nn.ReLU()]
for layer in layers[1::3]:
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 1.5)
torch.jit.script(nn.Sequential(*layers).eval()).save(sys.argv[1])
"""
_MAKE_PROGRAM = _MAKE_SCRIPT.replace(
    "torch.jit.script(nn.Sequential(*layers).eval()).save(sys.argv[1])",
    """program = torch.export.export(nn.Sequential(*layers).eval(), (torch.zeros(1, 256, 8, 8),))
torch.export.save(program, sys.argv[1])""",
)
_PLAIN_SAFETENSORS = """
import sys, torch
from safetensors.torch import save_file
save_file(torch.load(sys.argv[1], weights_only=True), sys.argv[2])
"""
_PLAIN_TORCH = """
import sys, torch
torch.save(torch.load(sys.argv[1], weights_only=True), sys.argv[2])
"""
_PLAIN_SCRIPT = """
import sys, warnings, torch
warnings.simplefilter("ignore")
torch.jit.load(sys.argv[1]).save(sys.argv[2])
"""
_PLAIN_PROGRAM = """
import sys, torch
torch.export.save(torch.export.load(sys.argv[1]), sys.argv[2])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="3 runs, and small files alone")
    quick = parser.parse_args().quick
    print_head("/ floor", "bar")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for megabytes in (100,) if quick else (100, 1000):
            path = state_dict_of(folder, megabytes)
            bar = 1.3 if megabytes >= 1000 else None
            plain = ("torch.load, save_file", _PLAIN_SAFETENSORS)
            _compare(path, "to safetensors", (), plain, quick=quick, bar=bar)
            plain = ("torch.load, torch.save", _PLAIN_TORCH)
            _compare(path, "to torch", ("--to", "torch"), plain, quick=quick)
            path.unlink()
        layers, bar = (8, None) if quick else (_LAYERS, 1.5)
        path = make_file(_MAKE_SCRIPT, folder / "script.pt", layers)
        plain = ("torch.jit.load, save", _PLAIN_SCRIPT)
        shape = ("--input-shape", "1x256x8x8")
        _compare(path, "TorchScript", (), plain, proof=shape, quick=quick, bar=bar)
        path.unlink()
        path = make_file(_MAKE_PROGRAM, folder / "program.pt2", layers)
        plain = ("torch.export.load, save", _PLAIN_PROGRAM)
        _compare(path, "exported program", (), plain, quick=quick, bar=bar)


def _compare(
    path: Path,
    title: str,
    options: Sequence[str],
    plain: tuple[str, str],
    *,
    quick: bool,
    proof: Sequence[str] = (),
    bar: float | None = None,
) -> None:
    """Print a table for one file.

    Args:
        path: The file.
        title: Of the table.
        options: Of the conversion.
        plain: What does the like with PyTorch alone: its name, and a script.
        quick: Whether few runs will do.
        proof: The options that verification takes.
        bar: How many times the floor it may take without; None where no bar is set.
    """
    output = path.with_name(f"{path.stem}_frozen")
    convert = (*FROZENBN, "convert", str(path), "-o", str(output), "--quiet", *options)
    plain_name, plain_script = plain
    commands = {
        "cp, sync and sha256, the floor": ("sh", "-c", _FLOOR, str(path), str(output)),
        "frozenbn convert --no-verify": (*convert, "--no-verify"),
        "frozenbn convert": (*convert, *proof),
        plain_name: (sys.executable, "-c", plain_script, str(path), str(output)),
    }
    print(title)
    rows = in_turns(commands, runs=3 if quick else 7, output=output)
    floor, *_ = rows.values()
    for name, row in rows.items():
        verdict = _verdict(row, floor, bar) if bar and "--no-verify" in name else ""
        print_row(f"  {name}", path.stat().st_size, row, f"{row.best / floor.best:.2f}", verdict)


def _verdict(row: Measured, floor: Measured, bar: float) -> str:
    met = row.best <= bar * floor.best and row.peak_bytes <= _MAX_PEAK_BYTES
    return "met" if met else "MISSED"


if __name__ == "__main__":
    main()
