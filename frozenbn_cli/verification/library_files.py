"""Converted files as the library of their format reads them: safetensors and PyTorch.

Imports torch.
"""

from __future__ import annotations

import ctypes
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from frozenbn_cli.batch_norms.batch_norm import Eps
from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.checkpoints import StoredTensor, open_checkpoint
from frozenbn_cli.containers.utf8_path import utf8_path
from frozenbn_cli.errors import VerificationError
from frozenbn_cli.outputs import OutputFormat

__all__ = ["open_with_library"]

_WINDOW_BYTES = 128 << 20
"""How much of a mapped file is read before it is mapped anew."""


def open_with_library(path: Path, output_format: OutputFormat) -> _LibraryFile:
    """Open an output with the library that its format belongs to.

    Args:
        path: The output.
        output_format: Of it.

    Raises:
        VerificationError: The library that is installed cannot read it.
    """
    try:
        return _FILES[output_format](utf8_path(path))
    except (SafetensorError, UnpicklingError) as error:
        raise VerificationError(
            f"the output cannot be read back ({str(error).splitlines()[0]})",
            advice=f"A newer {output_format} may know its dtypes; nothing was written.",
        ) from error


class _Window:
    """Opens a mapped file anew after so many bytes: pages that were read stay in memory till then.

    Args:
        open_file: Opens the file.
    """

    def __init__(self, open_file: Callable[[], Any]) -> None:
        self._open = open_file
        self.file = open_file()
        self._read_bytes = 0

    def count(self, tensor: Tensor) -> Tensor:
        """Return ``tensor``, which was read from the file."""
        self._read_bytes += tensor.nbytes
        if self._read_bytes > _WINDOW_BYTES:
            self._read_bytes = 0
            self.file = self._open()
        return tensor


class _LibraryFile(ABC):
    """A file that a library reads, a window of it at a time where it is mapped."""

    def __init__(self, path: Path, *, is_mapped: bool) -> None:
        self._path = path
        self._is_mapped = is_mapped
        self._window = _Window(self._open)

    def __reduce__(self) -> tuple[type[_LibraryFile], tuple[Path]]:
        return type(self), (self._path,)

    @abstractmethod
    def _open(self) -> Any:
        """Return what the library makes of the file."""

    @abstractmethod
    def _metadata(self) -> Mapping[str, str]:
        """Return the metadata of the file."""

    @abstractmethod
    def names(self) -> Set[str]:
        """Return the names of the entries."""

    @abstractmethod
    def tensor(self, name: str) -> Tensor:
        """Return an entry, as the library reads it."""

    def stated_eps(self) -> Mapping[str, Eps]:
        """Return the eps that the file states for each frozen layer."""
        record = ConversionRecord.from_metadata(self._metadata())
        return record.layers if record else {}

    def holds(self, name: str, expected: StoredTensor) -> bool:
        """Return whether an entry has this dtype, this shape and these bits."""
        found = self.tensor(name)
        is_alike = str(found.dtype) == f"torch.{expected.dtype.name}"
        return (
            is_alike and tuple(found.shape) == expected.shape and self._has(name, found, expected)
        )

    def _has(self, name: str, found: Tensor, expected: StoredTensor) -> bool:
        """Compare piece by piece, and keep no more than a window in memory, however large it is."""
        is_mapped = self._is_mapped and found.is_contiguous()
        memory, position, window_end = _plain(found), 0, _WINDOW_BYTES
        for chunk in expected.chunks():
            if position >= window_end and is_mapped:
                memory, window_end = _plain(self.tensor(name)), position + _WINDOW_BYTES
            # Several times as fast as `torch.equal`.
            if ctypes.string_at(memory.data_ptr() + position, len(chunk)) != chunk:
                return False
            position += len(chunk)
        return True


def _plain(tensor: Tensor) -> Tensor:
    """Return a tensor whose memory is its elements in row-major order."""
    return tensor.resolve_conj().resolve_neg().contiguous()


class _SafetensorsFile(_LibraryFile):
    def __init__(self, path: Path) -> None:
        super().__init__(path, is_mapped=True)
        # The library lists them anew each time.
        self._names: Set[str] = frozenset(self._window.file.keys())

    def _open(self) -> Any:
        return safe_open(self._path, framework="pt")

    def _metadata(self) -> Mapping[str, str]:
        return self._window.file.metadata() or {}

    def names(self) -> Set[str]:
        return self._names

    def tensor(self, name: str) -> Tensor:
        return self._window.count(self._window.file.get_tensor(name))


class _TorchFile(_LibraryFile):
    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            is_mapped = file.read(4) == b"PK\3\4"
        super().__init__(path, is_mapped=is_mapped)

    def _open(self) -> Any:
        with warnings.catch_warnings():
            # Of sparse and quantised tensors, which are said to be left out elsewhere.
            warnings.simplefilter("ignore")
            return torch.load(
                self._path, weights_only=True, mmap=self._is_mapped, map_location="cpu"
            )

    def _metadata(self) -> Mapping[str, str]:
        with open_checkpoint(self._path, keep_prefix=True) as checkpoint:
            return checkpoint.metadata

    def names(self) -> Set[str]:
        names: Set[str] = self._window.file.keys()
        return names

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._window.file[name].detach()
        # Of the legacy format all is read at once, and kept.
        return self._window.count(tensor) if self._is_mapped else tensor


_FILES: Mapping[OutputFormat, Callable[[Path], _LibraryFile]] = {
    "safetensors": _SafetensorsFile,
    "torch": _TorchFile,
}
