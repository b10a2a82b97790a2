"""The sha256 of a file, and a check of the checksums of its ZIP records at the same time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from frozenbn_cli.containers.source import ByteSource, FileExtent, chunks
from frozenbn_cli.containers.zip_archive import ZipArchive

__all__ = ["fingerprint"]


def fingerprint(sources: Iterable[ByteSource], archive: ZipArchive | None = None) -> str:
    """Return the sha256 of files, one after the other, in hexadecimal.

    Args:
        sources: The files.
        archive: The only file as an archive, whose checksums are checked.

    Raises:
        DamagedFileError: A record's bytes are not those that were written.
    """
    # Reading twice costs little, since the second reader finds the bytes in memory; two sums over
    # the same bytes, one after the other, cost half as much again as the longer one.
    with ThreadPoolExecutor(1) as pool:
        checking = pool.submit(_check_records, archive)
        sha256 = hashlib.sha256()
        for source in sources:
            for chunk in chunks(FileExtent(source, 0, source.size_bytes)):
                sha256.update(chunk)
        checking.result()
    return sha256.hexdigest()


def _check_records(archive: ZipArchive | None) -> None:
    if archive:
        for name in archive.records:
            archive.check(name)
