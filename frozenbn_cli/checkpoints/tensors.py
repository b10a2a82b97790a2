"""Tensors as they lie in a file: a dtype and a strided view of a storage, read on demand."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from frozenbn_cli.checkpoints.strided import gather
from frozenbn_cli.containers.source import Extent, chunks, views
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
        DType("uint64", 8, "U64", "UInt64Storage", "int"),
        DType("uint32", 4, "U32", "UInt32Storage", "int"),
        DType("uint16", 2, "U16", "UInt16Storage", "int"),
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
        return self._pieces(chunks)

    def views(self) -> Iterator[bytes | memoryview]:
        """Yield the same, each piece for as long as the next is not asked for.

        Raises:
            UnsupportedFileError: The elements lie scattered beyond reason.
        """
        return self._pieces(views)

    def _pieces(self, read: Callable[[Extent, int, int], Iterator[Any]]) -> Iterator[Any]:
        if self.is_contiguous and not (self.conjugate and self.elements):
            return read(self.storage, self.offset * self.dtype.item_bytes, self.size_bytes)
        return self._gathered()

    def _gathered(self) -> Iterator[bytes]:
        item_bytes = self.dtype.item_bytes
        for part in gather(self.storage, self.offset, self.shape, self.strides, item_bytes):
            yield _conjugated(part, self.dtype) if self.conjugate else bytes(part)

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

_SIGN_FLIPPED = bytes(byte ^ 0x80 for byte in range(256))


def _conjugated(elements: bytearray, dtype: DType) -> bytes:
    # The sign is the top bit of the last byte of each imaginary part.
    last = dtype.item_bytes - 1
    elements[last :: dtype.item_bytes] = elements[last :: dtype.item_bytes].translate(_SIGN_FLIPPED)
    return bytes(elements)
