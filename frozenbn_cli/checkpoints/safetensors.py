"""Opens safetensors files."""

from __future__ import annotations

from frozenbn_cli.checkpoints.checkpoint import Checkpoint
from frozenbn_cli.checkpoints.tensors import StoredTensor, dtype_of_code
from frozenbn_cli.containers.safetensors_file import read_header
from frozenbn_cli.containers.source import ByteSource, FileExtent
from frozenbn_cli.errors import located

__all__ = ["open_safetensors"]


def open_safetensors(source: ByteSource) -> Checkpoint:
    """Open a safetensors file.

    Raises:
        DamagedFileError: The header contradicts the format or the file's size.
        UnsupportedFileError: An entry has a dtype that is not supported.
    """
    header = read_header(source)
    entries: dict[str, StoredTensor] = {}
    for name, entry in header.entries.items():
        with located(f"entry {name[:80]!a}"):
            entries[name] = StoredTensor.contiguous(
                dtype_of_code(entry.dtype),
                entry.shape,
                FileExtent(source, entry.start, entry.size_bytes),
            )
    return Checkpoint(source, "state dict", "safetensors", entries, metadata=header.metadata)
