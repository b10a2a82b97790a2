"""An output is read back with the record that it is to have, and nothing else may have changed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.containers.zip_archive import Record, ZipArchive
from frozenbn_cli.containers.zip_writer import ZipWriter
from frozenbn_cli.conversion.convert import ConvertOptions, convert_file
from frozenbn_cli.conversion.reading_back import check_record, check_written
from frozenbn_cli.errors import FrozenBNError, VerificationError
from frozenbn_cli.outputs.safetensors import SafetensorsOutput
from tests.builders.files import save

NAMES = {"weight", "bias", "running_mean", "running_var"}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = save(tmp_path / "a.pt", nn.BatchNorm2d(3).state_dict())
    options = ConvertOptions(to="torch", verify=False, force_unhealthy=True)
    return convert_file(path, tmp_path / "b.pt", options=options).output_path


def record_of(path: Path) -> ConversionRecord:
    with open_checkpoint(path) as checkpoint:
        record = ConversionRecord.from_metadata(checkpoint.metadata)
    assert record
    return record


def rewritten(path: Path, changes: Mapping[str, bytes]) -> Path:
    """Write an archive anew, with some records changed or added, its last one the last again."""
    source = ByteSource(path)
    archive = ZipArchive(source)
    content = {name: archive.read(name) for name in archive.records}
    *_, last = content
    content = {**content, **changes}
    content[last] = content.pop(last)
    source.close()
    with path.open("w+b") as file:
        writer = ZipWriter(file)
        for name, value in content.items():
            writer.add(name, value)
        writer.write_directory()
    return path


def read_back(path: Path) -> tuple[ConversionRecord, Mapping[str, Record]]:
    record = record_of(path)
    return record, check_written(path, record, NAMES)


def test_what_is_as_it_has_to_be(output: Path) -> None:
    record, records = read_back(output)

    check_record(output, record, records)
    later = replace(record, date="2030-01-02T03:04:05Z")
    *_, last = records
    rewritten(output, {last: later.to_text().encode()})
    check_record(output, later, records)


def test_another_record_and_other_names_are_errors(output: Path) -> None:
    record, records = read_back(output)
    other = replace(record, date="2030-01-02T03:04:05Z")

    with pytest.raises(VerificationError, match="record was not written"):
        check_written(output, other, NAMES)
    with pytest.raises(VerificationError, match="record was not written"):
        check_written(output, record, NAMES - {"bias"})
    with pytest.raises(VerificationError, match="record was not written"):
        check_record(output, other, records)


@pytest.mark.parametrize(
    "changes",
    [{"archive/data/0": bytes(12)}, {"archive/data/9": b""}, {"archive/version": b"33\n"}],
)
def test_any_other_change_of_an_archive_is_an_error(
    output: Path, changes: Mapping[str, bytes]
) -> None:
    record, records = read_back(output)
    rewritten(output, changes)

    with pytest.raises(VerificationError, match="record was not written"):
        check_record(output, record, records)


def test_what_verification_finds_is_told_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.pt", nn.BatchNorm2d(3).state_dict())
    write = SafetensorsOutput.__init__

    def without_bias(self: Any, file: Any, tensors: Any, **options: Any) -> None:
        write(self, file, {name: tensors[name] for name in tensors if name != "bias"}, **options)

    monkeypatch.setattr(SafetensorsOutput, "__init__", without_bias)
    for verify, said in ((True, r"b.safetensors: contents: bias"), (False, "b.safetensors: the ")):
        options = ConvertOptions(force_unhealthy=True, verify=verify)
        with pytest.raises(VerificationError, match=said) as caught:
            convert_file(path, tmp_path / "b.safetensors", options=options)
        assert bool(caught.value.result) == verify
        assert [*tmp_path.iterdir()] == [path]


def test_a_program_that_nobody_verifies_is_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(__file__).parents[1] / "exported" / "written_by" / "2.9-eval.pt2"
    write = ZipWriter.add

    def spoiled(self: ZipWriter, name: str, content: bytes) -> None:
        write(self, name, b'{"broken": true}' if "/models/" in name else content)

    monkeypatch.setattr(ZipWriter, "add", spoiled)
    with pytest.raises(FrozenBNError, match=r"b.pt2, .*schema"):
        convert_file(path, tmp_path / "b.pt2", options=ConvertOptions(verify=False))
    assert not [*tmp_path.iterdir()]
