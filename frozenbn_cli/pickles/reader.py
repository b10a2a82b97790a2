"""Reads pickles as inert values: nothing is imported, called or looked up.

The opcodes that PyTorch's and Python's picklers emit in protocols 2 to 5, as
`pickletools <https://docs.python.org/3/library/pickletools.html>`_ of the standard library
decodes them. Any other opcode is refused, with its position.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable
from typing import IO, Any, TypeAlias

from frozenbn_cli.pickles.machine import HANDLERS, Handler, Machine, Pickle
from frozenbn_cli.pickles.values import LongBytes

__all__ = ["MAX_OPCODES", "Pickle", "read_pickle"]

MAX_OPCODES = 2_000_000
"""More than any model needs (a ResNet-50 state dict has 9,000); bounds time and memory."""

_CUT_OFF = "The file may be truncated; compare its size with the original's."
_LONG_BYTES = 512
# How the opcodes that carry bytes (BINBYTES, BINBYTES8, BYTEARRAY8, BINSTRING) say how many.
_SIZES = {b"B": ("<I", 4), b"\x8e": ("<Q", 8), b"\x96": ("<Q", 8), b"T": ("<i", 4)}


def read_pickle(
    stream: IO[bytes], *, from_torchscript: bool = False, leaves_bytes: bool = False
) -> Pickle:
    """Read one pickle and leave ``stream`` behind its last byte.

    Args:
        stream: Binary, seekable. Its ``read`` must not return more than there is.
        from_torchscript: Whether TorchScript's own pickler wrote it, which makes enums by calls
            whose argument is in no tuple.
        leaves_bytes: Whether long runs of bytes are left where they lie, as `LongBytes`.

    Raises:
        DamagedFileError: The bytes are no pickle of the known kind; says at which byte.
    """
    return _Reader(stream, has_enums=from_torchscript, leaves_bytes=leaves_bytes).run()


class _Reader:
    """Decodes opcodes one by one, and has each carried out."""

    def __init__(self, stream: IO[bytes], *, has_enums: bool, leaves_bytes: bool) -> None:
        self._stream = stream
        self._leaves_bytes = leaves_bytes
        self._machine = Machine(stream.tell(), has_enums=has_enums, keeps_bytes=leaves_bytes)

    def run(self) -> Pickle:
        machine = self._machine
        try:
            for _ in range(MAX_OPCODES):
                if self._step(machine) == b".":
                    break
            else:
                raise machine.damaged(f"more than {MAX_OPCODES:,} opcodes")
        except (ValueError, OverflowError) as error:
            # pickletools reports every kind of bad byte by ValueError.
            damaged = machine.damaged(f"not a pickle ({str(error)[:120]})")
            damaged.advice = "" if self._stream.read(1) else _CUT_OFF
            raise damaged from error
        except IndexError as error:
            raise machine.damaged("an opcode takes more from the stack than there is") from error
        return machine.finish()

    def _step(self, machine: Machine) -> bytes:
        """Have the next opcode carried out and return it."""
        code = self._stream.read(1)
        known = _OPCODES.get(code)
        if known is None:
            damaged = machine.damaged(_why_unknown(code))
            damaged.advice = "" if code else _CUT_OFF
            raise damaged
        handler, read_argument, argument_bytes = known
        if self._leaves_bytes and code in _SIZES and (left := self._left_bytes(*_SIZES[code])):
            machine.push(left)
            argument_bytes = -1
        else:
            handler(machine, read_argument(self._stream) if read_argument else None)
        # Asking the stream for its position is slow, and most arguments are of a fixed length.
        machine.position = (
            self._stream.tell() if argument_bytes < 0 else machine.position + 1 + argument_bytes
        )
        if machine.position >= machine.frame_end:
            machine.leave_frame()
        return code

    def _left_bytes(self, form: str, digits: int) -> LongBytes | None:
        """Leave the bytes that come next where they lie, if they are many."""
        start = self._stream.tell()
        prefix = self._stream.read(digits)
        size_bytes = struct.unpack(form, prefix)[0] if len(prefix) == digits else 0
        if size_bytes < _LONG_BYTES:
            self._stream.seek(start)
            return None
        self._stream.seek(start + digits + size_bytes - 1)
        if len(self._stream.read(1)) != 1:
            raise ValueError(f"expected {size_bytes} bytes, but not so many remain")
        return LongBytes(start + digits, size_bytes)


def _name_pair(stream: IO[bytes]) -> tuple[str, str]:
    """Read module and name of a GLOBAL as the unpickler does: lines of UTF-8, no escapes."""
    lines = stream.readline(), stream.readline()
    if not all(line.endswith(b"\n") for line in lines):
        raise ValueError("a name without its line break")
    module, name = (line[:-1].decode("utf-8") for line in lines)
    return module, name


def _why_unknown(code: bytes) -> str:
    if not code:
        return "the pickle ends before its STOP"
    for opcode in pickletools.opcodes:
        if opcode.code.encode("latin-1") == code:
            return f"opcode {opcode.name} is none that PyTorch writes"
    return f"not a pickle (there is no opcode {code!r})"


_Argument: TypeAlias = Callable[[IO[bytes]], Any]


def _opcodes() -> dict[bytes, tuple[Handler, _Argument | None, int]]:
    """Return handler, reader of the argument and its length (if fixed) of each opcode, by code."""
    opcodes: dict[bytes, tuple[Handler, _Argument | None, int]] = {}
    for opcode in pickletools.opcodes:
        handler = HANDLERS.get(opcode.name)
        if handler is None:
            continue
        argument = opcode.arg
        code = opcode.code.encode("latin-1")
        if opcode.name == "GLOBAL":
            opcodes[code] = handler, _name_pair, -1
        elif argument is None:
            opcodes[code] = handler, None, 0
        else:
            opcodes[code] = handler, argument.reader, argument.n
    return opcodes


_OPCODES = _opcodes()
