"""Converted files, opened anew: as inert values, or with the library of their format."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from frozenbn_cli.batch_norms.batch_norm import Eps, find_batch_norms
from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.checkpoints import Checkpoint, StateDict, StoredTensor, open_checkpoint
from frozenbn_cli.containers.utf8_path import utf8_path
from frozenbn_cli.outputs import OutputFormat
from frozenbn_cli.stages import import_torch_for

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Entries",
    "InertFile",
    "StoredEntries",
    "WrittenFile",
    "as_tensor",
    "open_part",
    "open_written",
]


class Entries(Protocol):
    """Tensors by name."""

    def names(self) -> Set[str]:
        """Return the names of the entries."""

    def tensor(self, name: str) -> Tensor:
        """Return an entry, as whoever reads the file does."""


class WrittenFile(Entries, Protocol):
    """A converted file, opened anew."""

    def stated_eps(self) -> Mapping[str, Eps]:
        """Return the eps that the file states for each frozen layer."""

    def holds(self, name: str, expected: StoredTensor) -> bool:
        """Return whether an entry has this dtype, this shape and these bits."""


def open_written(path: Path, output_format: OutputFormat, *, key: str = "") -> WrittenFile:
    """Open an output with the library that its format belongs to.

    Args:
        path: The output.
        output_format: Of it.
        key: Of the program that is meant, where it holds several.

    Raises:
        VerificationError: The library that is installed cannot read it.
    """
    if output_format in ("torchscript", "pt2"):
        return _RewrittenFile(utf8_path(path), key)
    library = import_torch_for("frozenbn_cli.verification.library_files")
    written: WrittenFile = library.open_with_library(path, output_format)
    return written


def open_part(checkpoint: Checkpoint, part: StateDict) -> WrittenFile:
    """Return one state dict of a file that is open, read as inert values.

    Anybody may have written the file, so no library that could be led to run or allocate something
    reads it.
    """
    return InertFile(part, checkpoint.metadata)


def as_tensor(stored: StoredTensor) -> Tensor:
    """Return a tensor as it lies in a file; this imports torch."""
    values = import_torch_for("frozenbn_cli.live_models.stored_values")
    tensor: Tensor = values.to_tensor(stored)
    return tensor


class StoredEntries:
    """Tensors as they lie in a file, or in memory, from where another process can get them.

    Args:
        entries: By name.
    """

    def __init__(self, entries: Mapping[str, StoredTensor]) -> None:
        self.entries = entries

    def names(self) -> Set[str]:
        """Return the names of the entries."""
        return self.entries.keys()

    def tensor(self, name: str) -> Tensor:
        """Return an entry."""
        return as_tensor(self.entries[name])

    def holds(self, name: str, expected: StoredTensor) -> bool:
        """Return whether an entry has this dtype, this shape and these bits."""
        found = self.entries[name]
        is_alike = (found.dtype, found.shape) == (expected.dtype, expected.shape)
        return is_alike and _have_same_bytes(found, expected)


def _have_same_bytes(first: StoredTensor, second: StoredTensor) -> bool:
    """Compare as many bytes of two tensors piece by piece, however they are cut."""
    pieces, left = second.chunks(), b""
    for piece in first.chunks():
        while len(left) < len(piece):
            left += next(pieces)
        if left[: len(piece)] != piece:
            return False
        left = left[len(piece) :]
    return True


class InertFile(StoredEntries):
    """Read as text and inert values, since loading a file can run code.

    Args:
        part: The state dict that is meant.
        metadata: Of the file.
    """

    def __init__(self, part: StateDict, metadata: Mapping[str, str]) -> None:
        super().__init__(part.entries)
        self._part, self._metadata = part, metadata

    def stated_eps(self) -> Mapping[str, Eps]:
        """Return the eps that the file states for each frozen layer."""
        record = ConversionRecord.from_metadata(self._metadata)
        stated = dict(record.of(self._part).layers) if record else {}
        # What a module or an archive says itself counts for more than its record.
        return stated | {
            layer.name: layer.eps
            for layer in find_batch_norms(self._part)
            if layer.eps.source == "read"
        }


class _RewrittenFile(InertFile):
    """An archive of code or graphs, of which loading would run something."""

    def __init__(self, path: Path, key: str) -> None:
        checkpoint = open_checkpoint(path)
        weakref.finalize(self, checkpoint.close)
        super().__init__(checkpoint.state_dict(key or None), {})

    def stated_eps(self) -> Mapping[str, Eps]:
        # Only of layers that never run is it assumed: their code does not say it.
        return {layer.name: layer.eps for layer in find_batch_norms(self._part)}
