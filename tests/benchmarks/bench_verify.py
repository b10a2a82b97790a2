"""Measures `frozenbn verify` of ResNet-50 with its model, beside what it cannot do without.

Bar: within the time of importing torch, building the model twice and running each, plus 1 s.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.processes import FROZENBN, in_turns, make_file, print_head, print_row

_MAKE = """
import sys, torch, torchvision
from tests.builders.models import perturb
torch.save(perturb(torchvision.models.resnet50()).state_dict(), sys.argv[1])
"""
_BUILD_AND_RUN = """
import torch, torchvision
with torch.no_grad():
    for _ in range(2):
        torchvision.models.resnet50().eval()(torch.rand(1, 3, 64, 64))
"""
_BASELINE = "import torch, build and run twice"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="3 runs")
    quick = parser.parse_args().quick
    print_head("beyond")
    with tempfile.TemporaryDirectory() as folder:
        original, converted = Path(folder, "model.pt"), Path(folder, "model.safetensors")
        make_file(_MAKE, original)
        files = (str(original), str(converted))
        model = ("--model", "torchvision.models:resnet50")
        subprocess.run(
            [*FROZENBN, "convert", files[0], "-o", files[1], "--no-verify", "-q"], check=True
        )
        commands = {
            _BASELINE: (sys.executable, "-c", _BUILD_AND_RUN),
            "frozenbn verify --model": (*FROZENBN, "verify", *files, *model, "-q"),
            "frozenbn verify": (*FROZENBN, "verify", *files, "-q"),
        }
        rows = in_turns(commands, runs=3 if quick else 7)
        for name, row in rows.items():
            beyond = f"{row.median - rows[_BASELINE].median:+.2f} s"
            print_row(name, original.stat().st_size, row, beyond)


if __name__ == "__main__":
    main()
