"""Writes small files of every kind as seeds: ``python -m tests.fuzz.make_corpus FOLDER``."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import torch
from torch import nn

from frozenbn_cli import ConvertOptions, convert_file
from tests.builders.files import batch_norm, nested, save


def write_corpus(folder: Path) -> None:
    """Write the seeds into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    state = nested(conv={"weight": torch.ones(2, 1, 1, 1)}, bn=batch_norm(2))
    for protocol in (2, 3, 4, 5):
        save(folder / f"zip{protocol}.pt", state, pickle_protocol=protocol)
        save(folder / f"stream{protocol}.legacy", state, pickle_protocol=protocol)
    save(folder / "a.safetensors", state)
    convert_file(folder / "a.safetensors", folder / "frozen.safetensors")
    how = ConvertOptions(to="torch")
    convert_file(folder / "a.safetensors", folder / "frozen.pt", options=how)
    module = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    save(folder / "module.pt", module)
    save(folder / "module.legacy", module)
    save(folder / "training.pt", {"model": state, "ema": state, "epoch": 3, "scores": {1.5, 2.5}})
    views = torch.arange(6.0).view(2, 3)
    save(folder / "views.legacy", {"a": views.t(), "b": views[1], "c": views.to(torch.bfloat16)})
    with (
        zipfile.ZipFile(folder / "zip2.pt") as old,
        zipfile.ZipFile(folder / "deflated.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))


if __name__ == "__main__":
    write_corpus(Path(sys.argv[1]))
