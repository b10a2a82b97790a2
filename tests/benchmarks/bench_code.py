"""Measures `frozenbn inspect` on TorchScript archives with much code.

Bars: time and memory grow linearly with the code, whether it assigns, branches or holds long text.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tests.benchmarks.processes import FROZENBN, in_turns, make_file, print_head, print_row

_MAKE_ARCHIVE = r"""
import sys, warnings, zipfile, torch
from torch import nn
warnings.simplefilter("ignore")
path, size_bytes, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
layer = nn.BatchNorm2d(4)
layer.running_mean.normal_(), layer.num_batches_tracked.fill_(1000)
torch.jit.script(nn.Sequential(nn.Conv2d(3, 4, 3), layer)).save(path)
with zipfile.ZipFile(path) as archive:
    records = {name: archive.read(name) for name in archive.namelist()}
lines = {
    "assignments": "    v{0} = torch.add(input, {0})\n",
    "calls of layers": "    v{0} = getattr(self, \"1\").forward(input, )\n",
    "branches": (
        "    if bool({0}):\n      v{0} = torch.mul(input, {0})\n"
        "    else:\n      v{0} = input\n"
    ),
    "text": "    v{0} = \"" + "%s and (so on) " * 500 + "\"\n",
}
for name, content in records.items():
    if name.endswith("container.py"):
        head, argument, rest = content.decode().partition("input: Tensor) -> Tensor:\n")
        grown = "".join(
            lines[kind].format(i) for i in range(size_bytes // len(lines[kind]))
        )
        records[name] = (head + argument + grown + rest).encode()
with zipfile.ZipFile(path, "w") as archive:
    for name, content in records.items():
        archive.writestr(name, content)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2 runs, and no more than 2 MB")
    quick = parser.parse_args().quick
    print_head("s/MB")
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("assignments", "calls of layers", "branches", "text"):
            for megabytes in (1, 2) if quick else (1, 2, 4):
                path = Path(folder, "code.pt")
                make_file(_MAKE_ARCHIVE, path, megabytes << 20, kind)
                command = {kind: (*FROZENBN, "inspect", str(path))}
                (row,) = in_turns(command, runs=2 if quick else 5).values()
                print_row(kind, path.stat().st_size, row, f"{row.median / megabytes:.2f}")


if __name__ == "__main__":
    main()
