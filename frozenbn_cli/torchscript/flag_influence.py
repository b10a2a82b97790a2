"""What the training flag of a class decides, judged by following its methods for both its values.

Each statement is followed for the flag on and for the flag off at once. Freezing is faithful where
the two differ in nothing but what `batch_norm` is told (whether to train, and the momentum) and
the count of batches.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from frozenbn_cli.torchscript.operator_kinds import (
    IN_PLACE,
    PURE,
    VIEWS,
    normaliser_of,
    operator_of,
)
from frozenbn_cli.torchscript.source_code import ClassSource, dotted

__all__ = ["Influence", "influence_of_flag"]

_FLAG, _COUNT = ("self", "training"), ("self", "num_batches_tracked")
_MAX_ROUNDS = 8
_PURE_BUILTINS = {
    "annotate", "bool", "float", "getattr", "int", "isinstance", "range", "str", "unchecked_cast",
    "uninitialized",
}  # fmt: skip

Path: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Influence:
    """What a class's code does beside normalising.

    Attributes:
        beside: What goes by the training flag, in words; None if nothing does.
        counts_in_eval: Whether batches are counted whatever the flag is.
    """

    beside: str | None = None
    counts_in_eval: bool = False


class _Unknown:
    """Stands for what is no constant."""


_UNKNOWN = _Unknown()


@dataclass(frozen=True, slots=True)
class _Fact:
    """A value with the flag on and with the flag off, and whether these may differ."""

    on: Any = _UNKNOWN
    off: Any = _UNKNOWN
    differs: bool = False


@dataclass(frozen=True, slots=True)
class _Way:
    """How a statement is come to.

    Attributes:
        on: Whether it may be with the flag on.
        off: Whether it may be with the flag off.
        together: Whether it is in both cases or in none.
    """

    on: bool = True
    off: bool = True
    together: bool = True


def influence_of_flag(source: ClassSource) -> Influence:
    """Return what goes by the training flag in the methods of a class."""
    counts = False
    for function in source.methods:
        method = _Method(function)
        method.run()
        counts |= method.counts_in_eval
        if method.found:
            said = "its code uses the training flag for more than normalising"
            return Influence(f"{said} ({method.found} in {function.name})", counts)
    return Influence(None, counts)


class _Method:
    """One method, followed for both values of the flag."""

    def __init__(self, function: ast.FunctionDef) -> None:
        self._function = function
        self._differing: set[str] = set()
        self._assigned = Counter(
            node.id
            for node in ast.walk(function)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        )
        arguments = [argument.arg for argument in function.args.args]
        self._assigned.update(arguments)
        self._paths: dict[str, Path] = {}
        if arguments and self._assigned[arguments[0]] == 1:
            self._paths[arguments[0]] = ("self",)
        # Constants that variables stand for: one layer for each branch around.
        self._known: list[dict[str, _Fact]] = [{}]
        self.found: str | None = None
        self.counts_in_eval = False

    def run(self) -> None:
        """Follow the method until no more variables are found to differ: loops lead back."""
        for _ in range(_MAX_ROUNDS):
            before = len(self._differing)
            self._known = [{}]
            self._block(self._function.body, _Way())
            if self.found or len(self._differing) == before:
                return
        self._refuse("what is too intricate")

    def _refuse(self, what: str) -> None:
        self.found = self.found or what

    def _block(self, statements: Iterable[ast.stmt], way: _Way) -> None:
        for statement in statements:
            if isinstance(statement, ast.If):
                self._if(statement, way)
            elif isinstance(statement, (ast.For, ast.While)):
                self._loop(statement, way)
            elif isinstance(statement, ast.Assign):
                for target in statement.targets:
                    self._assign(target, statement.value, way)
            elif isinstance(statement, ast.Expr):
                self._read(statement.value, way)
            elif not isinstance(statement, ast.Pass):
                self._other(statement, way)

    def _other(self, statement: ast.stmt, way: _Way) -> None:
        """Follow what ends a method, or stands around other statements."""
        if not way.together:
            self._refuse("what is returned" if isinstance(statement, ast.Return) else "a block")
        for part in ast.iter_child_nodes(statement):
            expression = part.context_expr if isinstance(part, ast.withitem) else part
            if isinstance(expression, ast.expr) and self._read(expression, way).differs:
                self._refuse("what is returned" if isinstance(statement, ast.Return) else "a block")
        self._block(getattr(statement, "body", ()), way)

    # Variables

    def _assign(self, target: ast.expr, value: ast.expr, way: _Way) -> None:
        fact = self._read(value, way)
        if isinstance(target, ast.Name):
            if self._assigned[target.id] == 1 and (path := self._path(value)):
                self._paths[target.id] = path
            self._set(target.id, fact, way)
        elif isinstance(target, (ast.Tuple, ast.List)):
            for part in target.elts:
                if isinstance(part, ast.Name):
                    self._set(part.id, _Fact(differs=fact.differs), way)
                else:
                    self._refuse("an assignment")
        elif self._path(target) == _COUNT:
            self._count(way)
        elif fact.differs or not way.together:
            self._refuse(f"what {ast.unparse(target)} becomes")

    def _set(self, name: str, fact: _Fact, way: _Way) -> None:
        before = self._lookup(name)
        on, off = fact.on if way.on else before.on, fact.off if way.off else before.off
        self._known[-1][name] = _Fact(on, off)
        if fact.differs or not way.together:
            self._differing.add(name)

    def _lookup(self, name: str) -> _Fact:
        for layer in reversed(self._known):
            if name in layer:
                return layer[name]
        return _Fact()

    def _count(self, way: _Way) -> None:
        self.counts_in_eval |= way.off

    # Branches and loops

    def _if(self, statement: ast.If, way: _Way) -> None:
        test = self._read(statement.test, way)
        is_settled = test.on is not _UNKNOWN and test.off is not _UNKNOWN and test.on == test.off
        together = way.together and (is_settled or not test.differs)
        into = _Way(way.on and test.on is not False, way.off and test.off is not False, together)
        past = _Way(way.on and test.on is not True, way.off and test.off is not True, together)
        layers = []
        for branch, branch_way in ((statement.body, into), (statement.orelse, past)):
            self._known.append({})
            if branch_way.on or branch_way.off:
                self._block(branch, branch_way)
            layers.append(self._known.pop())
        for name in {**layers[0], **layers[1]}:
            before = self._lookup(name)
            then, otherwise = (layer.get(name, before) for layer in layers)
            self._known[-1][name] = _Fact(
                _merged(then.on, otherwise.on, into.on, past.on),
                _merged(then.off, otherwise.off, into.off, past.off),
            )

    def _loop(self, statement: ast.For | ast.While, way: _Way) -> None:
        assigned = [
            node.id
            for node in ast.walk(statement)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        ]
        self._forget(assigned)
        turns = statement.iter if isinstance(statement, ast.For) else statement.test
        if self._read(turns, way).differs:
            self._refuse("how often a loop turns")
        self._block(statement.body, way)
        self._forget(assigned)

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            self._known[-1][name] = _Fact()

    # Expressions

    def _path(self, node: ast.expr) -> Path | None:
        path = dotted(node)
        if path is None or (self._assigned[path[0]] and path[0] not in self._paths):
            return None
        return (*self._paths.get(path[0], path[:1]), *path[1:])

    def _read(self, node: ast.AST, way: _Way) -> _Fact:
        """Return what is known of an expression, and judge the calls in it."""
        if isinstance(node, ast.Constant):
            return _Fact(node.value, node.value)
        if isinstance(node, (ast.Attribute, ast.Name, ast.Call)):
            path = self._path(node)
            if path == _FLAG:
                return _Fact(True, False, differs=True)
            if path == _COUNT:
                return _Fact(differs=True)
        if isinstance(node, ast.Name):
            return self._variable(node.id)
        if isinstance(node, ast.Call):
            return self._call(node, way)
        parts = [self._read(part, way) for part in ast.iter_child_nodes(node)]
        return _Fact(differs=any(part.differs for part in parts))

    def _variable(self, name: str) -> _Fact:
        fact = self._lookup(name)
        if fact.on is not _UNKNOWN and fact.off is not _UNKNOWN:
            return replace(fact, differs=fact.on != fact.off)
        return replace(fact, differs=name in self._differing)

    def _call(self, node: ast.Call, way: _Way) -> _Fact:
        path = self._path(node.func) or ()
        places = normaliser_of(path)
        if places and path[-1] == "batch_norm":
            return self._normalise(places, node, way)
        arguments = [self._read(argument, way) for argument in node.args]
        arguments += [self._read(keyword.value, way) for keyword in node.keywords]
        differs = any(argument.differs for argument in arguments)
        name = operator_of(path)
        if name in IN_PLACE and node.args and self._path(node.args[0]) == _COUNT:
            self._count(way)
            return _Fact(differs=True)
        is_pure = name in PURE or name in VIEWS or (len(path) == 1 and path[0] in _PURE_BUILTINS)
        if not is_pure or any(keyword.arg == "out" for keyword in node.keywords):
            receiver = node.func.value if isinstance(node.func, ast.Attribute) else None
            if receiver is not None and not path and self._read(receiver, way).differs:
                self._refuse("a method")
            if differs or not way.together:
                self._refuse(path[-1] if path else _last_name(node.func))
            return _Fact()
        return _logical(name, arguments, differs=differs)

    def _normalise(self, places: tuple[int, ...], node: ast.Call, way: _Way) -> _Fact:
        told = {places[2], places[3]}
        for place, argument in enumerate(node.args):
            if self._read(argument, way).differs and place not in told:
                self._refuse("what is normalised")
        if not way.together:
            self._refuse("a batch_norm")
        if any(self._read(keyword.value, way).differs for keyword in node.keywords):
            self._refuse("what is normalised")
        return _Fact()


def _merged(then: Any, otherwise: Any, may_then: bool, may_otherwise: bool) -> Any:
    """Return the constant behind a branch, of which one way or both can be gone."""
    if may_then and may_otherwise:
        return then if then is otherwise or _same(then, otherwise) else _UNKNOWN
    return then if may_then else otherwise


def _same(first: Any, second: Any) -> bool:
    return _UNKNOWN not in (first, second) and type(first) is type(second) and first == second


_LOGIC: Mapping[str, Any] = {
    "__not__": lambda values: not values[0],
    "__and__": all,
    "__or__": any,
}


def _logical(name: str | None, arguments: list[_Fact], *, differs: bool) -> _Fact:
    """Return the fact of an operator on truths, where these are known."""
    operation = _LOGIC.get(name or "")
    if operation is None or not arguments:
        return _Fact(differs=differs)
    results = []
    for values in ([fact.on for fact in arguments], [fact.off for fact in arguments]):
        is_known = all(isinstance(value, bool) for value in values)
        results.append(operation(values) if is_known else _UNKNOWN)
    on, off = results
    if on is not _UNKNOWN and off is not _UNKNOWN:
        differs = on != off
    return _Fact(on, off, differs)


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else "a call"
