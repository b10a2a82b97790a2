"""What the opcodes of a pickle do, carried out on inert values: nothing is looked up or called."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from frozenbn_cli.errors import DamagedFileError
from frozenbn_cli.pickles.values import Call, Global, PersistentId, Value, describe

__all__ = ["HANDLERS", "LOADS_BYTES", "Handler", "Machine", "Pickle"]

_MAX_KEY_DEPTH = 8
# Parts of nested keys, all together: hashing and comparing them costs more than reading them.
_MAX_KEY_PARTS = 50_000
_FRAME_BYTES = 9  # Of the opcode FRAME, with the size that follows it.
LOADS_BYTES = Global("torch.storage", "_load_from_bytes")
"""What loads the storages in a pickle that `torch.save` did not write, each as a file."""

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
        loaded: What unpickling would give to PyTorch to load as a file of its own, in the order of
            appearance; None where that is not in the pickle.
    """

    value: Value = None
    protocol: int = 0
    persistent_ids: list[PersistentId] = field(default_factory=list)
    names: dict[Global, int] = field(default_factory=dict)
    calls: dict[Global, int] = field(default_factory=dict)
    functions: set[Global] = field(default_factory=set)
    loaded: list[Value] = field(default_factory=list)

    def take_names(self, other: Pickle) -> None:
        """Add what unpickling another would import and call."""
        for mine, others in ((self.names, other.names), (self.calls, other.calls)):
            for name, position in others.items():
                mine.setdefault(name, position)
        self.functions |= other.functions
        self.loaded += other.loaded


class Machine:
    """The stack, the marks and the memo of one pickle.

    Args:
        has_enums: Whether calls have arguments in no tuple, see `read_pickle`.
        keeps_bytes: Whether bytes of Python 2 that are no text stay bytes.

    Attributes:
        pickle: What was read so far.
        position: Of the opcode that is carried out.
        frame_end: Where the frame ends that it stands in; infinite outside of frames.
    """

    def __init__(self, position: int, *, has_enums: bool, keeps_bytes: bool) -> None:
        self.pickle = Pickle()
        self.position = position
        self._has_enums = has_enums
        self._keeps_bytes = keeps_bytes
        self._stack: list[Value] = []
        self._marked: list[list[Value]] = []
        self._memo: dict[int, Value] = {}
        self._key_parts = 0
        self.frame_end: float = math.inf

    def finish(self) -> Pickle:
        """Return what was read.

        Raises:
            DamagedFileError: It is not over.
        """
        if self._stack or self._marked:
            raise self.damaged("values are left on the stack at the end")
        if self.frame_end != math.inf:
            raise self.damaged("the pickle ends within a frame")
        return self.pickle

    def push(self, value: Value) -> None:
        """Put a value on the stack."""
        self._stack.append(value)

    def damaged(self, what: str, *, expected: str = "", found: str = "") -> DamagedFileError:
        """Return the error for what is wrong with the opcode that is carried out."""
        return DamagedFileError(
            what, where=(f"byte {self.position:,}",), expected=expected, found=found
        )

    def _enter_frame(self, size_bytes: int) -> None:
        if self.frame_end != math.inf:
            raise self.damaged("a frame begins within another")
        self.frame_end = self.position + _FRAME_BYTES + size_bytes

    def leave_frame(self) -> None:
        """Go on behind a frame, which has to end with the opcode that was carried out."""
        # Python reads a name from where the frame ends, and forgets its beginning.
        if self.position > self.frame_end:
            raise self.damaged("an opcode reaches beyond its frame")
        self.frame_end = math.inf

    def _pop_mark(self) -> list[Value]:
        values = self._stack
        self._stack = self._marked.pop()
        return values

    def _drop(self, _: Any) -> None:
        self._stack.pop()

    def _drop_to_mark(self, _: Any) -> None:
        self._pop_mark()

    def _mark(self, _: Any) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _protocol(self, argument: int) -> None:
        if not 2 <= argument <= 5:
            raise self.damaged("protocol", expected="2 to 5", found=str(argument))
        self.pickle.protocol = argument

    def _stop(self, _: Any) -> None:
        self.pickle.value = self._stack.pop()

    def _bytes_as_text(self, argument: str) -> None:
        # Python 2 wrote text and bytes alike; pickletools shows these as Latin-1.
        encoded = argument.encode("latin-1")
        if self._keeps_bytes and not encoded.isascii():
            self.push(encoded)
        else:
            self._text(encoded.decode("utf-8"))

    def _text(self, argument: str) -> None:
        # CPython keeps one object of each one-character text, as which two that were written
        # apart could not be told from one that is shared; a padded text is a new object.
        self.push("".ljust(1, argument) if len(argument) == 1 else argument)

    # Containers

    def _tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise IndexError
        values = tuple(self._stack[len(self._stack) - count :])
        del self._stack[len(self._stack) - count :]
        self.push(values)

    def _set_items(self, values: list[Value]) -> None:
        if len(values) % 2:
            raise self.damaged("a key without a value")
        target = self._stack[-1]
        pairs = list(zip(values[::2], values[1::2], strict=True))
        for key in values[::2]:
            self._check_key(key)
        if isinstance(target, dict):
            target.update(pairs)
        elif isinstance(target, Call):
            target.items += pairs
        else:
            raise self.damaged("items set", expected="on a dict", found=describe(target))

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
            raise self.damaged("values appended", expected="to a list", found=describe(target))

    def _add_to_set(self, _: Any) -> None:
        values = self._pop_mark()
        target = self._stack[-1]
        if not isinstance(target, set):
            raise self.damaged("values added", expected="to a set", found=describe(target))
        for value in values:
            self._check_key(value)
            target.add(value)

    def _frozen_set(self, _: Any) -> None:
        values = self._pop_mark()
        for value in values:
            self._check_key(value)
        self.push(frozenset(values))

    def _dict(self, _: Any) -> None:
        values = self._pop_mark()
        self.push({})
        self._set_items(values)

    def _check_key(self, key: Value, depth: int = 0) -> None:
        """Refuse keys that cannot be hashed, or only at an unbounded cost."""
        if isinstance(key, (tuple, frozenset)):
            if depth == _MAX_KEY_DEPTH:
                raise self.damaged(f"a key nested deeper than {_MAX_KEY_DEPTH} levels")
            self._key_parts += len(key) + 1
            if self._key_parts > _MAX_KEY_PARTS:
                raise self.damaged(f"nested keys of more than {_MAX_KEY_PARTS:,} parts")
            for part in key:
                self._check_key(part, depth + 1)
        elif isinstance(key, int) and key.bit_length() > 64:
            # Integers that differ by a multiple of 2**61 - 1 have one hash.
            raise self.damaged("a key", expected="at most 64 bits", found=describe(key))
        elif isinstance(key, (list, dict, set, bytearray)):
            raise self.damaged("a key", expected="something hashable", found=describe(key))

    # Names and calls

    def _global(self, argument: tuple[str, str]) -> None:
        self._push_name(*argument)

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise self.damaged("a global", expected="two strings", found=describe(name))
        self._push_name(module, name)

    def _push_name(self, module: str, name: str) -> None:
        named = Global(module, name)
        self.pickle.names.setdefault(named, self.position)
        self.push(named)

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
            raise self.damaged("a call", expected="of a global", found=describe(function))
        is_enum = self._has_enums and not is_new and not isinstance(arguments, tuple)
        if is_enum:
            arguments = (arguments,)
        if not isinstance(arguments, tuple) or not isinstance(keywords, (dict, type(None))):
            raise self.damaged("a call", expected="a tuple of arguments", found=describe(arguments))
        self._note_call(function, arguments, is_new=is_new)
        if not is_new:
            self._call_through(function, arguments)
        self.push(Call(function, arguments, keywords, is_new, reference=reference, is_enum=is_enum))

    def _call_through(self, function: Global, arguments: tuple[Value, ...]) -> None:
        """Note what a function that is called calls in turn, by its arguments."""
        place = _CALLED_THROUGH.get(function, len(arguments))
        called = arguments[place] if place < len(arguments) else None
        if isinstance(called, Global):
            self._note_call(called, (), is_new=False)

    def _note_call(self, function: Global, arguments: tuple[Value, ...], *, is_new: bool) -> None:
        self.pickle.calls.setdefault(function, self.position)
        if not is_new:
            self.pickle.functions.add(function)
        if function == LOADS_BYTES:
            self.pickle.loaded.append(arguments[0] if len(arguments) == 1 else None)

    def _build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if not isinstance(target, Call) or target.has_state:
            raise self.damaged(
                "a state", expected="for an object that has none yet", found=describe(target)
            )
        target.state, target.has_state = state, True

    def _persistent_id(self, _: Any) -> None:
        reference = PersistentId(self._stack.pop())
        self.pickle.persistent_ids.append(reference)
        self.push(reference)

    # Memo

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def _memoize(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise self.damaged(f"memo entry {index} is used and was never stored")
        self.push(self._memo[index])


Handler: TypeAlias = Callable[[Machine, Any], None]
"""Carries out an opcode, given its argument."""


def _made_by(call: Call) -> Global:
    """Return what to call that which a call makes: by what it was given for a name."""
    attributes = next((value for value in call.arguments if isinstance(value, dict)), {})
    module = attributes.get("__module__")
    name = next((value for value in call.arguments if isinstance(value, str)), call.function.name)
    # Never the name of a class whose code is known.
    made = f"{name}, made in the file"
    return Global(module if isinstance(module, str) else call.function.module, made)


def _constant(make: Callable[[], Value]) -> Handler:
    return lambda machine, _: machine.push(make())


HANDLERS: Mapping[str, Handler] = {
    "PROTO": Machine._protocol,
    "FRAME": Machine._enter_frame,
    "STOP": Machine._stop,
    "MARK": Machine._mark,
    "POP": Machine._drop,
    "POP_MARK": Machine._drop_to_mark,
    "NONE": _constant(lambda: None),
    "NEWTRUE": _constant(lambda: True),
    "NEWFALSE": _constant(lambda: False),
    "EMPTY_TUPLE": _constant(tuple),
    "EMPTY_LIST": _constant(list),
    "EMPTY_DICT": _constant(dict),
    "EMPTY_SET": _constant(set),
    "TUPLE": lambda machine, _: machine.push(tuple(machine._pop_mark())),
    "TUPLE1": lambda machine, _: machine._tuple(1),
    "TUPLE2": lambda machine, _: machine._tuple(2),
    "TUPLE3": lambda machine, _: machine._tuple(3),
    "LIST": lambda machine, _: machine.push(machine._pop_mark()),
    "DICT": Machine._dict,
    "FROZENSET": Machine._frozen_set,
    "APPEND": lambda machine, _: machine._append([machine._stack.pop()]),
    "APPENDS": lambda machine, _: machine._append(machine._pop_mark()),
    "SETITEM": Machine._set_item,
    "SETITEMS": lambda machine, _: machine._set_items(machine._pop_mark()),
    "ADDITEMS": Machine._add_to_set,
    "BINUNICODE": Machine._text,
    "SHORT_BINUNICODE": Machine._text,
    "BINUNICODE8": Machine._text,
    "BINSTRING": Machine._bytes_as_text,
    "SHORT_BINSTRING": Machine._bytes_as_text,
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "REDUCE": lambda machine, _: machine._call(is_new=False),
    "NEWOBJ": lambda machine, _: machine._call(is_new=True),
    "NEWOBJ_EX": lambda machine, _: machine._call(is_new=True, has_keywords=True),
    "BUILD": Machine._build,
    "BINPERSID": Machine._persistent_id,
    "BINPUT": Machine._put,
    "LONG_BINPUT": Machine._put,
    "MEMOIZE": Machine._memoize,
    "BINGET": Machine._get,
    "LONG_BINGET": Machine._get,
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
        Machine.push,
    ),
}
