"""Converted files, opened anew: our own with the library of their format. Imports torch."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping, Set
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from frozenbn_cli.batch_norms.batch_norm import Eps, find_batch_norms
from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.checkpoints import Checkpoint, StateDict, open_checkpoint
from frozenbn_cli.containers.utf8_path import utf8_path
from frozenbn_cli.errors import VerificationError
from frozenbn_cli.live_models.stored_values import to_tensor
from frozenbn_cli.outputs import OutputFormat

__all__ = ["WINDOW_BYTES", "WrittenFile", "open_part", "open_written"]


WINDOW_BYTES = 128 << 20
"""How much of a mapped file is read before it is mapped anew."""


class WrittenFile(Protocol):
    """A converted file, opened anew.

    Attributes:
        is_mapped: Whether what was read of a tensor stays in memory as long as the tensor.
    """

    is_mapped: bool

    def names(self) -> Set[str]:
        """Return the names of the entries."""

    def stated_eps(self) -> Mapping[str, Eps]:
        """Return the eps that the file states for each frozen layer."""

    def tensor(self, name: str) -> Tensor:
        """Return an entry, as the library reads it."""


def open_written(path: Path, output_format: OutputFormat, *, key: str = "") -> WrittenFile:
    """Open an output with the library that its format belongs to.

    Args:
        path: The output.
        output_format: Of it.
        key: Of the program that is meant, where it holds several.

    Raises:
        VerificationError: The library that is installed cannot read it.
    """
    try:
        if output_format in ("torchscript", "pt2"):
            return _RewrittenFile(utf8_path(path), key)
        return _FILES[output_format](utf8_path(path))
    except (SafetensorError, UnpicklingError) as error:
        raise VerificationError(
            f"the output cannot be read back ({str(error).splitlines()[0]})",
            advice=f"A newer {output_format} may know its dtypes; nothing was written.",
        ) from error


def open_part(checkpoint: Checkpoint, part: StateDict) -> WrittenFile:
    """Return one state dict of a file that is open, read as inert values.

    Anybody may have written the file, so no library that could be led to run or allocate something
    reads it.
    """
    return _Inert(part, checkpoint.metadata)


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
        if self._read_bytes > WINDOW_BYTES:
            self._read_bytes = 0
            self.file = self._open()
        return tensor


class _SafetensorsFile:
    is_mapped = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._window = _Window(partial(safe_open, path, framework="pt"))
        # The library lists them anew each time.
        self._names: Set[str] = frozenset(self._window.file.keys())

    def __reduce__(self) -> tuple[type[_SafetensorsFile], tuple[Path]]:
        return _SafetensorsFile, (self._path,)

    def names(self) -> Set[str]:
        return self._names

    def stated_eps(self) -> Mapping[str, Eps]:
        return _stated_eps(self._window.file.metadata() or {})

    def tensor(self, name: str) -> Tensor:
        return self._window.count(self._window.file.get_tensor(name))


class _TorchFile:
    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self.is_mapped = file.read(4) == b"PK\3\4"
        self._path = path
        self._window = _Window(self._load)
        with open_checkpoint(path, keep_prefix=True) as checkpoint:
            self._metadata = checkpoint.metadata

    def __reduce__(self) -> tuple[type[_TorchFile], tuple[Path]]:
        return _TorchFile, (self._path,)

    def names(self) -> Set[str]:
        names: Set[str] = self._window.file.keys()
        return names

    def stated_eps(self) -> Mapping[str, Eps]:
        return _stated_eps(self._metadata)

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._window.file[name].detach()
        # Of the legacy format all is read at once, and kept.
        return self._window.count(tensor) if self.is_mapped else tensor

    def _load(self) -> Any:
        with warnings.catch_warnings():
            # Of sparse and quantised tensors, which are said to be left out elsewhere.
            warnings.simplefilter("ignore")
            return torch.load(
                self._path, weights_only=True, mmap=self.is_mapped, map_location="cpu"
            )


class _Inert:
    """Read as text and inert values, since loading a file can run code."""

    is_mapped = False

    def __init__(self, part: StateDict, metadata: Mapping[str, str]) -> None:
        self._part = part
        self._metadata = metadata

    def names(self) -> Set[str]:
        return self._part.entries.keys()

    def stated_eps(self) -> Mapping[str, Eps]:
        record = ConversionRecord.from_metadata(self._metadata)
        stated = dict(record.of(self._part).layers) if record else {}
        # What a module or an archive says itself counts for more than its record.
        return stated | {
            layer.name: layer.eps
            for layer in find_batch_norms(self._part)
            if layer.eps.source == "read"
        }

    def tensor(self, name: str) -> Tensor:
        return to_tensor(self._part.entries[name])


class _RewrittenFile(_Inert):
    """An archive of code or graphs, of which loading would run something."""

    def __init__(self, path: Path, key: str) -> None:
        checkpoint = open_checkpoint(path)
        weakref.finalize(self, checkpoint.close)
        super().__init__(checkpoint.state_dict(key or None), {})

    def stated_eps(self) -> Mapping[str, Eps]:
        # Only of layers that never run is it assumed: their code does not say it.
        return {layer.name: layer.eps for layer in find_batch_norms(self._part)}


class _CheckpointFile(_Inert):
    """The one state dict of a training checkpoint; `verify_checkpoint_contents` reads all else."""

    def __init__(self, path: Path) -> None:
        checkpoint = open_checkpoint(path, keep_prefix=True)
        weakref.finalize(self, checkpoint.close)
        super().__init__(checkpoint.state_dict(), checkpoint.metadata)


_FILES: Mapping[OutputFormat, Callable[[Path], WrittenFile]] = {
    "safetensors": _SafetensorsFile,
    "torch": _TorchFile,
    "checkpoint": _CheckpointFile,
}


def _stated_eps(metadata: Mapping[str, str]) -> Mapping[str, Eps]:
    record = ConversionRecord.from_metadata(metadata)
    return record.layers if record else {}
