"""Opens safetensors files."""

from __future__ import annotations

from frozenbn_cli.checkpoints.checkpoint import Checkpoint, StateDict
from frozenbn_cli.checkpoints.names import Naming
from frozenbn_cli.checkpoints.tensors import StoredTensor, dtype_of_code
from frozenbn_cli.containers.safetensors_file import read_header
from frozenbn_cli.containers.source import ByteSource, FileExtent
from frozenbn_cli.errors import located

__all__ = ["open_safetensors", "read_entries"]


def open_safetensors(source: ByteSource, *, naming: Naming) -> Checkpoint:
    """Open a safetensors file.

    Raises:
        DamagedFileError: The header contradicts the format or the file's size.
        UnsupportedFileError: An entry has a dtype that is not supported.
    """
    entries, metadata = read_entries(source)
    part = StateDict("", entries)
    return Checkpoint(
        sources=(source,),
        kind="state dict",
        container="safetensors",
        state_dicts=(naming.apply(part),),
        metadata=metadata,
    )


def read_entries(source: ByteSource) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Return the entries of a safetensors file, and its metadata; raises as above."""
    header = read_header(source)
    entries: dict[str, StoredTensor] = {}
    for name, entry in header.entries.items():
        with located(f"entry {name[:80]!a}"):
            entries[name] = StoredTensor.contiguous(
                dtype_of_code(entry.dtype),
                entry.shape,
                FileExtent(source, entry.start, entry.size_bytes),
            )
    return entries, header.metadata
