"""Tensors as they lie in a file: a dtype and a strided view of a storage, read on demand."""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from frozenbn_cli.containers.source import CHUNK_BYTES, Extent, chunks
from frozenbn_cli.errors import DamagedFileError, UnsupportedFileError
from frozenbn_cli.pickles.values import Value, describe

__all__ = [
    "DTYPES",
    "DType",
    "StoredTensor",
    "dtype_of_code",
    "dtype_of_storage",
    "row_major_strides",
]

_MAX_EXPANDED_BYTES = 256 << 20
_MAX_DIMENSIONS = 64  # As in PyTorch.
_MAX_RUNS = 4_000_000  # Each is a step in Python; a transposed matrix has as many as columns.


@dataclass(frozen=True, slots=True)
class DType:
    """An element type.

    Attributes:
        name: As in ``torch.<name>``.
        item_bytes: The size of one element.
        code: The safetensors code, None where safetensors has none.
        storage: The name of the typed storage in old pickles, None where there is none.
        kind: ``float``, ``complex``, ``int`` or ``bool``.
    """

    name: str
    item_bytes: int
    code: str | None = None
    storage: str | None = None
    kind: str = "float"

    def __str__(self) -> str:
        return self.name


DTYPES = {
    dtype.name: dtype
    for dtype in (
        DType("float64", 8, "F64", "DoubleStorage"),
        DType("float32", 4, "F32", "FloatStorage"),
        DType("float16", 2, "F16", "HalfStorage"),
        DType("bfloat16", 2, "BF16", "BFloat16Storage"),
        DType("float8_e4m3fn", 1, "F8_E4M3", "Float8_e4m3fnStorage"),
        DType("float8_e5m2", 1, "F8_E5M2", "Float8_e5m2Storage"),
        DType("float8_e4m3fnuz", 1, "F8_E4M3FNUZ"),
        DType("float8_e5m2fnuz", 1, "F8_E5M2FNUZ"),
        DType("float8_e8m0fnu", 1, "F8_E8M0"),
        DType("complex32", 4, None, "ComplexHalfStorage", "complex"),
        DType("bcomplex32", 4, None, None, "complex"),
        DType("complex64", 8, "C64", "ComplexFloatStorage", "complex"),
        DType("complex128", 16, None, "ComplexDoubleStorage", "complex"),
        DType("int64", 8, "I64", "LongStorage", "int"),
        DType("int32", 4, "I32", "IntStorage", "int"),
        DType("int16", 2, "I16", "ShortStorage", "int"),
        DType("int8", 1, "I8", "CharStorage", "int"),
        DType("uint64", 8, "U64", None, "int"),
        DType("uint32", 4, "U32", None, "int"),
        DType("uint16", 2, "U16", None, "int"),
        DType("uint8", 1, "U8", "ByteStorage", "int"),
        DType("bool", 1, "BOOL", "BoolStorage", "bool"),
    )
}
"""Every element type that is read, by its name in torch."""

_BY_CODE = {dtype.code: dtype for dtype in DTYPES.values() if dtype.code}
_BY_STORAGE = {dtype.storage: dtype for dtype in DTYPES.values() if dtype.storage}
_BY_STORAGE["UntypedStorage"] = DTYPES["uint8"]


def dtype_of_code(code: str) -> DType:
    """Return the dtype of a safetensors code."""
    if code not in _BY_CODE:
        raise UnsupportedFileError(f"dtype {code[:40]!a} of safetensors is not supported")
    return _BY_CODE[code]


def dtype_of_storage(name: str) -> DType:
    """Return the dtype of a typed storage's class name; bytes for an untyped one."""
    if name not in _BY_STORAGE:
        raise UnsupportedFileError(f"storage type {name[:40]!a} is not supported")
    return _BY_STORAGE[name]


def row_major_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the strides, in elements, of a contiguous tensor of ``shape``."""
    strides = [1] * len(shape)
    for axis in reversed(range(len(shape) - 1)):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    return tuple(strides)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A view of a storage. Nothing is read until it is asked for.

    Attributes:
        dtype: Of the elements.
        shape: In elements.
        strides: In elements, one for each dimension, not negative.
        offset: Of the first element, in elements.
        storage: The bytes that the view looks at, possibly shared with other tensors.
        conjugate: Whether the stored imaginary parts stand for their negatives.

    Raises:
        DamagedFileError: The view reaches outside its storage, or is none.
        UnsupportedFileError: The view repeats a small storage beyond reason.
    """

    dtype: DType
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    storage: Extent
    conjugate: bool = False

    def __post_init__(self) -> None:
        _check_dimensions(self.shape)
        sizes = (*self.shape, *self.strides, self.offset)
        if len(self.shape) != len(self.strides) or not all(map(_is_size, sizes)):
            raise DamagedFileError(
                f"a tensor of shape {_listed(self.shape)}, strides {_listed(self.strides)} "
                f"and offset {describe(self.offset)}"
            )
        if self.conjugate and self.dtype.kind != "complex":
            raise DamagedFileError(f"a conjugate tensor of dtype {self.dtype}")
        end_bytes = (self.offset + self._span) * self.dtype.item_bytes
        if self._span and end_bytes > self.storage.size_bytes:
            raise DamagedFileError(
                "a tensor reaches outside its storage",
                expected=f"a storage of {end_bytes:,} bytes",
                found=f"{self.storage.size_bytes:,}",
            )
        if self.size_bytes > max(self.storage.size_bytes, _MAX_EXPANDED_BYTES):
            raise UnsupportedFileError(
                f"a tensor of shape {self.shape} repeats {self.storage.size_bytes:,} bytes "
                f"until they are {self.size_bytes:,}"
            )

    @classmethod
    def contiguous(cls, dtype: DType, shape: tuple[int, ...], storage: Extent) -> StoredTensor:
        """Return the view of the whole of ``storage`` in row-major order."""
        _check_dimensions(shape)
        tensor = cls(dtype, shape, row_major_strides(shape), 0, storage)
        if tensor.size_bytes != storage.size_bytes:
            raise DamagedFileError(
                f"a tensor of shape {shape} and dtype {dtype}",
                expected=f"{tensor.size_bytes:,} bytes",
                found=f"{storage.size_bytes:,}",
            )
        return tensor

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """The number of bytes of the elements in row-major order."""
        return self.elements * self.dtype.item_bytes

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in row-major order without holes."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return self.elements == 0
            expected *= size
        return True

    @property
    def crc32(self) -> int:
        """The checksum of the elements that the file states; 0 where it states none."""
        is_whole = self.is_contiguous and self.size_bytes == self.storage.size_bytes
        return self.storage.crc32 if is_whole and not self.conjugate else 0

    @property
    def _span(self) -> int:
        """The elements from the first to the last, with what lies between; 0 for none."""
        if not self.elements:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))

    def chunks(self) -> Iterator[bytes]:
        """Yield the elements in row-major order, little-endian, in pieces.

        Raises:
            UnsupportedFileError: The elements lie scattered beyond reason.
        """
        start = self.offset * self.dtype.item_bytes
        if self.is_contiguous and not self.conjugate:
            yield from chunks(self.storage, start, self.size_bytes)
            return
        _check_runs(_merged(self.shape, self.strides))
        for part in self._parts():
            start = part.offset * self.dtype.item_bytes
            stored = self.storage.read(start, part._span * self.dtype.item_bytes)
            gathered = _gather(stored, part.shape, self.strides, self.dtype.item_bytes)
            yield _conjugated(gathered, self.dtype) if self.conjugate else bytes(gathered)

    def _parts(self) -> Iterator[StoredTensor]:
        """Yield views of as many rows as fit in a piece; one of all rows where they interleave.

        A convolution's weights in channels_last are thus gathered a few at a time, and a transposed
        matrix as a whole.
        """
        rows, step = (self.shape[0], self.strides[0]) if self.shape else (1, 0)
        row = replace(self, shape=(1, *self.shape[1:])) if rows > 1 else self
        at_once = max(CHUNK_BYTES // max(row.size_bytes, 1), 1) if step >= row._span else rows
        for first in range(0, rows, max(at_once, 1)):
            yield replace(
                self,
                shape=(min(at_once, rows - first), *self.shape[1:]) if self.shape else (),
                offset=self.offset + first * step,
            )

    def read(self) -> bytes:
        """Return the elements in row-major order, little-endian."""
        return b"".join(self.chunks())

    def values(self) -> tuple[float, ...]:
        """Return the elements in row-major order as Python numbers.

        Raises:
            UnsupportedFileError: The dtype is complex or narrower than 16 bits and floating point.
        """
        encoded = self.read()
        if self.dtype.name == "bfloat16":
            # The upper half of a float32.
            wide = bytearray(2 * len(encoded))
            wide[2::4], wide[3::4] = encoded[::2], encoded[1::2]
            return struct.unpack(f"<{self.elements}f", wide)
        letter = _LETTERS.get(self.dtype.name)
        if letter is None:
            raise UnsupportedFileError(f"numbers of dtype {self.dtype} are not read")
        return struct.unpack(f"<{self.elements}{letter}", encoded)


def _check_dimensions(shape: tuple[int, ...]) -> None:
    if len(shape) > _MAX_DIMENSIONS:
        raise DamagedFileError(f"a tensor of {len(shape)} dimensions")


def _is_size(size: Value) -> bool:
    return type(size) is int and 0 <= size < 1 << 63


def _listed(sizes: tuple[Value, ...]) -> str:
    return "(" + ", ".join(map(describe, sizes[:_MAX_DIMENSIONS])) + ")"


_LETTERS = {
    "float64": "d", "float32": "f", "float16": "e", "bool": "?",
    "int64": "q", "int32": "i", "int16": "h", "int8": "b",
    "uint64": "Q", "uint32": "I", "uint16": "H", "uint8": "B",
}  # fmt: skip

_WORDS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
_SIGN_FLIPPED = bytes(byte ^ 0x80 for byte in range(256))


def _gather(
    stored: bytes, shape: Sequence[int], strides: Sequence[int], item_bytes: int
) -> bytearray:
    """Return the elements of a strided view in row-major order."""
    if item_bytes == 16:
        # Two words each, since no machine word is as wide.
        shape, strides, item_bytes = (*shape, 2), (*(2 * step for step in strides), 1), 8
    axes = _merged(shape, strides)
    word = _WORDS[item_bytes]
    source = memoryview(stored).cast(word)
    gathered = bytearray(math.prod(shape) * item_bytes)
    target = memoryview(gathered).cast(word)
    # The longest axis is copied by slices, the others are walked.
    axes.sort(key=_length)
    count, step, target_step = axes.pop()
    for place in itertools.product(*(range(size) for size, _, _ in axes)):
        start = sum(at * axis[1] for at, axis in zip(place, axes, strict=True))
        begin = sum(at * axis[2] for at, axis in zip(place, axes, strict=True))
        run = source[start : start + (count - 1) * step + 1 : max(step, 1)]
        if not step:
            run = memoryview(bytes(run) * count).cast(word)
        target[begin : begin + (count - 1) * target_step + 1 : target_step] = run
    return gathered


def _length(axis: tuple[int, int, int]) -> int:
    return axis[0] if axis[1] else 0


def _check_runs(axes: list[tuple[int, int, int]]) -> None:
    longest = max(axes, key=_length)
    if math.prod(size for size, _, _ in axes) > _MAX_RUNS * longest[0]:
        raise UnsupportedFileError(f"a tensor in more than {_MAX_RUNS:,} runs of bytes")


def _merged(shape: Sequence[int], strides: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return (size, stride, row-major stride) of each axis, neighbours that run on made one."""
    axes: list[tuple[int, int, int]] = []
    row_major = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if axes and axes[-1][0] * axes[-1][1] == stride and size != 1:
            axes[-1] = (axes[-1][0] * size, *axes[-1][1:])
        elif size != 1:
            axes.append((size, stride, row_major))
        row_major *= size
    return axes or [(1, 1, 1)]


def _conjugated(elements: bytearray, dtype: DType) -> bytes:
    # The sign is the top bit of the last byte of each imaginary part.
    last = dtype.item_bytes - 1
    elements[last :: dtype.item_bytes] = elements[last :: dtype.item_bytes].translate(_SIGN_FLIPPED)
    return bytes(elements)
