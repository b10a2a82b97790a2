"""What files hold, as tensors: read by frozenbn, so that no library is led to run anything.

Imports torch.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frozenbn_cli.checkpoints import StoredTensor
from frozenbn_cli.checkpoints.pickled import read_value
from frozenbn_cli.checkpoints.pickled_tensors import TensorFinder, is_tensor
from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.errors import UnsupportedFileError
from frozenbn_cli.pickles.values import Call, Value, describe, items_of

__all__ = ["read_torch", "to_tensor"]

_MAX_DEPTH = 32


def to_tensor(stored: StoredTensor) -> Tensor:
    """Return a tensor as it lies in a file."""
    dtype = getattr(torch, stored.dtype.name)
    if not stored.elements:
        return torch.empty(stored.shape, dtype=dtype)
    return torch.frombuffer(bytearray(stored.read()), dtype=dtype).reshape(stored.shape)


def read_torch(path: Path) -> Any:
    """Return what `torch.save` wrote: tensors, numbers and text, in lists, tuples and dicts.

    Raises:
        InputError: The file is damaged, or holds something else.
    """
    with closing(ByteSource(path)) as source:
        value, finder = read_value(source)
        return _made(value, finder, 0)


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
