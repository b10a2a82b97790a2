"""Writes small files of every kind as seeds: ``python -m tests.fuzz.make_corpus FOLDER``.

With ``--archives``, TorchScript archives as `fuzz_archives` takes them.
"""

from __future__ import annotations

import argparse
import io
import json
import pickle
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

from frozenbn_cli import ConvertOptions, convert_file
from tests.builders import unfaithful_models as models
from tests.builders.files import State, batch_norm, nested, save
from tests.fuzz.records import SEPARATOR


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
    _write_bare(folder, state)
    for suffix, shards in (("safetensors", "aab"), ("mixed", "abc")):
        names = ("bn.running_mean", "bn.running_var", "conv.weight")
        weight_map = {name: f"{one}.safetensors" for name, one in zip(names, shards, strict=True)}
        index = {"metadata": {"total_size": 24}, "weight_map": weight_map}
        (folder / f"{suffix}.index.json").write_text(json.dumps(index))


def _write_bare(folder: Path, state: State) -> None:
    """Write pickles of tensors and of NumPy arrays, and arrays in what `torch.save` writes."""
    arrays = {name: value.numpy() for name, value in state.items()}
    holders = {
        "tensors": state,
        "arrays": {"model": arrays, "__author__": "a zoo", "matching_heuristics": True},
        "long": {"w": np.zeros(300, dtype=np.float64), **arrays},
        "fortran": {"w": np.asfortranarray(np.ones((2, 3), dtype=np.float32)), **arrays},
    }
    for name, value in holders.items():
        for protocol in (2, 4, 5):
            (folder / f"{name}{protocol}.pkl").write_bytes(pickle.dumps(value, protocol))
    save(folder / "arrays.pt", {"model": arrays, "eps": np.float32(1e-3)})
    save(folder / "holder.pt", {"args": argparse.Namespace(model=state), 0.5: state})


def write_scripts(folder: Path) -> None:
    """Write TorchScript archives into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, model in enumerate(_models()):
        example = torch.ones(1, 2 if number < 2 else 3, 3, 3)
        torch.jit.save(torch.jit.script(model), folder / f"scripted{number}.pt")
        torch.jit.save(torch.jit.trace(model, example), folder / f"traced{number}.pt")


def write_archives(folder: Path) -> None:
    """Write the records of TorchScript archives as seeds into ``folder``."""
    write_scripts(folder)
    for path in sorted(folder.glob("*.pt")):
        path.with_suffix("").write_bytes(joined_records(path.read_bytes()))
        path.unlink()


def joined_records(archive: bytes) -> bytes:
    """Return the records of an archive as `fuzz_archives` takes them."""
    with zipfile.ZipFile(io.BytesIO(archive)) as records:
        names = [name for name in records.namelist() if not name.endswith(".debug_pkl")]
        parts = [name.encode() + b"\n" + records.read(name) for name in names]
    return SEPARATOR.join(parts)


def _models() -> Iterator[nn.Module]:
    layer = nn.BatchNorm2d(2).eval()
    yield nn.Sequential(nn.Conv2d(2, 2, 1), layer).eval()
    yield nn.Sequential(layer, nn.BatchNorm2d(2, affine=False), layer).eval()
    for model in (
        models.WritesThroughTuple(),
        models.WritesByModule(),
        models.Pair(models.MakesNoiseInFunction(4)),
        models.Pair(models.Settled(4)),
    ):
        yield model.eval()


if __name__ == "__main__":
    if sys.argv[1] == "--archives":
        write_archives(Path(sys.argv[2]))
    else:
        write_corpus(Path(sys.argv[1]))
