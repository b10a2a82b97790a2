"""What files hold, as tensors: read by frozenbn, so that no library is led to run anything.

Imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frozenbn_cli.checkpoints import StoredTensor
from frozenbn_cli.checkpoints.numpy_files import read_npy, read_npz
from frozenbn_cli.checkpoints.pickled import read_value
from frozenbn_cli.checkpoints.pickled_tensors import TensorFinder, is_tensor
from frozenbn_cli.checkpoints.safetensors import read_entries
from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.errors import InputError, UnsupportedFileError
from frozenbn_cli.pickles.values import Call, Value, describe, items_of

__all__ = ["read_stored", "to_tensor"]

_MAX_DEPTH = 32


def to_tensor(stored: StoredTensor) -> Tensor:
    """Return a tensor as it lies in a file."""
    dtype = getattr(torch, stored.dtype.name)
    if not stored.elements:
        return torch.empty(stored.shape, dtype=dtype)
    return torch.frombuffer(bytearray(stored.read()), dtype=dtype).reshape(stored.shape)


def read_stored(path: Path) -> Any:
    """Return what a file holds: tensors, by place or name, and what else `torch.save` writes.

    Raises:
        InputError: The file is damaged, or of another kind than its name says.
    """
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise InputError(expected=" or ".join(_READERS), found=path.suffix or "no suffix")
    with closing(ByteSource(path)) as source:
        return reader(source)


def _read_torch(source: ByteSource) -> Any:
    """Return what `torch.save` wrote: tensors, numbers and text, in lists, tuples and dicts."""
    value, finder = read_value(source)
    return _made(value, finder, 0)


def _tensors(stored: Mapping[str, StoredTensor]) -> dict[str, Tensor]:
    return {name: to_tensor(tensor) for name, tensor in stored.items()}


_READERS: Mapping[str, Callable[[ByteSource], Any]] = {
    ".npz": lambda source: _tensors(read_npz(source)),
    ".npy": lambda source: to_tensor(read_npy(source)),
    ".safetensors": lambda source: _tensors(read_entries(source)[0]),
    ".pt": _read_torch,
    ".pth": _read_torch,
}


def _made(value: Value, finder: TensorFinder, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        raise UnsupportedFileError(f"values nested deeper than {_MAX_DEPTH} levels")
    if isinstance(value, Call) and is_tensor(value):
        finder.names.take("", value)
        return to_tensor(finder.tensor(value))
    if isinstance(value, (list, tuple)):
        return type(value)(_made(part, finder, depth + 1) for part in value)
    items = items_of(value)
    if items is not None:
        return {name: _made(part, finder, depth + 1) for name, part in items}
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    raise UnsupportedFileError(expected="tensors, numbers and text", found=describe(value))
