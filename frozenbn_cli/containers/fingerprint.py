"""One pass over a file that gives its sha256 and checks the checksums of its ZIP records."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator

from frozenbn_cli.containers.source import ByteSource, FileExtent, chunks
from frozenbn_cli.containers.zip_archive import ZipArchive, check_crc32
from frozenbn_cli.errors import located

__all__ = ["fingerprint"]


def fingerprint(sources: Iterable[ByteSource], archive: ZipArchive | None = None) -> str:
    """Return the sha256 of files, one after the other, in hexadecimal.

    Args:
        sources: The files.
        archive: The only file as an archive, whose checksums are checked on the way.

    Raises:
        DamagedFileError: A record's bytes are not those that were written.
    """
    sha256 = hashlib.sha256()
    checksums = _Checksums(archive) if archive else None
    for source in sources:
        position = 0
        for chunk in chunks(FileExtent(source, 0, source.size_bytes)):
            sha256.update(chunk)
            if checksums:
                checksums.update(chunk, position)
            position += len(chunk)
    return sha256.hexdigest()


class _Checksums:
    """Follows a pass over an archive's bytes and checks each record as it ends."""

    def __init__(self, archive: ZipArchive) -> None:
        self._spans = _stored_spans(archive)
        self._span = next(self._spans, None)
        self._found = 0
        for name, record in archive.records.items():
            if record.method:
                archive.check(name)

    def update(self, chunk: bytes, position: int) -> None:
        view = memoryview(chunk)
        while self._span and self._span[0] < position + len(chunk):
            start, end, expected, name = self._span
            part = view[max(start - position, 0) : end - position]
            self._found = zlib.crc32(part, self._found)
            if end > position + len(chunk):
                return
            with located(f"record {name}"):
                check_crc32(expected, self._found)
            self._span, self._found = next(self._spans, None), 0


def _stored_spans(archive: ZipArchive) -> Iterator[tuple[int, int, int, str]]:
    """Yield start, end, checksum and name of each stored record in the file's order."""
    for record in sorted(archive.records.values(), key=lambda record: record.header_start):
        extent = archive.extent(record.name)
        if isinstance(extent, FileExtent) and record.crc32:
            yield extent.start, extent.start + extent.size_bytes, record.crc32, record.name
