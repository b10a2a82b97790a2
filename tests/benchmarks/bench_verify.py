"""Measures `frozenbn verify` of ResNet-50 with its model, beside what it cannot do without.

    python -m tests.benchmarks.bench_verify

Bar: within the time of importing torch, building the model twice and running each, plus 1 s.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.bench_inspect import run

_MAKE = """
import sys, torch, torchvision
from tests.models import perturb
torch.save(perturb(torchvision.models.resnet50()).state_dict(), sys.argv[1])
"""
_BUILD_AND_RUN = """
import torch, torchvision
with torch.no_grad():
    for _ in range(2):
        torchvision.models.resnet50().eval()(torch.rand(1, 3, 64, 64))
"""


def main() -> None:
    """Make the files, measure, and print one table."""
    with tempfile.TemporaryDirectory() as folder:
        original, converted = Path(folder, "model.pt"), Path(folder, "model.safetensors")
        subprocess.run([sys.executable, "-c", _MAKE, original], check=True)
        frozenbn = (sys.executable, "-m", "frozenbn_cli")
        model = ("--model", "torchvision.models:resnet50")
        subprocess.run(
            [*frozenbn, "convert", original, "-o", converted, "--no-verify", "-q"], check=True
        )
        commands = {
            "import torch, build and run twice": (sys.executable, "-c", _BUILD_AND_RUN),
            "frozenbn verify --model": (*frozenbn, "verify", original, converted, *model, "-q"),
            "frozenbn verify": (*frozenbn, "verify", original, converted, "-q"),
        }
        print(f"{'what':<38}{'seconds':>10}{'spread':>9}{'peak MB':>9}{'beyond':>9}")
        baseline = 0.0
        for name, command in commands.items():
            seconds, peak, spread = run(*map(str, command))
            baseline = baseline or seconds
            print(
                f"{name:<38}{seconds:>10.2f}{spread:>9.2f}{peak / 1e6:>9.0f}"
                f"{seconds - baseline:>+8.2f} s"
            )


if __name__ == "__main__":
    main()
