"""What cannot be read is named for what it is, with what helps."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from frozenbn_cli import convert_file
from frozenbn_cli.errors import NothingToFreezeError, UnsupportedFileError
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

    with pytest.raises(NothingToFreezeError, match="Its tensors are quantised"):
        convert_file(path)


def test_a_quantised_batch_norm_is_left_alone(tmp_path: Path) -> None:
    state = {**small_state(), "bn2.scale": torch.tensor(0.1), "bn2.zero_point": torch.tensor(0)}

    (left,) = convert_file(save(tmp_path / "a.pt", state)).plan.left

    assert left.reason == "quantised: it has scale and zero_point"
