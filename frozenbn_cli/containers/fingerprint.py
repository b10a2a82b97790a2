"""The sha256 of a file, and a check of the checksums of its ZIP records on the way."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable

from zlib_ng.zlib_ng import crc32

from frozenbn_cli.containers.source import ByteSource, FileExtent, chunks
from frozenbn_cli.containers.zip_archive import ZipArchive, check_crc32
from frozenbn_cli.errors import located

__all__ = ["fingerprint"]


def fingerprint(sources: Iterable[ByteSource], archives: Iterable[ZipArchive] = ()) -> str:
    """Return the sha256 of files, one after the other, in hexadecimal.

    Args:
        sources: The files.
        archives: Those of them that are archives, whose checksums are checked.

    Raises:
        DamagedFileError: A record's bytes are not those that were written.
    """
    sha256 = hashlib.sha256()
    archive_of = {archive.source: archive for archive in archives}
    for source in sources:
        checks = _RecordChecks(archive_of[source]) if source in archive_of else None
        position = 0
        for chunk in chunks(FileExtent(source, 0, source.size_bytes)):
            sha256.update(chunk)
            if checks:
                checks.update(position, chunk)
            position += len(chunk)
        if checks:
            checks.finish()
    return sha256.hexdigest()


class _RecordChecks:
    """Checks an archive's checksums while the bytes of its file pass by.

    A CRC-32 of bytes that the cache still holds takes a tenth of their sha256's time, which is less
    than reading them once more, beside it in a thread.
    """

    def __init__(self, archive: ZipArchive) -> None:
        self._archive = archive
        extents = [(name, archive.extent(name)) for name in archive.records]
        self._inflated = [name for name, extent in extents if not isinstance(extent, FileExtent)]
        stored = [(name, extent) for name, extent in extents if isinstance(extent, FileExtent)]
        stored.sort(key=lambda item: item[1].start)
        self._waiting = deque((name, extent) for name, extent in stored if extent.crc32)
        self._crc32 = 0

    def update(self, position: int, chunk: bytes) -> None:
        """Take the next bytes of the file, from ``position`` on."""
        view, end = memoryview(chunk), position + len(chunk)
        while self._waiting and self._waiting[0][1].start < end:
            name, extent = self._waiting[0]
            extent_end = extent.start + extent.size_bytes
            part = view[max(extent.start - position, 0) : extent_end - position]
            self._crc32 = crc32(part, self._crc32)
            if extent_end > end:
                return
            with located(f"record {name}"):
                check_crc32(extent.crc32, self._crc32)
            self._waiting.popleft()
            self._crc32 = 0

    def finish(self) -> None:
        """Check the compressed records too."""
        for name in self._inflated:
            self._archive.check(name)
