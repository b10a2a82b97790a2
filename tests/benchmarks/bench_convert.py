"""Measures `frozenbn convert` as a process, for each format and size, beside `cp` and plain torch.

Bars: without verification within 3 times `cp` + 0.5 s in the best run of each, which is the least
disturbed one, and 150 MB resident. Files are in memory when they are read. Unlike `cp` and the
plain way, `frozenbn` waits until its output is on the disk; `cp` with that wait is shown too.
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

_MAX_PEAK_BYTES = 150e6
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
    print_head("/ cp", "bar")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for megabytes in (100,) if quick else (100, 1000):
            path = state_dict_of(folder, megabytes)
            _compare(
                path, "to safetensors", (), ("torch.load, save_file", _PLAIN_SAFETENSORS), quick
            )
            _compare(
                path, "to torch", ("--to", "torch"), ("torch.load, torch.save", _PLAIN_TORCH), quick
            )
            path.unlink()
        path = make_file(_MAKE_SCRIPT, folder / "script.pt", 8 if quick else 32)
        shape = ("--input-shape", "1x256x8x8")
        _compare(path, "TorchScript", shape, ("torch.jit.load, save", _PLAIN_SCRIPT), quick)
        path.unlink()
        path = make_file(_MAKE_PROGRAM, folder / "program.pt2", 8 if quick else 32)
        plain = ("torch.export.load, save", _PLAIN_PROGRAM)
        _compare(path, "exported program", (), plain, quick)


def _compare(
    path: Path, title: str, options: Sequence[str], plain: tuple[str, str], quick: bool
) -> None:
    output = path.with_name(f"{path.stem}_frozen")
    convert = (*FROZENBN, "convert", str(path), "-o", str(output), "--quiet", *options)
    plain_name, plain_script = plain
    commands = {
        "cp": ("cp", str(path), str(output)),
        "cp, and wait for the disk": (
            "dd", f"if={path}", f"of={output}", "bs=1M", "conv=fsync", "status=none"
        ),
        "frozenbn convert --no-verify": (*convert, "--no-verify"),
        "frozenbn convert": convert,
        plain_name: (sys.executable, "-c", plain_script, str(path), str(output)),
    }  # fmt: skip
    print(title)
    rows = in_turns(commands, runs=3 if quick else 7, output=output)
    for name, row in rows.items():
        verdict = _verdict(row, rows["cp"]) if "--no-verify" in name else ""
        ratio = f"{row.ratio_to(rows['cp']):.1f}"
        print_row(f"  {name}", path.stat().st_size, row, ratio, verdict)


def _verdict(row: Measured, cp: Measured) -> str:
    met = row.best <= 3 * cp.best + 0.5 and row.peak_bytes <= _MAX_PEAK_BYTES
    return "met" if met else "MISSED"


if __name__ == "__main__":
    main()
