"""Copies of checkpoints in which some tensors have other elements, and all else its bytes.

Nothing is pickled anew: elements are replaced where they lie, so that the copy is of the same
format, kind and structure, whatever stands in it.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import ne
from pathlib import Path
from typing import BinaryIO

from frozenbn_cli.checkpoints import Checkpoint, StoredTensor
from frozenbn_cli.containers.source import ByteSource, Extent, FileExtent, chunks
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.containers.zip_writer import ZipWriter
from frozenbn_cli.errors import UnsupportedFileError, located

__all__ = ["PatchedCopy", "with_edits"]

_WHOLE = ""  # What stands for the record of a file that is no archive.
_Edits = list[tuple[int, bytes]]


class PatchedCopy:
    """A copy of a checkpoint with other elements in some of its tensors.

    Args:
        checkpoint: An open file that is no TorchScript archive.

    Raises:
        UnsupportedFileError: It consists of several files.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        if len(checkpoint.sources) > 1:
            raise UnsupportedFileError(
                "a model in several files", advice="Make one of them, with safetensors' save_file."
            )
        self._source = checkpoint.sources[0]
        self._archive = checkpoint.archive
        self._records = self._stored_records()
        self._starts = [extent.start for _, extent in self._records]
        self._edits: dict[str, _Edits] = {}

    def _stored_records(self) -> list[tuple[str, FileExtent]]:
        if self._archive is None:
            return [(_WHOLE, FileExtent(self._source, 0, self._source.size_bytes))]
        extents = [(name, self._archive.extent(name)) for name in self._archive.records]
        stored = [(name, extent) for name, extent in extents if isinstance(extent, FileExtent)]
        return sorted(stored, key=lambda item: item[1].start)

    def check(self, name: str, tensor: StoredTensor) -> None:
        """Raise if the elements of a tensor cannot be replaced.

        Raises:
            UnsupportedFileError: They are not in the file as they are.
        """
        if not isinstance(tensor.storage, FileExtent):
            raise UnsupportedFileError(
                f"entry {name!a} lies within a pickle, or is compressed",
                advice="Load it, and save its state dict with torch.save.",
            )
        if tensor.elements > 1 and 0 in tensor.strides:
            raise UnsupportedFileError(f"entry {name!a} repeats one element")

    def replace(self, name: str, tensor: StoredTensor, content: bytes) -> None:
        """Replace the elements of a tensor of one dimension or none.

        Raises:
            UnsupportedFileError: They are not in the file as they are.
        """
        self.check(name, tensor)
        record, start = self._place(tensor)
        item_bytes = tensor.dtype.item_bytes
        edits = self._edits.setdefault(record, [])
        if tensor.is_contiguous:
            edits.append((start, content))
            return
        (stride,) = tensor.strides
        for index in range(tensor.elements):
            element = content[index * item_bytes : (index + 1) * item_bytes]
            edits.append((start + index * stride * item_bytes, element))

    def _place(self, tensor: StoredTensor) -> tuple[str, int]:
        """Return the record that a tensor lies in, and where in it."""
        storage: FileExtent = tensor.storage  # type: ignore[assignment]  # It was checked.
        start = storage.start + tensor.offset * tensor.dtype.item_bytes
        record, extent = self._records[bisect(self._starts, storage.start) - 1]
        return record, start - extent.start

    def write(self, file: BinaryIO, count: Callable[[int], None]) -> None:
        """Write the copy; ``count`` is told the bytes of each piece.

        Records without a change keep the checksum that the file states, which has to be checked
        (`Checkpoint.fingerprint`) before the copy may be used.
        """
        if self._archive is None:
            for chunk in self._chunks(_WHOLE):
                file.write(chunk)
                count(len(chunk))
            return
        writer = ZipWriter(file)
        for name in self._archive.records:
            extent = self._archive.extent(name)
            stated = 0 if name in self._edits else extent.crc32
            with located(f"record {name}"), writer.record(name, extent.size_bytes, crc32=stated):
                for chunk in self._chunks(name):
                    writer.write(chunk)
                    count(len(chunk))
        writer.write_directory()

    def difference(self, written: Path) -> str:
        """Return in what a file on the disk is another than the copy; empty for in nothing."""
        source = ByteSource(written)
        try:
            found = _extents(source, ZipArchive(source) if self._archive else None)
            names = self._archive.records.keys() if self._archive else {_WHOLE}
            for name in names ^ found.keys():
                return f"record {name} is {'missing' if name in names else 'one too many'}"
            for name in names:
                if found[name].size_bytes != self._extent(name).size_bytes or any(
                    map(ne, self._chunks(name), chunks(found[name]))
                ):
                    return f"record {name} differs" if name else "its bytes differ"
        finally:
            source.close()
        return ""

    def _extent(self, name: str) -> Extent:
        if self._archive is None:
            return FileExtent(self._source, 0, self._source.size_bytes)
        return self._archive.extent(name)

    def _chunks(self, name: str) -> Iterator[bytes]:
        """Return the bytes of a record, with the elements that are new."""
        return with_edits(self._extent(name), self._edits.get(name, ()))


def with_edits(extent: Extent, edits: Iterable[tuple[int, bytes]]) -> Iterator[bytes]:
    """Yield bytes in pieces, with those that are to be others, by where they begin."""
    edits = sorted(edits)
    position = 0
    for chunk in chunks(extent):
        yield _edited(chunk, position, edits) if edits else chunk
        position += len(chunk)


def _extents(source: ByteSource, archive: ZipArchive | None) -> Mapping[str, Extent]:
    if archive is None:
        return {_WHOLE: FileExtent(source, 0, source.size_bytes)}
    return {name: archive.extent(name) for name in archive.records}


def _edited(chunk: bytes, position: int, edits: _Edits) -> bytes:
    """Return a piece of a record with all that is new in it."""
    changed = bytearray(chunk)
    for start, content in edits:
        begin, end = start - position, start - position + len(content)
        if begin < len(chunk) and end > 0:
            part = content[max(-begin, 0) : len(chunk) - begin]
            changed[max(begin, 0) : max(begin, 0) + len(part)] = part
    return bytes(changed)
