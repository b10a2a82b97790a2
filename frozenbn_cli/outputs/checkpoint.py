"""Training checkpoints, as they are written: in the structure and the format of the input.

In the legacy format, the record is one more entry of what the file says of the machine that wrote
it, which `torch.load` does not ask for.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import BinaryIO

from frozenbn_cli.batch_norms.record import METADATA_KEY, ConversionRecord
from frozenbn_cli.checkpoints.pickled_tensors import storage_element_sizes
from frozenbn_cli.containers.legacy_stream import LEGACY_PROTOCOL, LegacyStream
from frozenbn_cli.containers.signatures import LEGACY_MAGIC
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.containers.zip_writer import ZipWriter
from frozenbn_cli.errors import located
from frozenbn_cli.outputs.patched import with_edits
from frozenbn_cli.pickles.writer import write_pickle
from frozenbn_cli.training.edited import EditedCheckpoint

__all__ = ["CheckpointOutput"]


class CheckpointOutput:
    """A training checkpoint, whose unchanged records are copied byte for byte."""

    def __init__(self, file: BinaryIO, edited: EditedCheckpoint, longest: ConversionRecord) -> None:
        self._file: _Zip | _Legacy
        archive, legacy = edited.stored.archive, edited.stored.legacy
        if archive is not None:
            self._file = _Zip(file, edited, archive)
        elif legacy is not None:
            self._file = _Legacy(file, edited, legacy, len(longest.to_text()))

    def write_tensors(self, count: Callable[[int], None]) -> None:
        """Write the pickle, and every storage that is still referred to."""
        self._file.write_tensors(count)

    def finish(self, record: ConversionRecord) -> None:
        """Write the record, and what ends the file."""
        self._file.finish(record)


class _Zip:
    def __init__(self, file: BinaryIO, edited: EditedCheckpoint, archive: ZipArchive) -> None:
        self._archive = archive
        self._writer = ZipWriter(file)
        self._edited = edited
        self._root = edited.stored.root
        self._record_path = f"{self._root}{METADATA_KEY}.json"

    def write_tensors(self, count: Callable[[int], None]) -> None:
        archive, root = self._archive, self._root
        pickle = write_pickle(self._edited.stored.pickle.value)
        # Records are aligned to 64 bytes here, whatever the input's were.
        replaced = {f"{root}data.pkl": pickle, f"{root}.storage_alignment": b"64"}
        left_out = {f"{root}data/{key}" for key in self._edited.dropped} | {self._record_path}
        for name in archive.records:
            if name in replaced:
                self._writer.add(name, replaced[name])
            elif name not in left_out:
                extent = archive.extent(name)
                patches = self._edited.patches.get(name.removeprefix(f"{root}data/"), {})
                crc32 = 0 if patches else extent.crc32
                with (
                    located(f"record {name}"),
                    self._writer.record(name, extent.size_bytes, crc32=crc32),
                ):
                    for chunk in with_edits(extent, patches.items()):
                        self._writer.write(chunk)
                        count(len(chunk))

    def finish(self, record: ConversionRecord) -> None:
        self._writer.finish_with(self._record_path, record.to_text().encode())


class _Legacy:
    def __init__(
        self, file: BinaryIO, edited: EditedCheckpoint, legacy: LegacyStream, room_bytes: int
    ) -> None:
        self._file = file
        self._edited = edited
        self._legacy = legacy
        self._room = room_bytes
        self._system_start = 0

    def write_tensors(self, count: Callable[[int], None]) -> None:
        stored, file = self._edited.stored, self._file
        file.write(write_pickle(LEGACY_MAGIC) + write_pickle(LEGACY_PROTOCOL))
        self._system_start = file.tell()
        file.write(self._system(""))
        file.write(write_pickle(stored.pickle.value))
        storages = {
            key: extent
            for key, extent in self._legacy.storages.items()
            if key not in self._edited.dropped
        }
        file.write(write_pickle(list(storages)))
        sizes = storage_element_sizes(stored.pickle)
        for key, extent in storages.items():
            with located(f"storage {key}"):
                file.write(struct.pack("<q", extent.size_bytes // sizes[key]))
                for chunk in with_edits(extent, self._edited.patches.get(key, {}).items()):
                    file.write(chunk)
                    count(len(chunk))

    def finish(self, record: ConversionRecord) -> None:
        self._file.seek(self._system_start)
        self._file.write(self._system(record.to_text()))
        self._file.seek(0, 2)

    def _system(self, text: str) -> bytes:
        """Return what the file says of its machine, as long as the longest record makes it."""
        return write_pickle({**self._legacy.system, METADATA_KEY: text.ljust(self._room)})
