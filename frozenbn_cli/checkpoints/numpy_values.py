"""Finds NumPy arrays and numbers among inert values: the calls that would make them.

See ``numpy/_core/multiarray.py`` and ``numpy/_core/src/multiarray/methods.c`` (``__reduce__``).
"""

from __future__ import annotations

from collections.abc import Callable

from frozenbn_cli.checkpoints.tensors import (
    DTYPES,
    DType,
    StoredTensor,
    row_major_strides,
)
from frozenbn_cli.containers.source import BytesExtent, Extent
from frozenbn_cli.errors import DamagedFileError, UnsupportedFileError
from frozenbn_cli.pickles.values import Call, Global, LongBytes, Value, describe

__all__ = ["array", "array_of", "bytes_of", "dtype_of_code", "is_array", "number"]

_HOMES = {
    f"numpy.{core}.{module}" for core in ("core", "_core") for module in ("multiarray", "numeric")
}
_ENCODE = Global("_codecs", "encode")
_DTYPE = Global("numpy", "dtype")
_CODES = {
    "f2": "float16", "f4": "float32", "f8": "float64", "b1": "bool", "c8": "complex64",
    "c16": "complex128", "i1": "int8", "i2": "int16", "i4": "int32", "i8": "int64",
    "u1": "uint8", "u2": "uint16", "u4": "uint32", "u8": "uint64",
}  # fmt: skip


def is_array(value: Value) -> bool:
    """Return whether ``value`` would become a NumPy array."""
    return _is_call(value, "_reconstruct", "_frombuffer")


def array(value: Call, left_bytes: Callable[[LongBytes], Extent]) -> StoredTensor:
    """Return the tensor that has the elements of an array.

    Args:
        value: The call that would make it.
        left_bytes: Returns the bytes that were left in the file.

    Raises:
        DamagedFileError: It is not what NumPy writes.
        UnsupportedFileError: Its elements are objects, text or of another byte order.
    """
    if value.function.name == "_frombuffer":
        parts = value.arguments
    else:
        state = value.state if isinstance(value.state, tuple) and len(value.state) == 5 else ()
        parts = (*state[4:], *state[2:3], *state[1:2], "F" if state and state[3] else "C")
    if len(parts) != 4:
        raise DamagedFileError(
            "an array", expected="bytes, dtype, shape and order", found=describe(value.state)
        )
    content, kind, shape, order = parts
    return array_of(_dtype(kind), shape, order, bytes_of(content, left_bytes))


def array_of(dtype: DType, shape: Value, order: Value, extent: Extent) -> StoredTensor:
    """Return the tensor that has the elements of an array.

    Args:
        dtype: Of the elements.
        shape: As the file says it.
        order: ``F`` where the first index changes fastest.
        extent: The elements.

    Raises:
        DamagedFileError: The shape is none, or there are more elements or fewer.
    """
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise DamagedFileError("an array's shape", expected="a tuple", found=describe(shape))
    tensor = StoredTensor.contiguous(dtype, shape, extent)
    if order != "F":
        return tensor
    strides = tuple(reversed(row_major_strides(shape[::-1])))
    return StoredTensor(dtype, shape, strides, 0, extent)


def number(value: Value) -> float | int | None:
    """Return the number that a NumPy scalar stands for; None for anything else."""
    if not _is_call(value, "scalar") or len(value.arguments) != 2:
        return None
    try:
        dtype = _dtype(value.arguments[0])
        content = BytesExtent(_bytes(value.arguments[1]))
        (found,) = StoredTensor.contiguous(dtype, (), content).values()
    except (DamagedFileError, UnsupportedFileError):
        return None
    return found


def bytes_of(value: Value, left_bytes: Callable[[LongBytes], Extent]) -> Extent:
    """Return the bytes that a pickle holds, in memory or where they were left in the file."""
    return left_bytes(value) if isinstance(value, LongBytes) else BytesExtent(_bytes(value))


def _is_call(value: Value, *names: str) -> bool:
    return (
        isinstance(value, Call) and value.function.module in _HOMES and value.function.name in names
    )


def _dtype(value: Value) -> DType:
    if not isinstance(value, Call) or value.function != _DTYPE or not value.arguments:
        raise DamagedFileError(expected="a NumPy dtype", found=describe(value))
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "|"
    return _dtype_of(value.arguments[0], order)


def dtype_of_code(code: Value) -> DType:
    """Return the dtype of a NumPy code with its byte order, such as ``<f4``.

    Raises:
        UnsupportedFileError: Its elements are objects, text, structures or of another byte order.
    """
    if not isinstance(code, str):
        raise UnsupportedFileError(f"an array of NumPy dtype {describe(code)}")
    return _dtype_of(code[1:], code[:1])


def _dtype_of(code: Value, order: Value) -> DType:
    if not isinstance(code, str) or code not in _CODES:
        raise UnsupportedFileError(f"an array of NumPy dtype {describe(code)}")
    if order == ">":
        raise UnsupportedFileError("an array in big-endian byte order")
    return DTYPES[_CODES[code]]


def _bytes(value: Value) -> bytes:
    """Return bytes, which protocol 2 of Python 3 writes as text that is to be encoded."""
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, Call) and value.function == _ENCODE and len(value.arguments) == 2:
        value = value.arguments[0]
    if isinstance(value, Call) and value.function.name == "bytes" and not value.arguments:
        return b""
    if isinstance(value, str):
        try:
            return value.encode("latin-1")
        except UnicodeEncodeError as error:
            raise DamagedFileError(expected="bytes written as text", found=str(error)) from error
    raise UnsupportedFileError(f"an array of {describe(value)}")
