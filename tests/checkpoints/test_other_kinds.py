"""What cannot be read is named for what it is, with what helps."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
import shlex
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from frozenbn_cli import convert_file
from frozenbn_cli.errors import DamagedFileError, NothingToFreezeError, UnsupportedFileError
from frozenbn_cli.inspection import inspect_file
from tests.builders.files import save, small_state


def zipped(path: Path, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/").replace("_dot_", "."), content)
    return path


def test_a_model_that_was_zipped(tmp_path: Path) -> None:
    inner = io.BytesIO()
    torch.save(small_state(), inner)
    path = zipped(tmp_path / "a.zip", weights__best_dot_pth=inner.getvalue())

    with pytest.raises(UnsupportedFileError, match=r"best\.pth\. Unpack it first: unzip a\.zip"):
        inspect_file(path)


@pytest.mark.parametrize(
    ("name", "pack", "command"),
    [
        ("a.pth.gz", gzip.compress, "gunzip < a.pth.gz > a.pth"),
        ("my a.pth", gzip.compress, "gunzip < 'my a.pth' > 'my a.pth.unpacked'"),
        ("a.pth.bz2", bz2.compress, "bunzip2 < a.pth.bz2 > a.pth"),
        ("a.xz", lzma.compress, "unxz < a.xz > a"),
    ],
)
def test_a_packed_file_is_named_with_the_command_that_unpacks_it(
    tmp_path: Path, name: str, pack: Callable[[bytes], bytes], command: str
) -> None:
    content = save(tmp_path / "a.pt", small_state()).read_bytes()
    path = tmp_path / name
    path.write_bytes(pack(content))

    with pytest.raises(UnsupportedFileError) as caught:
        inspect_file(path)
    assert caught.value.advice == f"Unpack it first: {command}"
    if shutil.which(command.split(maxsplit=1)[0]):
        subprocess.run(command, shell=True, check=True, cwd=tmp_path)
        assert Path(tmp_path, shlex.split(command)[-1]).read_bytes() == content


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_archive_is_named_with_the_command(tmp_path: Path, mode: Any) -> None:
    path = tmp_path / "a.pth.tar"
    with tarfile.open(path, mode) as archive:
        archive.add(save(tmp_path / "a.pt", small_state()), "a.pt")

    with pytest.raises(UnsupportedFileError, match=r"Unpack it first: tar -xf a\.pth\.tar"):
        inspect_file(path)


def test_arrays_under_names_are_no_damaged_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", weight=np.ones(3))

    with pytest.raises(UnsupportedFileError, match=r"Make a state dict of it: torch\.save"):
        inspect_file(tmp_path / "a.npz")


def test_a_page_of_another_kind(tmp_path: Path) -> None:
    for name, content, said in (
        ("a.pth", b"\xef\xbb\xbf<html>", "a web page"),
        ("b.pth", b"Entry not found", "text, which begins with 'Entry not found'"),
        ("c.pth", b'{"error": "x"}', "other JSON, which begins with"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnsupportedFileError, match=said):
            inspect_file(tmp_path / name)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_download_that_stopped_anywhere_says_so(tmp_path: Path, legacy: bool) -> None:
    path = save(tmp_path / ("a.legacy" if legacy else "a.pkl"), small_state())
    if not legacy:
        path.write_bytes(pickle.dumps(small_state()))
    content = path.read_bytes()
    for end in range(300, len(content), 151):
        path.write_bytes(content[:end])
        with pytest.raises(DamagedFileError, match="truncated"):
            inspect_file(path)


def test_an_archive_of_torchserve(tmp_path: Path) -> None:
    path = tmp_path / "a.mar"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", "{}")
        archive.writestr("model.pth", b"")

    assert inspect_file(path).kind == "model archive of TorchServe"
    assert "unzip a.mar" in inspect_file(path).advice


@pytest.mark.filterwarnings("ignore:TypedStorage")
def test_a_package(tmp_path: Path) -> None:
    from torch.package import PackageExporter  # Slow to import.

    path = tmp_path / "a.pt"
    with PackageExporter(path) as exporter:
        exporter.extern("torch.**")
        exporter.save_pickle("model", "model.pkl", nn.BatchNorm2d(3))

    assert inspect_file(path).kind == "package of torch.package"
    assert "PackageImporter" in inspect_file(path).advice


def test_a_part_of_a_distributed_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedFileError, match="dcp_to_torch"):
        inspect_file(save(tmp_path / "__0_0.distcp", small_state()))
    (tmp_path / ".metadata").write_bytes(b"\x80\4}.")
    with pytest.raises(UnsupportedFileError, match="dcp_to_torch"):
        inspect_file(tmp_path / ".metadata")


@pytest.mark.parametrize("within", [False, True])
def test_a_method_that_was_not_called(tmp_path: Path, within: bool) -> None:
    method = nn.Sequential(nn.BatchNorm2d(3)).state_dict
    path = save(tmp_path / "a.pt", {"model": method} if within else method)

    with pytest.raises(UnsupportedFileError, match=r"torch\.save\(model\.state_dict\(\), …\)"):
        inspect_file(path)


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_quantised_weights(tmp_path: Path) -> None:
    weight = torch.quantize_per_tensor(torch.ones(2, 3, 1, 1), 0.1, 0, torch.qint8)
    path = save(tmp_path / "a.pt", {"conv.weight": weight, "conv.bias": torch.ones(2)})

    assert not inspect_file(path).foreign_names
    with pytest.raises(NothingToFreezeError, match="Its tensors are quantised"):
        convert_file(path)


def test_a_quantised_batch_norm_is_left_alone(tmp_path: Path) -> None:
    state = {**small_state(), "bn2.scale": torch.tensor(0.1), "bn2.zero_point": torch.tensor(0)}

    (left,) = convert_file(save(tmp_path / "a.pt", state)).plan.left

    assert left.reason == "quantised: it has scale and zero_point"
