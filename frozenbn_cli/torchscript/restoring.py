"""Modules that make their attributes out of a state of their own, with ``__setstate__``.

Where that method does no more than take the state apart, what the attributes become is read off it.
"""

from __future__ import annotations

import ast

from frozenbn_cli.pickles.values import Value
from frozenbn_cli.torchscript.source_code import ClassSource, real_name

__all__ = ["restored_attributes"]

_RESTORING = "__setstate__"


def restored_attributes(source: ClassSource, state: Value) -> dict[str, Value]:
    """Return the attributes that a module gives itself, as far as its code says so plainly.

    Args:
        source: Its class.
        state: What the archive holds of it.
    """
    method = next(method for method in source.methods if method.name == _RESTORING)
    parameters = [argument.arg for argument in method.args.args]
    if len(parameters) != 2:
        return {}
    return _Restoring(parameters[0], {parameters[1]: state}).run(method.body)


class _UnclearError(Exception):
    """What an expression comes to takes running it."""


class _Restoring:
    def __init__(self, owner: str, values: dict[str, Value]) -> None:
        self._owner = owner
        self._values = values
        self._attributes: dict[str, Value] = {}

    def run(self, statements: list[ast.stmt]) -> dict[str, Value]:
        for statement in statements:
            if isinstance(statement, ast.Assign):
                self._assign(statement.targets[0], statement.value)
            else:
                self._forget(statement)
        return self._attributes

    def _assign(self, target: ast.expr, expression: ast.expr) -> None:
        try:
            self._store(target, self._value(expression))
        except _UnclearError:
            self._forget(target)

    def _store(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Name):
            self._values[target.id] = value
        elif isinstance(target, ast.Tuple) and isinstance(value, (tuple, list)):
            for part, item in zip(target.elts, value, strict=False):
                self._store(part, item)
        elif name := self._own_name(target):
            self._attributes[name] = value
        else:
            raise _UnclearError

    def _own_name(self, node: ast.AST) -> str | None:
        """Return which attribute of the module itself an expression is; None for all others."""
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            return None
        return real_name(node.attr) if node.value.id == self._owner else None

    def _forget(self, statement: ast.AST) -> None:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self._values.pop(node.id, None)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                self._attributes.pop(self._own_name(node) or "", None)

    def _value(self, node: ast.expr) -> Value:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.Name) and node.id in self._values:
            return self._values[node.id]
        if isinstance(node, ast.Subscript):
            return self._item(self._value(node.value), self._value(node.slice))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            is_cast = node.func.id in ("annotate", "unchecked_cast")
            if is_cast and len(node.args) == 2:
                return self._value(node.args[1])
        raise _UnclearError

    def _item(self, holder: Value, index: Value) -> Value:
        is_there = (
            index in holder
            if isinstance(holder, dict) and isinstance(index, (int, str))
            else isinstance(holder, (tuple, list))
            and isinstance(index, int)
            and -len(holder) <= index < len(holder)
        )
        if not is_there:
            raise _UnclearError
        return holder[index]
