"""An output is read back with the record that it is to have, and nothing else may have changed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.containers.zip_archive import Record, ZipArchive
from frozenbn_cli.containers.zip_writer import ZipWriter
from frozenbn_cli.conversion.convert import ConvertOptions, convert_file
from frozenbn_cli.conversion.reading_back import check_record, check_written
from frozenbn_cli.errors import VerificationError
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
