import zipfile
from pathlib import Path

import pytest

from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.containers.zip_writer import ZipWriter


def read_back(path: Path) -> dict[str, bytes]:
    """Return the records as our reader sees them, their checksums checked."""
    source = ByteSource(path)
    try:
        archive = ZipArchive(source)
        return {name: archive.read(name) for name in archive.records}
    finally:
        source.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.zip"


def test_what_is_written_is_read_by_us_and_by_python(path: Path) -> None:
    records = {"a/one": b"1" * 100, "a/empty": b"", "a/ä": bytes(range(256))}
    with path.open("w+b") as file:
        writer = ZipWriter(file)
        for name, content in records.items():
            writer.add(name, content)
        writer.write_directory()

    assert read_back(path) == records
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == records


def test_records_are_aligned_to_64_bytes(path: Path) -> None:
    with path.open("w+b") as file:
        writer = ZipWriter(file)
        for length in range(70):
            writer.add("n" * (length + 1), b"content")
        writer.write_directory()
    source = ByteSource(path)

    archive = ZipArchive(source)

    assert {archive.extent(name).start % 64 for name in archive.records} == {0}  # type: ignore[attr-defined]
    source.close()


def test_the_last_record_can_be_taken_back(path: Path) -> None:
    with path.open("w+b") as file:
        writer = ZipWriter(file)
        writer.add("kept", b"kept")
        writer.add("last", b"long" * 1000)
        writer.write_directory()
        writer.drop_last()
        writer.add("last", b"short")
        writer.write_directory()

    assert read_back(path) == {"kept": b"kept", "last": b"short"}


def test_sizes_and_places_beyond_4_gb(path: Path) -> None:
    size = (1 << 32) + 7
    with path.open("w+b") as file:
        writer = ZipWriter(file)
        with writer.record("big", size):
            file.seek(size, 1)  # A hole; its checksum is 0, which stands for not computed.
        writer.add("behind", b"content")
        writer.write_directory()

    source = ByteSource(path)
    archive = ZipArchive(source)
    assert archive.extent("big").size_bytes == size
    assert archive.read("behind") == b"content"
    source.close()
    with zipfile.ZipFile(path) as known:
        assert known.getinfo("big").file_size == size
        assert known.read("behind") == b"content"


def test_more_records_than_a_plain_directory_counts(path: Path) -> None:
    with path.open("w+b") as file:
        writer = ZipWriter(file)
        for index in range(65_540):
            writer.add(f"{index}", b"")
        writer.write_directory()

    source = ByteSource(path)
    assert len(ZipArchive(source).records) == 65_540
    source.close()
    with zipfile.ZipFile(path) as known:
        assert len(known.namelist()) == 65_540
