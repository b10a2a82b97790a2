"""Batches of a user's data: gone through again and again, and taken for the inputs of a model.

Imports torch. The code that makes them is the user's, and may raise anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from frozenbn_cli.errors import FrozenBNError, InputError, UsageError
from frozenbn_cli.live_models.guarding import first_line
from frozenbn_cli.live_models.inputs import Inputs, shape_text, tensors_in

__all__ = ["Batches", "inputs_of", "opened"]

_END = object()
_T = TypeVar("_T")


class Batches:
    """The inputs in each batch, to be gone through several times.

    Args:
        batches: An iterable; what returns one when it is called; or an iterator, which gives its
            batches but once, so that they are kept in memory.
        at_most: How many of them count; None for all.
    """

    def __init__(self, batches: Any, at_most: int | None = None) -> None:
        self._batches = batches
        self._at_most = at_most
        self._kept: list[Inputs] | None = None

    def __iter__(self) -> Iterator[Inputs]:
        """Go through them once more.

        Raises:
            UsageError: The code that makes them fails, or makes what cannot be gone through.
            InputError: A batch is none, or holds NaN or Inf.
        """
        if self._kept is not None:
            yield from self._kept
            return
        source = _asked(lambda: opened(self._batches), 1)
        kept: list[Inputs] | None = [] if source is self._batches else None
        number = 0
        while self._at_most is None or number < self._at_most:
            number += 1
            batch = _asked(lambda: next(source, _END), number)
            if batch is _END:
                break
            inputs = inputs_of(batch, number)
            if kept is not None:
                # What makes it may use its memory again, and so may a model.
                kept.append(Inputs(*inputs.of_dtype(None), shown=inputs.shown))
            yield inputs
        self._kept = kept

    def count(self) -> int:
        """Return how many there are; 0 where that shows only at the end."""
        try:
            count = len(self._batches)
        except Exception:  # Such as that of a data loader over a stream.
            return self._at_most or 0
        return count if self._at_most is None else min(count, self._at_most)


def opened(batches: Any) -> Iterator[Any]:
    """Begin to go through batches, which an iterable gives, or what a callable returns.

    Raises:
        UsageError: They are no batches.
    """
    if callable(batches) and not isinstance(batches, Iterable):
        batches = batches()
    if isinstance(batches, (Tensor, Mapping, str)) or not isinstance(batches, Iterable):
        raise UsageError(expected="what gives batches", found=type(batches).__name__)
    return iter(batches)


def _asked(ask: Callable[[], _T], number: int) -> _T:
    """Return what the user's code gives for a batch."""
    try:
        return ask()
    except FrozenBNError as error:
        error.where = ("the data", *error.where)
        raise
    except Exception as error:
        raise UsageError(
            f"making it failed ({type(error).__name__}: {first_line(error)})",
            where=("the data", f"batch {number:,}"),
        ) from error


def inputs_of(batch: Any, number: int) -> Inputs:
    """Return what a model is given of a batch.

    Args:
        batch: A tensor; a tuple or list, whose first is the input; or a dict of inputs by name.
        number: Of the batch, from 1, for messages.

    Raises:
        InputError: It is none of these, or holds NaN or Inf.
    """
    where = ("the data", f"batch {number:,}")
    value = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if isinstance(value, Mapping):
        given = {name: _as_tensors(part) for name, part in value.items()}
        inputs = Inputs((), given, shape_text(given))
    else:
        value = _as_tensors(value)
        inputs = Inputs((value,), shown=shape_text(value))
    tensors = list(tensors_in([*inputs.arguments, dict(inputs.keywords)]))
    if not tensors:
        raise InputError(
            where=where,
            expected="a tensor, a tuple whose first is the input, or a dict of inputs by name",
            found=type(batch).__name__,
        )
    if not all(isinstance(name, str) for name in inputs.keywords):
        raise InputError(where=where, expected="names of inputs as keys", found="other keys")
    for tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"holds NaN or Inf ({inputs.shown})", where=where)
    return inputs


def _as_tensors(value: Any) -> Any:
    """Return a value with its NumPy arrays as tensors."""
    if type(value).__module__ == "numpy" and hasattr(value, "dtype"):
        return torch.as_tensor(value)
    if isinstance(value, list):
        return [_as_tensors(part) for part in value]
    return value
