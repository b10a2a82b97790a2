"""A file is read in pieces, exactly as much as is asked for, or the place is named."""

from __future__ import annotations

import os
import threading
from functools import partial
from pathlib import Path

import pytest

from frozenbn_cli.containers.source import (
    CHUNK_BYTES,
    BytesExtent,
    ByteSource,
    FileExtent,
    chunks,
    stream,
    views,
)
from frozenbn_cli.errors import DamagedFileError, InputError
from tests.conftest import Sources, stream_of


@pytest.fixture(params=[True, False], ids=["by position", "by seeking"], autouse=True)
def by_position(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read also as on systems that know no reading at a position."""
    for name in () if request.param else ("pread", "preadv"):
        monkeypatch.delattr(os, name, raising=False)


def filled(source: ByteSource, start: int, count: int) -> bytes:
    buffer = bytearray(count)
    source.read_into(start, memoryview(buffer))
    return bytes(buffer)


def test_reads_exactly_what_is_asked_for(source_of: Sources) -> None:
    source = source_of(b"0123456789")

    assert (source.read(3, 4), source.read(0, 10), source.read(10, 0)) == (
        b"3456", b"0123456789", b"",
    )  # fmt: skip
    assert (filled(source, 3, 4), filled(source, 0, 10), filled(source, 10, 0)) == (
        b"3456", b"0123456789", b"",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("start", "count"), [(0, 11), (10, 1), (11, 0), (-1, 1), (1, -1), (1 << 80, 1), (0, 1 << 80)]
)
def test_rejects_reads_beyond_the_end(start: int, count: int, source_of: Sources) -> None:
    with pytest.raises(DamagedFileError, match="end of the file at byte 10"):
        source_of(b"0123456789").read(start, count)


def test_notices_a_file_that_becomes_shorter(source_of: Sources) -> None:
    source = source_of(b"0123456789")
    os.truncate(source.path, 5)

    for read in (source.read, partial(filled, source)):
        with pytest.raises(DamagedFileError, match="became shorter"):
            read(3, 4)
        assert read(3, 2) == b"34"


def test_reads_on_where_the_system_gives_less(
    source_of: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(os, "preadv"):
        pytest.skip("the system reads by seeking")
    source, read, fill = source_of(b"0123456789"), os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda file, count, at: read(file, min(count, 3), at))
    monkeypatch.setattr(os, "preadv", lambda file, into, at: fill(file, [into[0][:3]], at))

    assert source.read(1, 8) == filled(source, 1, 8) == b"12345678"


@pytest.mark.parametrize("piece_bytes", [None, 1, 3, 10, 11])
def test_views_are_the_bytes_in_pieces(source_of: Sources, piece_bytes: int | None) -> None:
    for extent in (FileExtent(source_of(b"..0123456789."), 2, 10), BytesExtent(b"0123456789")):
        for start, count in ((0, None), (4, None), (2, 6), (10, 0)):
            pieces = views(extent, start, count, piece_bytes=piece_bytes)

            assert b"".join(map(bytes, pieces)) == b"".join(chunks(extent, start, count))


def test_views_of_a_file_lie_in_one_buffer(source_of: Sources) -> None:
    first, second = views(FileExtent(source_of(b"012345"), 0, 6), piece_bytes=3)

    assert (first, second) == (b"345", b"345")


def test_reads_from_several_threads(source_of: Sources) -> None:
    content = bytes(range(256)) * 4096
    source = source_of(content)
    wrong: list[int] = []

    def read(first: int) -> None:
        wrong.extend(
            start
            for start in range(first, len(content) - 5000, 50_000)
            if source.read(start, 5000) != content[start : start + 5000]
        )

    threads = [threading.Thread(target=read, args=(first,)) for first in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


@pytest.mark.parametrize("path", ["missing.pt", "x" * 5000, "nul\0byte.pt", "."])
def test_names_why_a_file_cannot_be_opened(path: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read \(.+\)"):
        ByteSource(tmp_path / path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(InputError, match="not a regular file"):
        ByteSource(tmp_path / "pipe")


def test_an_extent_is_bounded_on_both_sides(source_of: Sources) -> None:
    extent = FileExtent(source_of(b"0123456789"), 2, 5)

    assert extent.read(1, 4) == b"3456"
    for start, count in ((-1, 1), (0, 6), (5, 1), (6, 0)):
        with pytest.raises(DamagedFileError):
            extent.read(start, count)


@pytest.mark.parametrize("size_bytes", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_chunks_are_bounded_and_complete(size_bytes: int, source_of: Sources) -> None:
    content = os.urandom(size_bytes)
    extent = FileExtent(source_of(content), 0, size_bytes)

    parts = list(chunks(extent))

    assert b"".join(parts) == content
    assert all(0 < len(part) <= CHUNK_BYTES for part in parts)
    assert (
        b"".join(chunks(extent, size_bytes // 2, size_bytes // 4))
        == (content[size_bytes // 2 :][: size_bytes // 4])
    )


@pytest.mark.parametrize("small_bytes", [0, CHUNK_BYTES])
def test_a_stream_counts_its_positions_from_the_extent(
    small_bytes: int, source_of: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frozenbn_cli.containers.source._SMALL_BYTES", small_bytes)
    source = source_of(b"head" + b"line one\nline two\n" + b"tail")
    file = stream(FileExtent(source, 4, 18), 5)

    assert file.tell() == 5
    assert file.readline() == b"one\n"
    assert file.tell() == 9
    assert file.read(1 << 60) == b"line two\n"
    assert file.read() == b""
    assert file.read(1) == b""
    file.seek(0)
    assert file.read(8) == b"line one"


@pytest.mark.parametrize("small_bytes", [0, CHUNK_BYTES])
def test_a_stream_bounds_its_lines(
    small_bytes: int, source_of: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frozenbn_cli.containers.source._SMALL_BYTES", small_bytes)
    file = stream_of(source_of(b"a" * CHUNK_BYTES))

    assert len(file.readline()) == 4096
    assert len(file.readline(1 << 40)) == 4096
    assert len(file.readline(10)) == 10


def test_a_closed_source_stays_closed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123")
    source = ByteSource(path)
    source.close()
    source.close()

    with pytest.raises(ValueError, match="closed"):
        source.read(0, 1)
