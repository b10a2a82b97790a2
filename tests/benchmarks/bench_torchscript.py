"""Measures `frozenbn convert` of a TorchScript archive as a process, beside `cp` of the same file.

    python -m tests.benchmarks.bench_torchscript

Bars: 200 MB without verification within 3 times `cp` + 0.5 s, and 150 MB resident. The file is read
once before, so that the disk is not what is measured. What a user would do otherwise is not there:
nothing else converts an archive whose source is gone; loading and saving it again is shown instead.
Unlike `cp`, `frozenbn` waits until its output is on the disk.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.bench_inspect import run

_MAKE = """
import sys, warnings, torch
from torch import nn
warnings.simplefilter("ignore")
layers = []
for _ in range(32):
    layers += [nn.Conv2d(256, 256, 5, padding=2), nn.BatchNorm2d(256), nn.ReLU()]
for layer in layers[1::3]:
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 1.5)
torch.jit.script(nn.Sequential(*layers).eval()).save(sys.argv[1])
"""
_LOAD_AND_SAVE = """
import sys, warnings, torch
warnings.simplefilter("ignore")
torch.jit.load(sys.argv[1]).save(sys.argv[2])
"""


def main() -> None:
    """Make the file, measure, and print one table."""
    print(f"{'what':<38}{'size':>10}{'seconds':>10}{'spread':>9}{'peak MB':>9}{'of cp':>8}")
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder, "model.pt"), str(Path(folder, "model.out"))
        subprocess.run([sys.executable, "-c", _MAKE, path], check=True)
        frozenbn = (sys.executable, "-m", "frozenbn_cli", "convert", str(path), "-o", output)
        commands = {
            "cp": ("cp", str(path), output),
            "cp and fsync": (
                "dd", f"if={path}", f"of={output}", "bs=4M", "conv=fsync", "status=none"
            ),
            "frozenbn convert --no-verify": (*frozenbn, "--force", "--no-verify", "--quiet"),
            "frozenbn convert": (
                *frozenbn, "--force", "--quiet", "--input-shape", "1x256x8x8"
            ),
            "torch.jit.load and save": (sys.executable, "-c", _LOAD_AND_SAVE, str(path), output),
        }  # fmt: skip
        baseline = 0.0
        for name, command in commands.items():
            seconds, peak, spread = run(*command)
            baseline = baseline or seconds
            size = path.stat().st_size / 1e6
            print(
                f"{name:<38}{size:>7.0f} MB{seconds:>10.2f}{spread:>9.2f}{peak / 1e6:>9.0f}"
                f"{seconds / baseline:>8.1f}"
            )


if __name__ == "__main__":
    main()
