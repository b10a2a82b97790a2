"""A function of a TorchScript archive as the few steps that can matter to tensors it gets hold of.

What only computes with values of its own leaves no step, which is nearly all of most code. The
order of steps does not count: a variable stands for all that is ever assigned to it.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from frozenbn_cli.torchscript.operator_kinds import (
    IN_PLACE,
    PURE,
    VIEWS,
    normaliser_of,
    operator_of,
)
from frozenbn_cli.torchscript.source_code import dotted, real_name

__all__ = [
    "FALSE",
    "UNKNOWN",
    "Call",
    "Function",
    "HandOver",
    "Join",
    "Load",
    "Normalise",
    "Return",
    "Step",
    "Store",
    "Use",
    "Write",
    "compile_function",
]

Slot: TypeAlias = int
UNKNOWN, FALSE = 0, 1
"""The slots of what is of no interest, and of a literal False."""

_GLOBALS = ("__torch__", "torch", "ops")
_READING = {"bool", "float", "int", "isinstance", "print", "range", "str", "uninitialized"}
_PASSING = {"annotate", "fork", "unchecked_cast"}


@dataclass(frozen=True, slots=True)
class Join:
    """``target`` may be any of ``sources``, or hold it."""

    target: Slot
    sources: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """``target`` is an attribute of ``source``."""

    target: Slot
    source: Slot
    attribute: str


@dataclass(frozen=True, slots=True)
class Store:
    """An attribute of ``owner`` is set to ``value``."""

    owner: Slot
    attribute: str
    value: Slot


@dataclass(frozen=True, slots=True)
class Call:
    """A method of ``receiver`` is called, or the function ``name`` where there is none."""

    target: Slot
    receiver: Slot | None
    name: str
    arguments: tuple[Slot, ...]


@dataclass(frozen=True, slots=True)
class Normalise:
    """A normaliser is called, which writes its statistics while the flag is on."""

    statistics: tuple[Slot, ...]
    flag: Slot
    flag_path: tuple[str, ...] | None
    name: str


@dataclass(frozen=True, slots=True)
class Write:
    """An operator writes the tensor."""

    value: Slot
    name: str


@dataclass(frozen=True, slots=True)
class HandOver:
    """Something that may do anything gets hold of the values."""

    values: tuple[Slot, ...]
    name: str


@dataclass(frozen=True, slots=True)
class Use:
    """The value is read; this matters to a training flag alone."""

    value: Slot


@dataclass(frozen=True, slots=True)
class Return:
    """The value goes to whoever called."""

    value: Slot


Step: TypeAlias = Join | Load | Store | Call | Normalise | Write | HandOver | Use | Return


@dataclass(frozen=True, slots=True)
class Function:
    """A function, read.

    Attributes:
        parameters: Their slots, ``self`` among them.
        steps: In any order.
        slots: How many there are.
    """

    parameters: tuple[Slot, ...]
    steps: tuple[Step, ...]
    slots: int


def compile_function(node: ast.FunctionDef) -> Function:
    """Return the steps of a function or method."""
    return _Compiler(node).run()


@dataclass(slots=True)
class _Compiler:
    node: ast.FunctionDef
    _slots: dict[str, Slot] = field(default_factory=dict)
    _count: int = 2
    _steps: list[Step] = field(default_factory=list)
    # What a name that is assigned once stands for: a path of names.
    _paths: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _assigned: Counter[str] = field(default_factory=Counter)
    # Of functions within the function, whose results are what starting them comes to.
    _inner: list[str] = field(default_factory=list)

    def run(self) -> Function:
        parameters = [argument.arg for argument in self.node.args.args]
        slots = tuple(self._slot(name) for name in parameters)
        self._assigned.update(parameters)
        for part in ast.walk(self.node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                self._assigned[part.id] += 1
        if parameters and self._assigned[parameters[0]] == 1:
            self._paths[parameters[0]] = ("self",)
        self._block(self.node.body)
        return Function(slots, tuple(self._steps), self._count)

    def _slot(self, name: str) -> Slot:
        if name not in self._slots:
            self._slots[name] = self._new()
        return self._slots[name]

    def _new(self) -> Slot:
        self._count += 1
        return self._count - 1

    # Statements

    def _block(self, statements: Iterable[ast.stmt]) -> None:
        for statement in statements:
            self._statement(statement)

    def _statement(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Assign):
            value = self._value(statement.value)
            for target in statement.targets:
                self._assign(target, value, statement.value)
        elif isinstance(statement, ast.Return):
            self._return(self._value(statement.value))
        elif isinstance(statement, (ast.If, ast.While)):
            self._use(self._value(statement.test))
            self._block(statement.body)
            self._block(statement.orelse)
        elif isinstance(statement, ast.For):
            self._assign(statement.target, self._value(statement.iter), statement.iter)
            self._block(statement.body)
        elif isinstance(statement, ast.FunctionDef):
            self._inner.append(statement.name)
            self._block(statement.body)
            self._inner.pop()
        else:
            self._other(statement)

    def _other(self, statement: ast.stmt) -> None:
        parts = [
            part.context_expr if isinstance(part, ast.withitem) else part
            for part in ast.iter_child_nodes(statement)
        ]
        values = [self._value(part) for part in parts if isinstance(part, ast.expr)]
        if isinstance(statement, (ast.Expr, ast.With)):
            for value in values:
                self._use(value)
        else:
            self._hand_over(values, "a statement")
        self._block(getattr(statement, "body", ()))

    def _return(self, value: Slot) -> None:
        if self._inner:
            self._steps.append(Join(self._slot(self._inner[-1]), (value,)))
        elif value != UNKNOWN:
            self._steps.append(Return(value))

    def _use(self, value: Slot) -> None:
        if value > FALSE:
            self._steps.append(Use(value))

    def _assign(self, target: ast.expr, value: Slot, expression: ast.expr) -> None:
        if isinstance(target, ast.Name):
            # Also where it is unknown: a name may be assigned something else elsewhere.
            if self._assigned[target.id] == 1:
                if path := self._path(expression):
                    self._paths[target.id] = path
                if value == UNKNOWN:
                    return
            self._steps.append(Join(self._slot(target.id), (value,)))
        elif isinstance(target, (ast.Tuple, ast.List)):
            for part in target.elts:
                self._assign(part, value, target)
        elif isinstance(target, ast.Attribute):
            owner = self._value(target.value)
            self._steps.append(Store(owner, real_name(target.attr), value))
        else:
            self._steps.append(HandOver((self._value(target), value), "an assignment"))

    # Expressions

    def _path(self, node: ast.expr) -> tuple[str, ...] | None:
        """Return what an expression names, from ``self`` or from a global; None for the rest."""
        path = dotted(node)
        if path is None or (self._assigned[path[0]] and path[0] not in self._paths):
            return None
        return (*self._paths.get(path[0], path[:1]), *path[1:])

    def _value(self, node: ast.expr | None) -> Slot:
        """Return the slot of an expression, after the steps that make it."""
        if isinstance(node, ast.Constant):
            return FALSE if node.value is False else UNKNOWN
        if isinstance(node, ast.Name):
            return self._name(node.id)
        if isinstance(node, ast.Attribute):
            return self._load(self._value(node.value), real_name(node.attr))
        if isinstance(node, ast.Call):
            return self._call(node)
        parts = ast.iter_child_nodes(node) if node else ()
        return self._join(self._value(part) for part in parts if isinstance(part, ast.expr))

    def _name(self, name: str) -> Slot:
        if name in self._slots or self._assigned[name] > 1:
            return self._slot(name)
        return UNKNOWN

    def _load(self, source: Slot, attribute: str) -> Slot:
        if source <= FALSE:
            return UNKNOWN
        target = self._new()
        self._steps.append(Load(target, source, attribute))
        return target

    def _join(self, values: Iterable[Slot]) -> Slot:
        sources = {value for value in values if value != UNKNOWN}
        if not sources:
            return UNKNOWN
        target = self._new()
        self._steps.append(Join(target, (UNKNOWN, *sorted(sources))))
        return target

    def _call(self, node: ast.Call) -> Slot:
        path = self._path(node.func)
        if isinstance(node.func, ast.Name) and path and len(path) == 1:
            return self._builtin(path[0], node)
        if path and path[0] in _GLOBALS:
            return self._global(path, node)
        receiver = node.func.value if isinstance(node.func, ast.Attribute) else node.func
        name = real_name(node.func.attr) if isinstance(node.func, ast.Attribute) else "a call"
        return self._called(self._value(receiver), name, node)

    def _builtin(self, name: str, node: ast.Call) -> Slot:
        if name == "getattr" and len(node.args) == 2 and isinstance(node.args[1], ast.Constant):
            return self._load(self._value(node.args[0]), str(node.args[1].value))
        values = self._arguments(node)
        if name in _PASSING:
            return self._join(values)
        for value in values:
            self._use(value)
        if name not in _READING:
            self._hand_over(values, name)
        return UNKNOWN

    def _arguments(self, node: ast.Call) -> list[Slot]:
        given = [*node.args, *(keyword.value for keyword in node.keywords)]
        return [self._value(argument) for argument in given]

    def _global(self, path: tuple[str, ...], node: ast.Call) -> Slot:
        if places := normaliser_of(path):
            return self._normalise(path[-1], places, node)
        name = operator_of(path)
        if name is None:
            return self._called(None, ".".join(path), node)
        values = [self._value(argument) for argument in node.args]
        named = [self._value(keyword.value) for keyword in node.keywords]
        # Where results go is given by name.
        self._hand_over(named, name)
        if name in IN_PLACE and values:
            self._steps.append(Write(values[0], name))
        elif name not in PURE and name not in VIEWS:
            self._hand_over(values, name)
            return UNKNOWN
        for value in values[1:] if name in IN_PLACE else values:
            self._use(value)
        if name in VIEWS:
            return self._join(values)
        return values[0] if name in IN_PLACE and values else UNKNOWN

    def _hand_over(self, values: list[Slot], name: str) -> None:
        given = tuple(value for value in values if value > FALSE)
        if given:
            self._steps.append(HandOver(given, name))

    def _normalise(self, name: str, places: tuple[int, ...], node: ast.Call) -> Slot:
        values = self._arguments(node)
        if node.keywords or len(values) <= places[2]:
            self._hand_over(values, name)
            return UNKNOWN
        mean, variance, flag = places[:3]
        statistics = values[mean], values[variance]
        path = self._path(node.args[flag])
        self._steps.append(Normalise(statistics, values[flag], path, name))
        for place, value in enumerate(values):
            if place != flag:
                self._use(value)
        return UNKNOWN

    def _called(self, receiver: Slot | None, name: str, node: ast.Call) -> Slot:
        arguments = tuple(self._arguments(node))
        if node.keywords:
            self._hand_over(list(arguments), name)
        if receiver in (UNKNOWN, FALSE):
            # A method of something that was made here.
            self._hand_over(list(arguments), name)
            return UNKNOWN
        target = self._new()
        self._steps.append(Call(target, receiver, name, arguments))
        return target
