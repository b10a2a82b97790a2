"""Checksums from the input to the output: a damaged input is found, and no output is wrong."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from frozenbn_cli import ConvertOptions, convert_file
from frozenbn_cli.errors import DamagedFileError
from tests.builders.archives import script
from tests.builders.models import perturb
from tests.conftest import DEFLATED, STORED, ZipRecord, without_checksums, zip_bytes


def model() -> nn.Module:
    return perturb(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval())


@pytest.fixture(params=["safetensors", "torch", "torchscript"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, ConvertOptions]:
    """An archive with one more record, which nothing refers to, and how to convert it."""
    path = tmp_path / "model.pt"
    if request.param == "torchscript":
        script(model(), path, _extra_files={"note": b"a note"})
    else:
        torch.save(model().state_dict() | {"spare": torch.ones(5, 5).t()[1:]}, path)
    return path, ConvertOptions(to=request.param, verify=False)


def write(path: Path, method: int, changes: dict[str, int] | None = None) -> None:
    """Write the archive anew, some records with another checksum than theirs."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    path.write_bytes(
        zip_bytes(
            {
                name: ZipRecord(content, method=method, crc32=(changes or {}).get(name))
                for name, content in contents.items()
            }
        )
    )


def names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


@pytest.mark.parametrize("method", [STORED, DEFLATED])
def test_damage_in_any_record_stops_the_conversion(
    case: tuple[Path, ConvertOptions], method: int
) -> None:
    path, options = case
    for name in names(path):
        content = path.read_bytes()
        write(path, method, {name: 12345})

        with pytest.raises(DamagedFileError, match=rf"record {name}: checksum"):
            convert_file(path, path.with_name("out"), options=options)

        assert [item.name for item in path.parent.iterdir()] == ["model.pt"]
        path.write_bytes(content)


def test_a_flipped_bit_in_the_last_storage_stops_the_conversion(
    case: tuple[Path, ConvertOptions],
) -> None:
    path, options = case
    with zipfile.ZipFile(path) as archive:
        last = [item for item in archive.infolist() if "/data/" in item.filename][-1]
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(last.filename.encode()) + 100 & ~63] ^= 1
    path.write_bytes(damaged)

    with pytest.raises(DamagedFileError, match="checksum"):
        convert_file(path, path.with_name("out"), options=options)


@pytest.mark.parametrize("method", [STORED, DEFLATED])
@pytest.mark.parametrize("checksums", ["stated", "not computed"])
def test_every_record_has_its_checksum(
    case: tuple[Path, ConvertOptions], method: int, checksums: str
) -> None:
    path, options = case
    write(path, method)
    if checksums == "not computed" and method == STORED:
        path.write_bytes(without_checksums(path.read_bytes()))
    output = path.with_name("out")

    convert_file(path, output, options=options)

    if options.to == "safetensors":
        return
    with zipfile.ZipFile(output) as archive:
        assert archive.testzip() is None
        assert all(
            zlib.crc32(archive.read(item)) == item.CRC and (item.CRC or not item.file_size)
            for item in archive.infolist()
        )


def test_a_checksum_is_that_of_the_elements_and_not_of_a_larger_storage(tmp_path: Path) -> None:
    rows = torch.arange(12.0).reshape(4, 3)
    entries: dict[str, Any] = {
        "whole": rows,
        "part": rows[1:],
        "head": rows[:2],
        "turned": rows.t(),
        "conjugate": torch.ones(2, dtype=torch.complex64).conj(),
    }
    path, output = tmp_path / "model.pt", tmp_path / "out.pt"
    torch.save(model().state_dict() | entries, path)

    convert_file(path, output, options=ConvertOptions(to="torch", verify=False))

    with zipfile.ZipFile(output) as archive:
        assert archive.testzip() is None
    loaded = torch.load(output, weights_only=True)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in entries.items())
