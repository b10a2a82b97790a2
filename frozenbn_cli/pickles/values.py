"""What a pickle says, as inert values: a global is a name, a call is a name with arguments.

None, bool, int, float, str, bytes, bytearray, tuple, list, dict, set and frozenset stand for
themselves. Sharing within a pickle is kept: one object read twice is one value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

__all__ = [
    "Call",
    "Global",
    "LongBytes",
    "PersistentId",
    "Value",
    "describe",
    "items_of",
    "parts_of",
]

# A recursive alias would be no safer: whoever reads a value has to look at its type anyway.
Value: TypeAlias = Any


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function, which is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, slots=True)
class LongBytes:
    """A run of bytes that is left where it lies.

    Attributes:
        start: In the stream that the pickle was read from.
        size_bytes: How many there are.
    """

    start: int
    size_bytes: int

    def __len__(self) -> int:
        return self.size_bytes


@dataclass(eq=False, slots=True)
class PersistentId:
    """A reference to something that is stored outside the pickle."""

    value: Value

    @property
    def names_class(self) -> bool:
        """Whether it is how a legacy stream refers to a module's class."""
        return (
            isinstance(self.value, tuple)
            and len(self.value) == 4
            and self.value[0] == "module"
            and isinstance(self.value[1], Global)
        )


@dataclass(eq=False, slots=True)
class Call:
    """An object that unpickling would have made by calling something.

    Attributes:
        function: What would have been called.
        arguments: The positional arguments.
        keywords: The keyword arguments of NEWOBJ_EX, None for the other forms.
        is_new: Whether ``function.__new__`` is called (NEWOBJ) rather than ``function`` (REDUCE).
        appended: What would have been appended to the object afterwards.
        items: The keys and values that would have been set on the object afterwards.
        state: What BUILD would have given to the object; ``has_state`` tells None from nothing.
        has_state: Whether there was a BUILD.
        reference: What stands for the function in a legacy stream, which keeps the source text of
            module classes: a persistent id ``('module', class, file, source)``.
        is_enum: Whether the one argument stood without a tuple, as TorchScript writes enums.
    """

    function: Global
    arguments: tuple[Value, ...]
    keywords: dict[str, Value] | None = None
    is_new: bool = False
    appended: list[Value] = field(default_factory=list)
    items: list[tuple[Value, Value]] = field(default_factory=list)
    state: Value = None
    has_state: bool = False
    reference: PersistentId | None = None
    is_enum: bool = False


_MAPPINGS = {
    Global("collections", "OrderedDict"),
    Global("collections", "defaultdict"),
    Global("torch.nn.modules.container", "ParameterDict"),
    Global("builtins", "dict"),
    Global("__builtin__", "dict"),
}


def items_of(value: Value) -> list[tuple[Value, Value]] | None:
    """Return the keys and values of a dict, an OrderedDict or their like; None for anything else.

    An OrderedDict of old Python 2 pickles gets its items as an argument: a list of pairs.
    """
    if isinstance(value, dict):
        return list(value.items())
    if not isinstance(value, Call) or value.function not in _MAPPINGS:
        return None
    given: list[tuple[Value, Value]] = []
    for argument in value.arguments:
        if isinstance(argument, list) and all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], (str, int))
            for pair in argument
        ):
            given += [(pair[0], pair[1]) for pair in argument]
        elif isinstance(argument, dict):
            given += argument.items()
    return given + value.items


def parts_of(value: Value) -> list[Value]:
    """Return the values that stand directly in another, those of a persistent id left out."""
    if isinstance(value, Call):
        pairs = [part for item in value.items for part in item]
        return [*value.arguments, value.state, *value.appended, *pairs]
    if isinstance(value, dict):
        return [*value.values(), *value.keys()]
    return list(value) if isinstance(value, (tuple, list, set, frozenset)) else []


def describe(value: Value) -> str:
    """Return a few words that name ``value`` in a message, however large or hostile it is."""
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if value.bit_length() <= 64 else f"a {value.bit_length()}-bit int"
    if isinstance(value, (str, bytes, bytearray)):
        return ascii(value) if len(value) <= 40 else f"{value[:40]!a}…"
    if isinstance(value, Global):
        return f"the name {_printable(value)}"
    if isinstance(value, Call):
        return f"an object of {_printable(value.function)}"
    if isinstance(value, LongBytes):
        return f"{value.size_bytes:,} bytes"
    if isinstance(value, PersistentId):
        return "a reference to a storage"
    return f"a {type(value).__name__}" + (f" of {len(value)}" if hasattr(value, "__len__") else "")


def _printable(name: Global) -> str:
    return ascii(str(name))[1:-1][:80]
