"""Rewritten archives: what an edit changes, and all else byte for byte."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import BinaryIO

from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.containers.rewriting import Rewriting
from frozenbn_cli.containers.source import views
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.containers.zip_writer import ZipWriter, archive_views
from frozenbn_cli.errors import located

__all__ = ["RewrittenOutput"]


class RewrittenOutput:
    """A TorchScript archive or one of exported programs, whose record is one of its extra files.

    Args:
        file: To write to.
        archive: The original.
        rewriting: What becomes of it.
        record_path: Where it carries the record.
    """

    def __init__(
        self, file: BinaryIO, archive: ZipArchive, rewriting: Rewriting, record_path: str
    ) -> None:
        self._writer = ZipWriter(file)
        self._archive = archive
        self._rewriting = rewriting
        self._record_path = record_path

    def write_tensors(self, count: Callable[[int], None]) -> None:
        """Write every record, changed or as it was."""
        nested, replaced = self._rewriting.nested, dict(self._rewriting.replaced)
        for name in self._archive.records:
            if name in replaced:
                self._writer.add(name, replaced.pop(name))
            elif name in nested:
                self._copy(name, *archive_views(nested[name]), count)
            elif name not in self._rewriting.dropped and name != self._record_path:
                extent = self._archive.extent(name)
                self._copy(name, extent.size_bytes, views(extent), count, crc32=extent.crc32)
        for name, added in replaced.items():
            self._writer.add(name, added)

    def finish(self, record: ConversionRecord) -> None:
        """Write the record and the directory."""
        self._writer.finish_with(self._record_path, record.to_text().encode())

    def _copy(
        self,
        name: str,
        size_bytes: int,
        content: Iterable[bytes | memoryview],
        count: Callable[[int], None],
        *,
        crc32: int = 0,
    ) -> None:
        with located(f"record {name}"), self._writer.record(name, size_bytes, crc32=crc32):
            for chunk in content:
                self._writer.write(chunk)
                count(len(chunk))
