"""Writes inert values as a pickle, byte for byte as Python's own pickler does in protocol 2.

What `torch.save` pickled and `read_pickle` read is therefore written as it was. Values that
protocol 2 lacks (bytes, bytearrays, sets) raise the declared protocol to the first that has them.

TorchScript's reader (``torch/csrc/jit/serialization/unpickler.cpp``) is another one, and asks for
another dialect: integers of 8 bytes beyond 32 bits; objects in the memo only when they are
complete; and references to storages in the memo, or each would load a storage of its own.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from frozenbn_cli.errors import UnsupportedFileError
from frozenbn_cli.pickles.values import Call, Global, PersistentId, Value, describe

__all__ = ["write_pickle"]

_BATCH = 1000  # Python's pickler sets so many items at a time.
_MAX_DEPTH = 500  # PyTorch's readers follow this far; each module takes two levels.
_FRAMES_PER_LEVEL = 4


def write_pickle(value: Value, *, for_torchscript: bool = False) -> bytes:
    """Return the pickle of an inert ``value``.

    Args:
        value: As `read_pickle` returns it.
        for_torchscript: Whether TorchScript's own reader has to understand it.

    Raises:
        UnsupportedFileError: The value is nested too deeply, or of a type that is not inert.
    """
    writer = _TorchScriptWriter() if for_torchscript else _Writer()
    with _room_for_frames(_MAX_DEPTH * _FRAMES_PER_LEVEL):
        writer.save(value, 0)
    return b"\x80" + bytes([writer.protocol]) + bytes(writer.written) + b"."


@contextmanager
def _room_for_frames(count: int) -> Iterator[None]:
    """Let Python call as deep as values may be nested, on top of where it is."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(limit + count)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


class _Writer:
    def __init__(self) -> None:
        self.written = bytearray()
        self.protocol = 2
        self._memo: dict[int, tuple[int, Value]] = {}
        self._global_memo: dict[Global, int] = {}

    def save(self, value: Value, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise UnsupportedFileError(f"values nested deeper than {_MAX_DEPTH} levels")
        if isinstance(value, Global):
            self._save_global(value)
        elif id(value) in self._memo and value != ():
            self._get(self._memo[id(value)][0])
        elif value is None or isinstance(value, (bool, int, float)):
            self._save_number(value)
        elif isinstance(value, (str, bytes, bytearray)):
            self._save_text(value)
        elif isinstance(value, tuple):
            self._save_tuple(value, depth)
        elif isinstance(value, PersistentId):
            self._save_persistent_id(value, depth)
        elif isinstance(value, Call):
            self._save_call(value, depth)
        elif isinstance(value, (list, dict)):
            self._save_list_or_dict(value, depth)
        elif isinstance(value, (set, frozenset)):
            self._save_set(value, depth)
        else:
            raise UnsupportedFileError(f"cannot be pickled as an inert value: {describe(value)}")

    def _save_number(self, value: float | None) -> None:
        if value is None:
            self.written += b"N"
        elif value is True or value is False:
            self.written += b"\x88" if value else b"\x89"
        elif isinstance(value, float):
            self.written += b"G" + struct.pack(">d", value)
        elif 0 <= value < 1 << 8:
            self.written += b"K" + struct.pack("<B", value)
        elif 0 <= value < 1 << 16:
            self.written += b"M" + struct.pack("<H", value)
        elif -(1 << 31) <= value < 1 << 31:
            self.written += b"J" + struct.pack("<i", value)
        else:
            self._save_long(value)

    def _save_long(self, value: int) -> None:
        # Two's complement, with one bit more than the magnitude needs.
        count = value.bit_length() // 8 + 1
        encoded = value.to_bytes(count, "little", signed=True)
        if value < 0 and count > 1 and encoded[-1] == 0xFF and encoded[-2] & 0x80:
            encoded = encoded[:-1]
        size = len(encoded)
        length = b"\x8a" + struct.pack("<B", size) if size < 256 else b"\x8b" + _u32(size)
        self.written += length + encoded

    def _save_text(self, value: str | bytes | bytearray) -> None:
        if isinstance(value, str):
            encoded = value.encode("utf-8", "surrogatepass")
            self.written += b"X" + _u32(len(encoded)) + encoded
        elif isinstance(value, bytes):
            self.protocol = max(self.protocol, 3)
            short = len(value) < 256
            self.written += b"C" + bytes([len(value)]) if short else b"B" + _u32(len(value))
            self.written += value
        else:
            self.protocol = 5
            self.written += b"\x96" + struct.pack("<Q", len(value)) + value
        self._put(value)

    def _save_tuple(self, value: tuple[Value, ...], depth: int) -> None:
        if not value:
            self.written += b")"
            return
        if len(value) > 3:
            self.written += b"("
        for part in value:
            self.save(part, depth + 1)
        if id(value) in self._memo:
            # One of the parts holds this very tuple and has written it.
            self.written += b"1" if len(value) > 3 else b"0" * len(value)
            self._get(self._memo[id(value)][0])
            return
        self.written += {1: b"\x85", 2: b"\x86", 3: b"\x87"}.get(len(value), b"t")
        self._put(value)

    def _save_list_or_dict(self, value: list[Value] | dict[Value, Value], depth: int) -> None:
        self.written += b"]" if isinstance(value, list) else b"}"
        self._put(value)
        # Unlike those of other objects, a last batch of one is marked, and so is an empty one
        # behind the full batches of a dict.
        if isinstance(value, list):
            self._append(value, depth, marks_all=len(value) > 1)
        else:
            self._set_items(list(value.items()), depth, marks_all=self._marks_all(value))
            if value and not len(value) % _BATCH:
                self.written += b"(u"

    def _marks_all(self, value: dict[Value, Value]) -> bool:
        return len(value) > 1

    def _save_set(self, value: set[Value] | frozenset[Value], depth: int) -> None:
        self.protocol = max(self.protocol, 4)
        frozen = isinstance(value, frozenset)
        if not frozen:
            self.written += b"\x8f"
            self._put(value)
        self.written += b"("
        for part in value:
            self.save(part, depth + 1)
        if frozen and id(value) in self._memo:
            self.written += b"1"
            self._get(self._memo[id(value)][0])
            return
        self.written += b"\x91" if frozen else b"\x90"
        if frozen:
            self._put(value)

    def _save_global(self, value: Global) -> None:
        if value in self._global_memo:
            self._get(self._global_memo[value])
            return
        if "\n" in value.module + value.name:
            raise UnsupportedFileError(f"a name with a line break: {describe(value)}")
        try:
            self.written += f"c{value.module}\n{value.name}\n".encode()
        except UnicodeEncodeError as error:
            raise UnsupportedFileError(f"no valid text: {describe(value)}") from error
        self._global_memo[value] = self._put(value)

    def _save_persistent_id(self, reference: PersistentId, depth: int) -> None:
        self.save(reference.value, depth + 1)
        self.written += b"Q"

    def _save_call(self, call: Call, depth: int) -> None:
        self.save(call.reference or call.function, depth + 1)
        self.save(call.arguments[0] if call.is_enum else call.arguments, depth + 1)
        if call.keywords is not None:
            self.protocol = max(self.protocol, 4)
            self.save(call.keywords, depth + 1)
            self.written += b"\x92"
        else:
            self.written += b"\x81" if call.is_new else b"R"
        if id(call) in self._memo:
            # One of the arguments holds this very object and has written it.
            self.written += b"0"
            self._get(self._memo[id(call)][0])
            return
        self._put(call)
        self._append(call.appended, depth)
        self._set_items(call.items, depth)
        if call.has_state:
            self.save(call.state, depth + 1)
            self.written += b"b"

    def _append(self, values: list[Value], depth: int, *, marks_all: bool = False) -> None:
        for start in range(0, len(values), _BATCH):
            batch = values[start : start + _BATCH]
            is_marked = marks_all or len(batch) > 1
            self.written += b"(" if is_marked else b""
            for value in batch:
                self.save(value, depth + 1)
            self.written += b"e" if is_marked else b"a"

    def _set_items(
        self, items: list[tuple[Value, Value]], depth: int, *, marks_all: bool = False
    ) -> None:
        for start in range(0, len(items), _BATCH):
            batch = items[start : start + _BATCH]
            is_marked = marks_all or len(batch) > 1
            self.written += b"(" if is_marked else b""
            for key, value in batch:
                self.save(key, depth + 1)
                self.save(value, depth + 1)
            self.written += b"u" if is_marked else b"s"

    def _put(self, value: Any) -> int:
        index = len(self._memo)
        self._memo[id(value)] = (index, value)
        self.written += b"q" + bytes([index]) if index < 256 else b"r" + _u32(index)
        return index

    def _get(self, index: int) -> None:
        self.written += b"h" + bytes([index]) if index < 256 else b"j" + _u32(index)


class _TorchScriptWriter(_Writer):
    def _save_long(self, value: int) -> None:
        if not -(1 << 63) <= value < 1 << 63:
            raise UnsupportedFileError(f"TorchScript cannot hold {describe(value)}")
        self.written += b"\x8a\x08" + struct.pack("<q", value)

    def _save_persistent_id(self, reference: PersistentId, depth: int) -> None:
        super()._save_persistent_id(reference, depth)
        self._put(reference)

    def _save_call(self, call: Call, depth: int) -> None:
        if not call.is_new:
            super()._save_call(call, depth)
            return
        self.save(call.function, depth + 1)
        self.written += b")\x81"
        self.save(call.state, depth + 1)
        self.written += b"b"
        self._put(call)

    def _marks_all(self, value: dict[Value, Value]) -> bool:  # noqa: ARG002
        return True


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)
