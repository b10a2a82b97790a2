"""Writes ZIP archives as PyTorch does: records stored, and aligned to 64 bytes.

Follows `APPNOTE.TXT 6.3.10 <https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT>`_, whose
structures are named in ``zip_archive.py``. The alignment lets `torch.load` map a file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from zlib_ng.zlib_ng import crc32

from frozenbn_cli.containers.source import BytesExtent, Extent, views
from frozenbn_cli.containers.zip_archive import (
    END,
    END64,
    END64_LOCATOR,
    ENTRY,
    LOCAL,
)

__all__ = ["ZipWriter", "archive_views"]

_ALIGNMENT = 64
_LIMIT = 0xFFFFFFFF
_VERSION_NEEDED, _VERSION_64 = 20, 45
_UTF8_NAMES = 1 << 11
_DATE = 0x21  # 1 January 1980: the same input gives the same bytes.


@dataclass(slots=True)
class _Written:
    name: bytes
    header_start: int
    size_bytes: int
    crc32: int = 0


class ZipWriter:
    """Writes records one after the other into ``file``, which must be seekable."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._records: list[_Written] = []
        self._stated_crc32 = self._crc32 = 0
        self._is_finished = False

    def add(self, name: str, content: bytes) -> None:
        """Write a whole record."""
        with self.record(name, len(content), crc32=crc32(content)):
            self.write(content)

    @contextmanager
    def record(self, name: str, size_bytes: int, *, crc32: int = 0) -> Iterator[None]:
        """Begin a record of known size, whose bytes follow by `write`, and end it.

        Args:
            name: Of the record, with forward slashes.
            size_bytes: Of all that follows.
            crc32: The checksum of all that follows, where somebody else sees to it that it is
                right; 0 has it computed.
        """
        written = _Written(name.encode(), self._file.tell(), size_bytes, crc32)
        self._file.write(_header(written))
        self._stated_crc32, self._crc32 = crc32, 0
        yield
        if not crc32:
            written.crc32 = self._crc32
            end = self._file.tell()
            self._file.seek(written.header_start)
            self._file.write(_header(written))
            self._file.seek(end)
        self._records.append(written)

    def write(self, chunk: bytes | memoryview) -> None:
        """Append bytes to the record that has begun."""
        if not self._stated_crc32:
            self._crc32 = crc32(chunk, self._crc32)
        self._file.write(chunk)

    def drop_last(self) -> None:
        """Take back the last record."""
        self._file.seek(self._records.pop().header_start)
        self._file.truncate()

    def finish_with(self, name: str, content: bytes) -> None:
        """Write the last record and the directory; once more, in place of those before."""
        if self._is_finished:
            self.drop_last()
        self.add(name, content)
        self.write_directory()
        self._is_finished = True

    def write_directory(self) -> None:
        """Write the directory; more records may follow in its place."""
        start = self._file.tell()
        self._file.write(_directory(self._records, start))
        self._file.truncate()
        self._file.seek(start)


def archive_views(
    records: Mapping[str, bytes | Extent],
) -> tuple[int, Iterator[bytes | memoryview]]:
    """Return the size of an archive of these records, and `views` of it.

    So it can be a record of another archive. The checksums that extents state are taken from them.
    """
    parts: list[tuple[bytes, Extent]] = []
    written: list[_Written] = []
    position = 0
    for name, content in records.items():
        extent = BytesExtent(content) if isinstance(content, bytes) else content
        checksum = crc32(content) if isinstance(content, bytes) else extent.crc32
        record = _Written(name.encode(), position, extent.size_bytes, checksum)
        header = _header(record)
        parts.append((header, extent))
        written.append(record)
        position += len(header) + extent.size_bytes
    directory = _directory(written, position)

    def produce() -> Iterator[bytes | memoryview]:
        for header, extent in parts:
            yield header
            yield from views(extent)
        yield directory

    return position + len(directory), produce()


def _header(record: _Written) -> bytes:
    """Return all that stands in front of a record's bytes."""
    size_bytes = record.size_bytes
    extra = _sizes64(size_bytes, size_bytes) if size_bytes >= _LIMIT else b""
    extra += _padding(record.header_start + LOCAL.size + len(record.name) + len(extra))
    return _local_header(record, extra) + record.name + extra


def _directory(records: Sequence[_Written], start: int) -> bytes:
    """Return all that stands behind the records, the directory and its end."""
    entries = b"".join(map(_entry, records))
    count, size = len(records), len(entries)
    end64 = b""
    if count >= 0xFFFF or max(start, size) >= _LIMIT:
        stated = (_VERSION_64, _VERSION_64, 0, 0, count, count, size, start)
        end64 = END64.pack(b"PK\6\6", END64.size - 12, *stated)
        end64 += END64_LOCATOR.pack(b"PK\6\7", 0, start + size, 1)
    shown = min(count, 0xFFFF)
    end = END.pack(b"PK\5\6", 0, 0, shown, shown, min(size, _LIMIT), min(start, _LIMIT), 0)
    return entries + end64 + end


def _local_header(record: _Written, extra: bytes) -> bytes:
    shown = min(record.size_bytes, _LIMIT)
    return LOCAL.pack(
        b"PK\3\4", _version(record), _UTF8_NAMES, 0, 0, _DATE, record.crc32, shown, shown,
        len(record.name), len(extra),
    )  # fmt: skip


def _entry(record: _Written) -> bytes:
    size, start = min(record.size_bytes, _LIMIT), min(record.header_start, _LIMIT)
    wide = [record.size_bytes] * 2 if size == _LIMIT else []
    wide += [record.header_start] if start == _LIMIT else []
    extra = _sizes64(*wide) if wide else b""
    version = _version(record)
    return (
        ENTRY.pack(
            b"PK\1\2", version, version, _UTF8_NAMES, 0, 0, _DATE, record.crc32, size, size,
            len(record.name), len(extra), 0, 0, 0, 0, start,
        )
        + record.name
        + extra
    )  # fmt: skip


def _version(record: _Written) -> int:
    return _VERSION_64 if max(record.size_bytes, record.header_start) >= _LIMIT else _VERSION_NEEDED


def _sizes64(*sizes: int) -> bytes:
    return struct.pack(f"<HH{len(sizes)}Q", 1, 8 * len(sizes), *sizes)


def _padding(data_start: int) -> bytes:
    """Return an extra field, marked as PyTorch marks it, that aligns what follows."""
    missing = -(data_start + 4) % _ALIGNMENT
    return b"FB" + struct.pack("<H", missing) + b"Z" * missing
