"""TorchScript archives, as they are written: what an edit changes, and all else byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from typing import BinaryIO

from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.checkpoints.torchscript import record_path
from frozenbn_cli.containers.source import chunks
from frozenbn_cli.containers.zip_writer import ZipWriter
from frozenbn_cli.errors import located
from frozenbn_cli.torchscript.rewriting import Rewriting
from frozenbn_cli.torchscript.script_archive import ScriptArchive

__all__ = ["TorchScriptOutput"]


class TorchScriptOutput:
    """A TorchScript archive, whose record is one of its extra files."""

    def __init__(self, file: BinaryIO, script: ScriptArchive, rewriting: Rewriting) -> None:
        self._writer = ZipWriter(file)
        self._script = script
        self._rewriting = rewriting
        self._record_path = record_path(script.root)
        self._finished = False

    def write_tensors(self, count: Callable[[int], None]) -> None:
        """Write every record, changed or as it was."""
        archive, replaced = self._script.archive, dict(self._rewriting.replaced)
        for name in archive.records:
            if name in replaced:
                self._writer.add(name, replaced.pop(name))
            elif name not in self._rewriting.dropped and name != self._record_path:
                extent = archive.extent(name)
                with (
                    located(f"record {name}"),
                    self._writer.record(name, extent.size_bytes, crc32=extent.crc32),
                ):
                    for chunk in chunks(extent):
                        self._writer.write(chunk)
                        count(len(chunk))
        for name, content in replaced.items():
            self._writer.add(name, content)

    def finish(self, record: ConversionRecord) -> None:
        """Write the record and the directory."""
        if self._finished:
            self._writer.drop_last()
        self._writer.add(self._record_path, record.to_text().encode())
        self._writer.write_directory()
        self._finished = True
