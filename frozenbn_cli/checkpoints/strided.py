"""Gathers the elements of a strided view in row-major order, a bounded piece at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Literal, NamedTuple

from frozenbn_cli.containers.source import CHUNK_BYTES, Extent
from frozenbn_cli.errors import UnsupportedFileError

__all__ = ["gather"]

_WINDOW_BYTES = 16 << 20
_GAP_BYTES = 32 << 10  # As long as it takes to begin one more read.
_MAX_RUNS = 4_000_000  # Each is a step in Python; a transposed matrix has as many as columns.
_WORDS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}


class _Axis(NamedTuple):
    """A dimension: its size, and the distance of neighbours in elements, there and gathered."""

    size: int
    stride: int
    step: int = 0


def gather(
    storage: Extent, offset: int, shape: Sequence[int], strides: Sequence[int], item_bytes: int
) -> Iterator[bytearray]:
    """Yield the elements of a view in row-major order, in pieces of whole elements.

    No more than some windows of 16 MB are held, whatever the view: where rows interleave, as those
    of a transposed matrix do, the storage is read several times rather than as a whole.

    Args:
        storage: The bytes that the view looks at, which it does not reach out of.
        offset: Of the first element, in elements.
        shape: In elements, none 0.
        strides: In elements, not negative.
        item_bytes: The size of an element: 1, 2, 4, 8 or 16.

    Raises:
        UnsupportedFileError: The elements lie scattered beyond reason.
    """
    if item_bytes == 16:
        # Two words each, since no machine word is as wide.
        offset, item_bytes = 2 * offset, 8
        shape, strides = (*shape, 2), (*(2 * stride for stride in strides), 1)
    axes = _merged(shape, strides)
    _check_runs(axes)
    _, first = next(_parts(offset, axes, CHUNK_BYTES // item_bytes))
    interleaved = _span(first) > 2 * _elements(first)
    part_bytes = _WINDOW_BYTES if interleaved else CHUNK_BYTES
    for part_offset, part in _parts(offset, axes, part_bytes // item_bytes):
        yield _gathered(storage, part_offset, part, item_bytes)


def _merged(shape: Sequence[int], strides: Sequence[int]) -> list[_Axis]:
    """Return the axes, those made one that run on in each other."""
    axes: list[_Axis] = []
    for size, stride in zip(shape, strides, strict=True):
        if axes and axes[-1].stride == size * stride:
            axes[-1] = _Axis(axes[-1].size * size, stride)
        elif size != 1:
            axes.append(_Axis(size, stride))
    return axes or [_Axis(1, 1)]


def _check_runs(axes: Sequence[_Axis]) -> None:
    longest = max(axes, key=_length)
    if _elements(axes) > _MAX_RUNS * longest.size:
        raise UnsupportedFileError(f"a tensor in more than {_MAX_RUNS:,} runs of bytes")


def _length(axis: _Axis) -> int:
    return axis.size if axis.stride else 0


def _elements(axes: Sequence[_Axis]) -> int:
    return math.prod(axis.size for axis in axes)


def _span(axes: Sequence[_Axis]) -> int:
    """Return the elements from the first to the last, with what lies between."""
    return 1 + sum((axis.size - 1) * axis.stride for axis in axes)


def _parts(
    offset: int, axes: Sequence[_Axis], at_most: int
) -> Iterator[tuple[int, Sequence[_Axis]]]:
    """Yield views of at most so many elements, which follow each other in row-major order."""
    cut, inner = len(axes), 1
    while cut and inner * axes[cut - 1].size <= at_most:
        cut -= 1
        inner *= axes[cut].size
    if not cut:
        yield offset, axes
        return
    *outer, divided = axes[:cut]
    at_once = max(at_most // inner, 1)
    for place in product(*(range(axis.size) for axis in outer)):
        start = offset + sum(at * axis.stride for at, axis in zip(place, outer, strict=True))
        for first in range(0, divided.size, at_once):
            rows = divided._replace(size=min(at_once, divided.size - first))
            yield start + first * divided.stride, (rows, *axes[cut:])


def _gathered(storage: Extent, offset: int, axes: Sequence[_Axis], item_bytes: int) -> bytearray:
    """Return the elements of a view that is small itself, however far its elements lie apart."""
    steps = [_elements(axes[position + 1 :]) for position in range(len(axes))]
    whole = [axis._replace(step=step) for axis, step in zip(axes, steps, strict=True)]
    word = _WORDS[item_bytes]
    gathered = bytearray(_elements(axes) * item_bytes)
    target = memoryview(gathered).cast(word)
    for start, target_start, part in _windows(offset, 0, whole, item_bytes):
        stored = storage.read(start * item_bytes, _span(part) * item_bytes)
        _scatter(memoryview(stored).cast(word), target[target_start:], part)
    return gathered


def _windows(
    start: int, target_start: int, axes: Sequence[_Axis], item_bytes: int
) -> Iterator[tuple[int, int, Sequence[_Axis]]]:
    """Yield views that each span no more than a window, and where their elements go."""
    at_most = _WINDOW_BYTES // item_bytes
    if _span(axes) <= at_most:
        yield start, target_start, axes
        return
    widest = max((axis for axis in axes if axis.size > 1), key=lambda axis: axis.stride)
    others = [axis for axis in axes if axis is not widest]
    inner = _span(others)
    is_near = (widest.stride - inner) * item_bytes <= _GAP_BYTES
    at_once = max((at_most - inner) // widest.stride + 1, 1) if is_near else 1
    for first in range(0, widest.size, at_once):
        some = widest._replace(size=min(at_once, widest.size - first))
        yield from _windows(
            start + first * widest.stride,
            target_start + first * widest.step,
            [some, *others],
            item_bytes,
        )


def _scatter(source: memoryview, target: memoryview, axes: Sequence[_Axis]) -> None:
    """Copy elements to their places; the longest axis by slices, the others are walked."""
    *walked, (count, stride, step) = sorted(axes, key=_length)
    for place in product(*(range(axis.size) for axis in walked)):
        start = sum(at * axis.stride for at, axis in zip(place, walked, strict=True))
        begin = sum(at * axis.step for at, axis in zip(place, walked, strict=True))
        run = source[start : start + (count - 1) * stride + 1 : max(stride, 1)]
        if not stride:
            run = memoryview(bytes(run) * count).cast(source.format)  # type: ignore[call-overload]
        target[begin : begin + (count - 1) * step + 1 : step] = run
