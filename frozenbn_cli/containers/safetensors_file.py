"""Reads the header of safetensors files, and writes such files piece by piece.

An 8-byte little-endian header size, a JSON header, then the tensors without holes: see
`the format <https://huggingface.co/docs/safetensors/index#format>`_.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

from frozenbn_cli.containers.signatures import LENGTH, MAX_HEADER_BYTES
from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.errors import DamagedFileError, UnsupportedFileError, located

__all__ = [
    "SafetensorsEntry",
    "SafetensorsHeader",
    "SafetensorsWriter",
    "read_header",
]

_MAX_HEADER_MARKS = 2_000_000
_METADATA = "__metadata__"
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class SafetensorsEntry:
    """One tensor as the header describes it.

    Attributes:
        dtype: The format's code, such as ``F32``.
        shape: In elements.
        start: Offset of the first byte, in the file when read, in the data when written.
        size_bytes: The number of bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """What stands before the tensors.

    Attributes:
        entries: By name, in the order of their bytes.
        metadata: The free-form text entries.
    """

    entries: dict[str, SafetensorsEntry]
    metadata: dict[str, str]


def read_header(source: ByteSource) -> SafetensorsHeader:
    """Read and check the header of a safetensors file.

    Raises:
        DamagedFileError: The header contradicts the format or the file's size.
        UnsupportedFileError: The header is beyond any model's.
    """
    (length,) = LENGTH.unpack(source.read(0, LENGTH.size))
    with located("safetensors header"):
        if length > source.size_bytes - LENGTH.size:
            raise DamagedFileError(
                expected=f"{length:,} bytes",
                found=f"{source.size_bytes - LENGTH.size:,}",
                advice="The file may be truncated; compare its size with the original's.",
            )
        if length > MAX_HEADER_BYTES:
            raise UnsupportedFileError(f"{length:,} bytes, which is beyond any model")
        encoded = source.read(LENGTH.size, length)
        if sum(encoded.count(mark) for mark in (b"[", b"{", b",")) > _MAX_HEADER_MARKS:
            raise UnsupportedFileError("more entries than any model has")
        document = _parse_json(encoded)
        metadata = document.pop(_METADATA, {})
        if not _is_text_mapping(metadata):
            raise DamagedFileError(f"{_METADATA} maps something else than text to text")
        data_start = LENGTH.size + length
        entries = {name: _entry(name, fields, data_start) for name, fields in document.items()}
        # An empty tensor begins where its successor does.
        ordered = sorted(entries.items(), key=lambda item: (item[1].start, item[1].size_bytes))
        _check_places(ordered, data_start, source.size_bytes)
        return SafetensorsHeader(dict(ordered), metadata)


def _parse_json(encoded: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping = dict(pairs)
        if len(mapping) != len(pairs):
            raise DamagedFileError("a name stands twice")
        if not all(map(_is_text, mapping)):
            raise DamagedFileError("a name is no valid text")
        return mapping

    try:
        document = json.loads(encoded.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"not JSON ({str(error)[:100]})") from error
    if not isinstance(document, dict):
        raise DamagedFileError(expected="a JSON object", found=type(document).__name__)
    return document


def _is_text_mapping(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_text(value: Any) -> bool:
    # JSON can escape half of a surrogate pair.
    return isinstance(value, str) and (value.isascii() or not _LONE_SURROGATE.search(value))


def _is_size_list(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(size) is int and 0 <= size < 1 << 63 for size in value
    )


def _entry(name: str, fields: Any, data_start: int) -> SafetensorsEntry:
    if (
        not isinstance(fields, dict)
        or fields.keys() != {"dtype", "shape", "data_offsets"}
        or not isinstance(fields["dtype"], str)
        or not _is_size_list(fields["shape"])
        or not _is_size_list(fields["data_offsets"])
        or len(fields["data_offsets"]) != 2
    ):
        raise DamagedFileError(
            f"entry {name[:80]!a}",
            expected="dtype, shape and data_offsets",
            found=reprlib.repr(fields),
        )
    begin, end = fields["data_offsets"]
    return SafetensorsEntry(
        fields["dtype"], tuple(fields["shape"]), data_start + begin, end - begin
    )


def _check_places(
    ordered: list[tuple[str, SafetensorsEntry]], data_start: int, file_bytes: int
) -> None:
    end = data_start
    for name, entry in ordered:
        if entry.start != end or entry.size_bytes < 0:
            raise DamagedFileError(
                f"entry {name[:80]!a}", expected=f"at byte {end:,}", found=f"byte {entry.start:,}"
            )
        end += entry.size_bytes
    if end != file_bytes:
        raise DamagedFileError(
            "the tensors end elsewhere than the file",
            expected=f"a file of {end:,} bytes",
            found=f"{file_bytes:,}",
            advice="The file may be truncated; compare its size with the original's.",
        )


class SafetensorsWriter:
    """Writes a safetensors file into an open file, one tensor after the other.

    The metadata may be given again at the end (`finish`), when more is known; space for it is
    kept in the header.

    Args:
        file: Open for writing in binary, empty.
        entries: dtype code, shape and size of each tensor, in the order of their bytes.
        room_for: Metadata as long as the final one may be.

    Raises:
        UnsupportedFileError: A name cannot be written as UTF-8.
    """

    def __init__(
        self,
        file: IO[bytes],
        entries: Mapping[str, tuple[str, tuple[int, ...], int]],
        *,
        room_for: Mapping[str, str],
    ) -> None:
        self._file = file
        self._entries: dict[str, dict[str, Any]] = {}
        position = 0
        for name, (dtype, shape, size_bytes) in entries.items():
            self._entries[name] = {
                "dtype": dtype,
                "shape": list(shape),
                "data_offsets": [position, position + size_bytes],
            }
            position += size_bytes
        length = len(self._header(room_for))
        self._length = length + -length % 8
        self.finish({})

    def write(self, chunk: bytes | memoryview) -> None:
        """Append bytes of the tensors, which follow each other in the order of the entries."""
        self._file.write(chunk)

    def finish(self, metadata: Mapping[str, str]) -> None:
        """Write the header, with ``metadata``, in front of the tensors."""
        header = self._header(metadata)
        if len(header) > self._length:
            raise ValueError(f"metadata needs {len(header) - self._length} bytes more than kept")
        self._file.seek(0)
        self._file.write(LENGTH.pack(self._length) + header.ljust(self._length))

    def _header(self, metadata: Mapping[str, str]) -> bytes:
        document: dict[str, Any] = {_METADATA: dict(metadata), **self._entries}
        text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
        try:
            return text.encode()
        except UnicodeEncodeError as error:
            around = text[max(error.start - 20, 0) : error.end + 20]
            raise UnsupportedFileError(f"a name that is no valid text: {around!a}") from error
