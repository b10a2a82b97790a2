"""Reads files of NumPy arrays, ``.npy`` and ``.npz``, as inert values: none of their pickles.

See `the format <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>`_.
"""

from __future__ import annotations

import ast
import struct
from typing import Any

from frozenbn_cli.checkpoints.numpy_values import array_of, dtype_of_code
from frozenbn_cli.checkpoints.tensors import StoredTensor
from frozenbn_cli.containers.source import ByteSource, Extent, FileExtent, within
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.errors import DamagedFileError, UnsupportedFileError, located

__all__ = ["read_npy", "read_npz"]

_MAGIC = b"\x93NUMPY"
_LENGTHS = {1: struct.Struct("<H"), 2: struct.Struct("<I"), 3: struct.Struct("<I")}
_MAX_HEADER_BYTES = 10_000  # As NumPy bounds it.
_SUFFIX = ".npy"


def read_npy(source: ByteSource) -> StoredTensor:
    """Return the array in a ``.npy`` file.

    Raises:
        DamagedFileError: The file contradicts the format.
        UnsupportedFileError: Its elements are objects, text, structures or of another byte order.
    """
    return _array(FileExtent(source, 0, source.size_bytes))


def read_npz(source: ByteSource) -> dict[str, StoredTensor]:
    """Return the arrays in a ``.npz`` file, by name; raises as `read_npy` does."""
    archive = ZipArchive(source)
    arrays = {}
    for name in archive.records:
        with located(f"record {name}"):
            if not name.endswith(_SUFFIX):
                raise UnsupportedFileError(expected="NumPy arrays alone")
            archive.check(name)
            arrays[name.removesuffix(_SUFFIX)] = _array(archive.extent(name))
    return arrays


def _array(extent: Extent) -> StoredTensor:
    head = extent.read(0, min(extent.size_bytes, 12))
    length = _LENGTHS.get(head[6]) if head.startswith(_MAGIC) and len(head) == 12 else None
    if length is None:
        raise DamagedFileError(expected="a NumPy array", found=f"bytes {head[:8].hex(' ')}")
    (size_bytes,) = length.unpack_from(head, 8)
    if size_bytes > _MAX_HEADER_BYTES:
        raise UnsupportedFileError(f"a header of {size_bytes:,} bytes is beyond any array")
    start = 8 + length.size
    header = _header(extent.read(start, size_bytes))
    start += size_bytes
    content = within(extent, start, extent.size_bytes - start)
    order = "F" if header["fortran_order"] else "C"
    return array_of(dtype_of_code(header["descr"]), header["shape"], order, content)


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = ast.literal_eval(text.decode("utf-8"))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise DamagedFileError(f"a header that is no dict ({str(error)[:80]})") from error
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise DamagedFileError("header", expected="descr, fortran_order and shape")
    return header
