"""Reads what a class of a TorchScript archive does with `batch_norm`, and how to freeze it.

Scripted, a BatchNorm asks ``self.training`` and calls ``torch.nn.functional.batch_norm``; traced,
it calls ``torch.batch_norm`` with what the flag was. Freezing folds ``self.training`` to False,
drops the branches that never run then, and gives False to `batch_norm`; all else stays.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from frozenbn_cli.torchscript.flag_influence import influence_of_flag
from frozenbn_cli.torchscript.source_code import ClassSource, Span, dotted

__all__ = ["BatchNormCode", "module_reads", "read_batch_norm_code"]

_FUNCTIONAL = re.compile(r"__torch__\.torch\.nn\.functional(\.___torch_mangle_\d+)?\.batch_norm")
_TRAINING, _MOMENTUM, _EPS = 5, 6, 7  # The places of both functions' arguments.
_STATISTICS = ("self", "running_mean"), ("self", "running_var")
_SELF_TRAINING = ("self", "training")
_INDENT = 2
# What PyTorch's classes, and those that inherit from them, say to an input of other dimensions.
_EXPECTED = re.compile(rb"expected (2D or 3D|4D|5D) input")
_SPATIAL_DIMS = {b"2D or 3D": 1, b"4D": 2, b"5D": 3}

Path = tuple[str, ...]


@dataclass(slots=True)
class BatchNormCode:
    """What the methods of a class do.

    Attributes:
        eps: Of its calls of `batch_norm`; None where there are none, or several that differ.
        momentum: Likewise; None also where it is not a plain number.
        calls: How many calls of `batch_norm` there are that use the module's own statistics.
        always_batch_statistics: Whether one of them normalises with batch statistics for good,
            in a trace.
        is_live: Whether the training flag is read, or statistics are updated without asking.
        spatial_dims: By the inputs that it accepts; None where it accepts any.
        obstacle: Why the code cannot be frozen; None if it can.
        edits: The spans to replace for that.
    """

    eps: float | None = None
    momentum: float | None = None
    calls: int = 0
    always_batch_statistics: bool = False
    is_live: bool = False
    spatial_dims: int | None = None
    obstacle: str | None = None
    edits: list[Span] = field(default_factory=list)


def read_batch_norm_code(source: ClassSource, attributes: Mapping[str, Any]) -> BatchNormCode:
    """Return what a class does with `batch_norm`.

    Args:
        source: The class.
        attributes: Of one instance, for an eps that is no literal in the code.
    """
    code = BatchNormCode()
    eps: set[float | None] = set()
    momenta: set[float | None] = set()
    for function in source.methods:
        method = _Method(source, function, attributes)
        method.read()
        code.edits += method.edits
        code.obstacle = code.obstacle or method.obstacle
        code.calls += len(method.eps)
        code.always_batch_statistics |= method.always_batch_statistics
        eps |= set(method.eps)
        momenta |= set(method.momenta)
    code.is_live = code.always_batch_statistics or any(map(_reads_flag, source.methods))
    if code.always_batch_statistics and source.is_scripted:
        code.always_batch_statistics = False
        code.obstacle = "its code always normalises with batch statistics (training=True)"
    influence = influence_of_flag(source)
    code.obstacle = influence.beside or code.obstacle
    if influence.counts_in_eval and not code.always_batch_statistics:
        code.obstacle = code.obstacle or "its code counts batches in eval too"
    if source.has_hooks:
        code.obstacle = "it has forward hooks, whose code is not its own"
    if source.methods and not code.calls and not code.obstacle:
        code.obstacle = "its code does not call batch_norm with its own statistics"
    if found := _EXPECTED.search(source.file.text, *source.file.line_span(source.node)):
        code.spatial_dims = _SPATIAL_DIMS[found[1]]
    code.eps = eps.pop() if len(eps) == 1 else None
    code.momentum = momenta.pop() if len(momenta) == 1 else None
    return code


def module_reads(source: ClassSource, name: str) -> Iterator[tuple[Path, Any]]:
    """Yield where a class reads this attribute of another module, and of which.

    Yields:
        The path from ``self`` to the attribute (its first part is not ``self`` where the module
        comes from elsewhere), and the node.
    """
    for function in source.methods:
        aliases = _all_aliases(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and node.attr == name:
                path = _resolve(node, aliases)
                if path is None or len(path) > 2 or path[0] != "self":
                    yield path or ("", node.attr), node


def _reads_flag(function: ast.FunctionDef) -> bool:
    return any(
        isinstance(node, ast.Attribute) and node.attr == "training" for node in ast.walk(function)
    )


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def _statistics(call: ast.Call, aliases: dict[str, Path]) -> list[ast.expr] | None:
    """Return the arguments that hold the statistics of a `batch_norm`; None for other calls."""
    path = _resolve(call.func, aliases)
    if path is None or len(call.args) <= _EPS:
        return None
    if path == ("torch", "batch_norm"):
        return call.args[3:5]
    return call.args[1:3] if _FUNCTIONAL.fullmatch(".".join(path)) else None


def _all_aliases(function: ast.FunctionDef) -> dict[str, Path]:
    """Return what stands for which path anywhere in a method."""
    aliases = _self_alias(function)
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign) or not isinstance(node.targets[0], ast.Name):
            continue
        if path := _resolve(node.value, aliases):
            aliases[node.targets[0].id] = path
    return aliases


def _self_alias(function: ast.FunctionDef) -> dict[str, Path]:
    first = function.args.args[:1]
    return {first[0].arg: ("self",)} if first else {}


def _resolve(node: ast.expr, aliases: dict[str, Path]) -> Path | None:
    path = dotted(node)
    return (*aliases.get(path[0], (path[0],)), *path[1:]) if path else None


def _assigned(statement: ast.stmt) -> Iterator[str]:
    """Yield the names of the variables that a statement assigns, however far in."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _plain_number(value: object) -> float | None:
    return float(value) if type(value) is float or type(value) is int else None


class _Method:
    """Follows a method statement by statement, with what is known of its variables."""

    def __init__(
        self, source: ClassSource, function: ast.FunctionDef, attributes: Mapping[str, Any]
    ) -> None:
        self._source = source
        self._file = source.file
        self._function = function
        self._attributes = attributes
        self._arguments = {argument.arg for argument in function.args.args[1:]}
        self._aliases = _self_alias(function)
        self._known: dict[str, bool] = {}
        self._numbers: dict[str, float] = {}
        # Variables that hold the training flag or its opposite.
        self._flags: set[str] = set()
        self._dedented: Counter[int] = Counter()
        self._spans: list[Span] = []
        self.eps: list[float | None] = []
        self.momenta: list[float | None] = []
        self.always_batch_statistics = False
        self.obstacle: str | None = None

    def read(self) -> None:
        self._block(self._function.body)

    @property
    def edits(self) -> list[Span]:
        return self._spans + [
            (start, start + count, b"") for start, count in self._dedented.items()
        ]

    def _block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            if isinstance(statement, ast.If):
                self._if(statement)
            elif isinstance(statement, (ast.For, ast.While, ast.With)):
                # What one turn of a loop assigns, the next one finds; or there is no turn at all.
                self._forget(_assigned(statement))
                for part in ast.iter_child_nodes(statement):
                    if isinstance(part, ast.expr):
                        self._expression(part)
                self._block(statement.body)
                self._forget(_assigned(statement))
            else:
                self._plain(statement)

    def _plain(self, statement: ast.stmt) -> None:
        value = getattr(statement, "value", None)
        if not isinstance(value, ast.expr):
            return
        target = statement.targets[0] if isinstance(statement, ast.Assign) else None
        if isinstance(target, ast.Name):
            self._assign(target.id, value)
        else:
            self._expression(value)
            self._forget(_assigned(statement))
            if isinstance(target, ast.Attribute) and self._is_flag(target):
                self._refuse("its code sets the training flag")

    @property
    def _facts(self) -> tuple[dict[str, Any], ...]:
        return self._aliases, self._known, self._numbers

    def _forget(self, names: Iterable[str]) -> None:
        for name in names:
            for facts in self._facts:
                facts.pop(name, None)

    def _assign(self, name: str, value: ast.expr) -> None:
        self._forget([name])
        path = _resolve(value, self._aliases)
        if path:
            self._aliases[name] = path
        truth = self._truth(value)
        if truth is not None:
            self._known[name] = truth
            if self._is_flag(value):
                self._flags.add(name)
                self._spans.append((*self._file.span(value), str(truth).encode()))
        if (number := self._number(value)) is not None:
            self._numbers[name] = number
        if truth is None or not self._is_flag(value):
            self._expression(value)

    def _if(self, statement: ast.If) -> None:
        truth = self._truth(statement.test)
        if truth is None:
            self._expression(statement.test)
            self._both_branches(statement)
            return
        chosen = statement.body if truth else statement.orelse
        self._keep_branch(statement, chosen)
        self._block(chosen)

    def _both_branches(self, statement: ast.If) -> None:
        names = set(_assigned(statement))
        before = self._told(names)
        self._block(statement.body)
        then = self._told(names)
        self._tell(before, names)
        self._block(statement.orelse)
        # Behind it, only that is known on which both branches agree.
        otherwise = self._told(names)
        self._tell(
            [
                {name: value for name, value in facts.items() if others.get(name) == value}
                for facts, others in zip(then, otherwise, strict=True)
            ],
            names,
        )

    def _told(self, names: Collection[str]) -> list[dict[str, Any]]:
        """Return what is known of these variables."""
        return [{name: facts[name] for name in names if name in facts} for facts in self._facts]

    def _tell(self, told: list[dict[str, Any]], names: Collection[str]) -> None:
        """Know of these variables what is told, and no more."""
        self._forget(names)
        for facts, values in zip(self._facts, told, strict=True):
            facts.update(values)

    def _keep_branch(self, statement: ast.If, chosen: list[ast.stmt]) -> None:
        start, end = self._file.line_span(statement)
        kept = [node for node in chosen if not isinstance(node, ast.Pass)]
        if not kept:
            indent = statement.col_offset - self._dedented[start]
            self._spans.append((start, end, b" " * indent + b"pass\n"))
            return
        first, last = self._file.line_span(kept[0])[0], self._file.line_span(kept[-1])[1]
        self._spans += [(start, first, b""), (last, end, b"")]
        for node in kept:
            for line in self._file.line_starts(node):
                self._dedented[line] += _INDENT

    def _truth(self, node: ast.expr) -> bool | None:
        """Return a condition's value with ``self.training`` taken as False; None if not known."""
        if isinstance(node, ast.Constant) and isinstance(node.value, bool):
            return node.value
        if isinstance(node, ast.Name) and node.id in self._known:
            return self._known[node.id]
        if _resolve(node, self._aliases) == _SELF_TRAINING:
            return False
        if isinstance(node, ast.Call) and dotted(node.func) == ("torch", "__not__"):
            truth = self._truth(node.args[0])
            return None if truth is None else not truth
        return None

    def _is_flag(self, node: ast.expr) -> bool:
        """Return whether an expression is nothing but the training flag or its opposite."""
        if isinstance(node, ast.Name) and node.id in self._flags:
            return True
        if _resolve(node, self._aliases) == _SELF_TRAINING:
            return True
        return (
            isinstance(node, ast.Call)
            and dotted(node.func) == ("torch", "__not__")
            and self._is_flag(node.args[0])
        )

    def _number(self, node: ast.expr) -> float | None:
        if isinstance(node, ast.Constant):
            return _plain_number(node.value)
        if isinstance(node, ast.Name) and node.id in self._numbers:
            return self._numbers[node.id]
        path = _resolve(node, self._aliases)
        if path and len(path) == 2 and path[0] == "self":
            return _plain_number(self._attributes.get(path[1], self._source.constant(path[1])))
        return None

    def _expression(self, node: ast.expr) -> None:
        """Look for calls of `batch_norm`."""
        if isinstance(node, ast.Call) and (statistics := _statistics(node, self._aliases)):
            for place, argument in enumerate(node.args):
                if place != _TRAINING:
                    self._expression(argument)
            self._batch_norm(node, statistics)
            return
        for part in ast.iter_child_nodes(node):
            if isinstance(part, ast.expr):
                self._expression(part)

    def _batch_norm(self, call: ast.Call, statistics: list[ast.expr]) -> None:
        paths = tuple(_resolve(node, self._aliases) for node in statistics)
        # A trace hands tensors that it knows by another name to its methods, and the flag is fixed.
        are_handed = _is_false(call.args[_TRAINING]) and all(
            path is not None and path[0] in self._arguments for path in paths
        )
        if paths != _STATISTICS and not are_handed:
            if self._source.annotation("running_mean") == "Tensor":
                self._refuse("its code normalises with statistics that are not its own")
            return
        training = self._truth(call.args[_TRAINING])
        if training is None:
            self._refuse("its code decides by more than the training flag")
        elif training:
            self.always_batch_statistics = True
        else:
            self._spans.append((*self._file.span(call.args[_TRAINING]), b"False"))
        self.eps.append(self._number(call.args[_EPS]))
        momentum = self._number(call.args[_MOMENTUM])
        # What a cumulative average is called with when it is not training.
        self.momenta.append(momentum or None)

    def _refuse(self, obstacle: str) -> None:
        self.obstacle = self.obstacle or obstacle
