"""Reads pickles as inert values: nothing is imported, called or looked up.

A machine over the opcodes that PyTorch's and Python's picklers emit in protocols 2 to 5, as
`pickletools <https://docs.python.org/3/library/pickletools.html>`_ of the standard library
decodes them. Any other opcode is refused, with its position.
"""

from __future__ import annotations

import math
import pickletools
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, TypeAlias

from frozenbn_cli.errors import DamagedFileError
from frozenbn_cli.pickles.values import (
    Call,
    Global,
    LongBytes,
    PersistentId,
    Value,
    describe,
)

__all__ = ["MAX_OPCODES", "Pickle", "read_pickle"]

MAX_OPCODES = 2_000_000
"""More than any model needs (a ResNet-50 state dict has 9,000); bounds time and memory."""

_LONG_BYTES = 512
# How the opcodes that carry bytes (BINBYTES, BINBYTES8, BYTEARRAY8, BINSTRING) say how many.
_SIZES = {b"B": ("<I", 4), b"\x8e": ("<Q", 8), b"\x96": ("<Q", 8), b"T": ("<i", 4)}
_MAX_KEY_DEPTH = 8
# Parts of nested keys, all together: hashing and comparing them costs more than reading them.
_MAX_KEY_PARTS = 50_000
_FRAME_BYTES = 9  # Of the opcode FRAME, with the size that follows it.
# Which argument of a function it calls: `copyreg` the initialiser of a base, PyTorch what rebuilds
# a tensor before it is given its class.
_CALLED_THROUGH = {
    Global("copy_reg", "_reconstructor"): 1,
    Global("copyreg", "_reconstructor"): 1,
    Global("torch._tensor", "_rebuild_from_type_v2"): 0,
}


@dataclass(slots=True)
class Pickle:
    """One pickle, read.

    Attributes:
        value: The object, inert.
        protocol: As the pickle declares it; 0 if it declares none.
        persistent_ids: Every reference to something outside, in order of appearance.
        names: Every name that unpickling would import, with the byte at which it first does.
        calls: What unpickling would call, likewise.
        functions: Those of them that it would call as functions; of the others it would make an
            instance without calling the class.
    """

    value: Value = None
    protocol: int = 0
    persistent_ids: list[PersistentId] = field(default_factory=list)
    names: dict[Global, int] = field(default_factory=dict)
    calls: dict[Global, int] = field(default_factory=dict)
    functions: set[Global] = field(default_factory=set)


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
    return _Machine(stream, has_enums=from_torchscript, leaves_bytes=leaves_bytes).run()


class _Machine:
    def __init__(self, stream: IO[bytes], *, has_enums: bool, leaves_bytes: bool) -> None:
        self._stream = stream
        self._leaves_bytes = leaves_bytes
        self._has_enums = has_enums
        self._stack: list[Value] = []
        self._marked: list[list[Value]] = []
        self._memo: dict[int, Value] = {}
        self._pickle = Pickle()
        self._key_parts = 0
        self._position = stream.tell()
        self._frame_end: float = math.inf

    def run(self) -> Pickle:
        try:
            for _ in range(MAX_OPCODES):
                if self._step() == b".":
                    break
            else:
                raise self._damaged(f"more than {MAX_OPCODES:,} opcodes")
        except (ValueError, OverflowError) as error:
            # pickletools reports every kind of bad byte by ValueError.
            raise self._damaged(f"not a pickle ({str(error)[:120]})") from error
        except IndexError as error:
            raise self._damaged("an opcode takes more from the stack than there is") from error
        if self._stack or self._marked:
            raise self._damaged("values are left on the stack at the end")
        if self._frame_end != math.inf:
            raise self._damaged("the pickle ends within a frame")
        return self._pickle

    def _step(self) -> bytes:
        """Carry out the next opcode and return it."""
        code = self._stream.read(1)
        known = _OPCODES.get(code)
        if known is None:
            raise self._damaged(_why_unknown(code))
        if self._leaves_bytes and code in _SIZES and self._skip_bytes(*_SIZES[code]):
            self._position = self._stream.tell()
            return code
        handler, read_argument, argument_bytes = known
        handler(self, read_argument(self._stream) if read_argument else None)
        # Asking the stream for its position is slow, and most arguments are of a fixed length.
        self._position = (
            self._stream.tell() if argument_bytes < 0 else self._position + 1 + argument_bytes
        )
        if self._position >= self._frame_end:
            self._leave_frame()
        return code

    def _enter_frame(self, size_bytes: int) -> None:
        if self._frame_end != math.inf:
            raise self._damaged("a frame begins within another")
        self._frame_end = self._position + _FRAME_BYTES + size_bytes

    def _leave_frame(self) -> None:
        # Python reads a name from where the frame ends, and forgets its beginning.
        if self._position > self._frame_end:
            raise self._damaged("an opcode reaches beyond its frame")
        self._frame_end = math.inf

    def _skip_bytes(self, form: str, digits: int) -> bool:
        """Leave the bytes that come next where they lie, if they are many."""
        start = self._stream.tell()
        prefix = self._stream.read(digits)
        size_bytes = struct.unpack(form, prefix)[0] if len(prefix) == digits else 0
        if size_bytes < _LONG_BYTES:
            self._stream.seek(start)
            return False
        self._stream.seek(start + digits + size_bytes - 1)
        if len(self._stream.read(1)) != 1:
            raise ValueError(f"expected {size_bytes} bytes, but not so many remain")
        self._push(LongBytes(start + digits, size_bytes))
        return True

    def _damaged(self, what: str, *, expected: str = "", found: str = "") -> DamagedFileError:
        return DamagedFileError(
            what, where=(f"byte {self._position:,}",), expected=expected, found=found
        )

    def _pop_mark(self) -> list[Value]:
        values = self._stack
        self._stack = self._marked.pop()
        return values

    def _drop(self, _: Any) -> None:
        self._stack.pop()

    def _drop_to_mark(self, _: Any) -> None:
        self._pop_mark()

    def _push(self, value: Value) -> None:
        self._stack.append(value)

    def _mark(self, _: Any) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _protocol(self, argument: int) -> None:
        if not 2 <= argument <= 5:
            raise self._damaged("protocol", expected="2 to 5", found=str(argument))
        self._pickle.protocol = argument

    def _stop(self, _: Any) -> None:
        self._pickle.value = self._stack.pop()

    def _bytes_as_text(self, argument: str) -> None:
        # Python 2 wrote text and bytes alike; pickletools shows these as Latin-1.
        encoded = argument.encode("latin-1")
        if self._leaves_bytes and not encoded.isascii():
            self._push(encoded)
        else:
            self._text(encoded.decode("utf-8"))

    def _text(self, argument: str) -> None:
        # CPython keeps one object of each one-character text, as which two that were written
        # apart could not be told from one that is shared; a padded text is a new object.
        self._push("".ljust(1, argument) if len(argument) == 1 else argument)

    # Containers

    def _tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError
        values = tuple(self._stack[len(self._stack) - count :])
        del self._stack[len(self._stack) - count :]
        self._push(values)

    def _set_items(self, values: list[Value]) -> None:
        if len(values) % 2:
            raise self._damaged("a key without a value")
        target = self._stack[-1]
        pairs = list(zip(values[::2], values[1::2], strict=True))
        for key in values[::2]:
            self._check_key(key)
        if isinstance(target, dict):
            target.update(pairs)
        elif isinstance(target, Call):
            target.items += pairs
        else:
            raise self._damaged("items set", expected="on a dict", found=describe(target))

    def _set_item(self, _: Any) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def _append(self, values: list[Value]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target += values
        elif isinstance(target, Call):
            target.appended += values
        else:
            raise self._damaged("values appended", expected="to a list", found=describe(target))

    def _add_to_set(self, _: Any) -> None:
        values = self._pop_mark()
        target = self._stack[-1]
        if not isinstance(target, set):
            raise self._damaged("values added", expected="to a set", found=describe(target))
        for value in values:
            self._check_key(value)
            target.add(value)

    def _frozen_set(self, _: Any) -> None:
        values = self._pop_mark()
        for value in values:
            self._check_key(value)
        self._push(frozenset(values))

    def _dict(self, _: Any) -> None:
        values = self._pop_mark()
        self._push({})
        self._set_items(values)

    def _check_key(self, key: Value, depth: int = 0) -> None:
        """Refuse keys that cannot be hashed, or only at an unbounded cost."""
        if isinstance(key, (tuple, frozenset)):
            if depth == _MAX_KEY_DEPTH:
                raise self._damaged(f"a key nested deeper than {_MAX_KEY_DEPTH} levels")
            self._key_parts += len(key) + 1
            if self._key_parts > _MAX_KEY_PARTS:
                raise self._damaged(f"nested keys of more than {_MAX_KEY_PARTS:,} parts")
            for part in key:
                self._check_key(part, depth + 1)
        elif isinstance(key, int) and key.bit_length() > 64:
            # Integers that differ by a multiple of 2**61 - 1 have one hash.
            raise self._damaged("a key", expected="at most 64 bits", found=describe(key))
        elif isinstance(key, (list, dict, set, bytearray)):
            raise self._damaged("a key", expected="something hashable", found=describe(key))

    # Names and calls

    def _global(self, argument: tuple[str, str]) -> None:
        self._push_name(*argument)

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise self._damaged("a global", expected="two strings", found=describe(name))
        self._push_name(module, name)

    def _push_name(self, module: str, name: str) -> None:
        named = Global(module, name)
        self._pickle.names.setdefault(named, self._position)
        self._push(named)

    def _call(self, *, is_new: bool, has_keywords: bool = False) -> None:
        keywords = self._stack.pop() if has_keywords else None
        arguments, function = self._stack.pop(), self._stack.pop()
        reference = None
        if isinstance(function, PersistentId) and function.names_class:
            reference, function = function, function.value[1]
        if isinstance(function, Call) and not self._has_enums:
            # cloudpickle and dill make classes and functions, and call these.
            function = _made_by(function)
        if not isinstance(function, Global):
            raise self._damaged("a call", expected="of a global", found=describe(function))
        is_enum = self._has_enums and not is_new and not isinstance(arguments, tuple)
        if is_enum:
            arguments = (arguments,)
        if not isinstance(arguments, tuple) or not isinstance(keywords, (dict, type(None))):
            raise self._damaged(
                "a call", expected="a tuple of arguments", found=describe(arguments)
            )
        self._pickle.calls.setdefault(function, self._position)
        if not is_new:
            self._pickle.functions.add(function)
            self._call_through(function, arguments)
        self._push(
            Call(function, arguments, keywords, is_new, reference=reference, is_enum=is_enum)
        )

    def _call_through(self, function: Global, arguments: tuple[Value, ...]) -> None:
        """Note what a function that is called calls in turn, by its arguments."""
        place = _CALLED_THROUGH.get(function, len(arguments))
        called = arguments[place] if place < len(arguments) else None
        if isinstance(called, Global):
            self._pickle.calls.setdefault(called, self._position)
            self._pickle.functions.add(called)

    def _build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if not isinstance(target, Call) or target.has_state:
            raise self._damaged(
                "a state", expected="for an object that has none yet", found=describe(target)
            )
        target.state, target.has_state = state, True

    def _persistent_id(self, _: Any) -> None:
        reference = PersistentId(self._stack.pop())
        self._pickle.persistent_ids.append(reference)
        self._push(reference)

    # Memo

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise self._damaged(f"memo entry {index} is used and was never stored")
        self._push(self._memo[index])


_Handler: TypeAlias = Callable[[_Machine, Any], None]


def _made_by(call: Call) -> Global:
    """Return what to call that which a call makes: by what it was given for a name."""
    attributes = next((value for value in call.arguments if isinstance(value, dict)), {})
    module = attributes.get("__module__")
    name = next((value for value in call.arguments if isinstance(value, str)), call.function.name)
    # Never the name of a class whose code is known.
    made = f"{name}, made in the file"
    return Global(module if isinstance(module, str) else call.function.module, made)


def _constant(make: Callable[[], Value]) -> _Handler:
    return lambda machine, _: machine._push(make())


_HANDLERS: dict[str, _Handler] = {
    "PROTO": _Machine._protocol,
    "FRAME": _Machine._enter_frame,
    "STOP": _Machine._stop,
    "MARK": _Machine._mark,
    "POP": _Machine._drop,
    "POP_MARK": _Machine._drop_to_mark,
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_SET": _constant(set),
    "TUPLE": lambda machine, _: machine._push(tuple(machine._pop_mark())),
    "TUPLE1": lambda machine, _: machine._tuple(1),
    "TUPLE2": lambda machine, _: machine._tuple(2),
    "TUPLE3": lambda machine, _: machine._tuple(3),
    "LIST": lambda machine, _: machine._push(machine._pop_mark()),
    "DICT": _Machine._dict,
    "FROZENSET": _Machine._frozen_set,
    "APPEND": lambda machine, _: machine._append([machine._stack.pop()]),
    "APPENDS": lambda machine, _: machine._append(machine._pop_mark()),
    "SETITEM": _Machine._set_item,
    "SETITEMS": lambda machine, _: machine._set_items(machine._pop_mark()),
    "ADDITEMS": _Machine._add_to_set,
    "BINUNICODE": _Machine._text,
    "SHORT_BINUNICODE": _Machine._text,
    "BINUNICODE8": _Machine._text,
    "BINSTRING": _Machine._bytes_as_text,
    "SHORT_BINSTRING": _Machine._bytes_as_text,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": lambda machine, _: machine._call(is_new=False),
    "NEWOBJ": lambda machine, _: machine._call(is_new=True),
    "NEWOBJ_EX": lambda machine, _: machine._call(is_new=True, has_keywords=True),
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent_id,
    "BINPUT": _Machine._put,
    "LONG_BINPUT": _Machine._put,
    "MEMOIZE": _Machine._memoize,
    "BINGET": _Machine._get,
    "LONG_BINGET": _Machine._get,
    # The argument is the value itself.
    **dict.fromkeys(
        (
            "BININT",
            "BININT1",
            "BININT2",
            "LONG1",
            "LONG4",
            "BINFLOAT",
            "BINBYTES",
            "SHORT_BINBYTES",
            "BINBYTES8",
            "BYTEARRAY8",
        ),
        _Machine._push,
    ),
}


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


def _opcodes() -> dict[bytes, tuple[_Handler, _Argument | None, int]]:
    """Return handler, reader of the argument and its length (if fixed) of each opcode, by code."""
    opcodes: dict[bytes, tuple[_Handler, _Argument | None, int]] = {}
    for opcode in pickletools.opcodes:
        handler = _HANDLERS.get(opcode.name)
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
