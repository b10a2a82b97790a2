"""Reads pickles as inert values: nothing is imported, called or looked up.

A machine over the opcodes that PyTorch's and Python's picklers emit in protocols 2 to 5, as
`pickletools <https://docs.python.org/3/library/pickletools.html>`_ of the standard library
decodes them. Any other opcode is refused, with its position.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

from frozenbn_cli.errors import DamagedFileError
from frozenbn_cli.pickles.values import Call, Global, PersistentId, Value, describe

__all__ = ["MAX_OPCODES", "Pickle", "read_pickle"]

MAX_OPCODES = 2_000_000
"""More than any model needs (a ResNet-50 state dict has 9,000); bounds time and memory."""

_MAX_KEY_DEPTH = 8


@dataclass(slots=True)
class Pickle:
    """One pickle, read.

    Attributes:
        value: The object, inert.
        protocol: As the pickle declares it; 0 if it declares none.
        persistent_ids: Every reference to something outside, in order of appearance.
        calls: What unpickling would call, with the byte at which it first does.
    """

    value: Value = None
    protocol: int = 0
    persistent_ids: list[PersistentId] = field(default_factory=list)
    calls: dict[Global, int] = field(default_factory=dict)


def read_pickle(stream: IO[bytes]) -> Pickle:
    """Read one pickle and leave ``stream`` behind its last byte.

    Args:
        stream: Binary, seekable. Its ``read`` must not return more than there is.

    Raises:
        DamagedFileError: The bytes are no pickle of the known kind; says at which byte.
    """
    return _Machine(stream).run()


class _Machine:
    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._stack: list[Value] = []
        self._marked: list[list[Value]] = []
        self._memo: dict[int, Value] = {}
        self._pickle = Pickle()
        self._position = stream.tell()

    def run(self) -> Pickle:
        handlers = _HANDLERS
        try:
            for count, (opcode, argument, position) in enumerate(pickletools.genops(self._stream)):
                self._position = position or 0
                if count > MAX_OPCODES:
                    raise self._damaged(f"more than {MAX_OPCODES:,} opcodes")
                handler = handlers.get(opcode.name)
                if handler is None:
                    raise self._damaged(f"opcode {opcode.name} is none that PyTorch writes")
                handler(self, argument)
        except (ValueError, OverflowError) as error:
            # pickletools reports every kind of bad byte by ValueError.
            raise self._damaged(f"not a pickle ({str(error)[:120]})") from error
        except IndexError as error:
            raise self._damaged("an opcode takes more from the stack than there is") from error
        if self._stack or self._marked:
            raise self._damaged("values are left on the stack at the end")
        return self._pickle

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
        # Python 2 wrote text as bytes; pickletools shows these as Latin-1.
        self._push(argument.encode("latin-1").decode("utf-8"))

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
        if isinstance(target, dict):
            for key, value in pairs:
                self._check_key(key)
                target[key] = value
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
        """Refuse keys that cannot be hashed, or whose hashing would exhaust the C stack."""
        if isinstance(key, (tuple, frozenset)):
            if depth == _MAX_KEY_DEPTH:
                raise self._damaged(f"a key nested deeper than {_MAX_KEY_DEPTH} levels")
            for part in key:
                self._check_key(part, depth + 1)
        elif isinstance(key, (list, dict, set, bytearray)):
            raise self._damaged("a key", expected="something hashable", found=describe(key))

    # Names and calls

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push(Global(module, name))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise self._damaged("a global", expected="two strings", found=describe(name))
        self._push(Global(module, name))

    def _call(self, *, is_new: bool, has_keywords: bool = False) -> None:
        keywords = self._stack.pop() if has_keywords else None
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, Global):
            raise self._damaged("a call", expected="of a global", found=describe(function))
        if not isinstance(arguments, tuple) or not isinstance(keywords, (dict, type(None))):
            raise self._damaged(
                "a call", expected="a tuple of arguments", found=describe(arguments)
            )
        self._pickle.calls.setdefault(function, self._position)
        self._push(Call(function, arguments, keywords, is_new))

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


def _constant(make: Callable[[], Value]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine._push(make())


_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine._protocol,
    "FRAME": lambda *_: None,
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
            "BINUNICODE",
            "SHORT_BINUNICODE",
            "BINUNICODE8",
            "BINBYTES",
            "SHORT_BINBYTES",
            "BINBYTES8",
            "BYTEARRAY8",
        ),
        _Machine._push,
    ),
}
