"""Whether a rewritten archive holds what it held, and what it should have become, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from operator import ne
from pathlib import Path

from frozenbn_cli.containers.rewriting import Rewriting
from frozenbn_cli.containers.source import (
    BytesExtent,
    ByteSource,
    Extent,
    FileExtent,
    SourceWindow,
    chunks,
)
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.outputs.rewritable import Rewritable

__all__ = ["other_record"]


def other_record(written: Path, original: Rewritable, rewriting: Rewriting) -> str | None:
    """Return which record of an archive is not what it was, or should have become, or None."""
    # The record of an earlier conversion gives way to that of this one.
    ours = {original.record_path}
    expected: dict[str, bytes | Extent] = {
        name: original.archive.extent(name)
        for name in original.archive.records
        if name not in rewriting.dropped | ours | rewriting.nested.keys()
    }
    expected |= rewriting.replaced
    with closing(ByteSource(written)) as source:
        archive = ZipArchive(source)
        for name, records in rewriting.nested.items():
            if name not in archive.records:
                return f"record {name} is missing"
            extent = archive.extent(name)
            if not isinstance(extent, FileExtent):
                return f"record {name} is compressed"
            inner = ZipArchive(SourceWindow(source, extent.start, extent.size_bytes))
            if found := _difference(inner, records, set()):
                return f"in record {name}, {found}"
        return _difference(archive, expected, ours | rewriting.nested.keys())


def _difference(
    archive: ZipArchive, expected: Mapping[str, bytes | Extent], beside: set[str]
) -> str | None:
    for name in expected.keys() ^ (archive.records.keys() - beside):
        return f"record {name} is {'missing' if name in expected else 'one too many'}"
    for name, content in expected.items():
        wanted = BytesExtent(content) if isinstance(content, bytes) else content
        if not _is_same(archive.extent(name), wanted):
            return f"record {name} differs"
    return None


def _is_same(first: Extent, second: Extent) -> bool:
    return first.size_bytes == second.size_bytes and not any(map(ne, chunks(first), chunks(second)))
