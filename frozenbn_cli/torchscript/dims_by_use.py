"""How many dimensions the inputs of layers have, as far as the code that uses them shows it.

The forward of an archive is followed from call to call, over the objects that there are. Of a
tensor it is known how many dimensions it has where an operator gives so many, such as ``conv2d``,
or takes so many later on; most operators keep them. What nothing shows stays unknown, and so does
what contradicts itself.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from frozenbn_cli.pickles.values import Call
from frozenbn_cli.torchscript.script_archive import ScriptArchive, is_tensor_call
from frozenbn_cli.torchscript.source_code import dotted, real_name
from frozenbn_cli.torchscript.tensor_ranks import Each, Tensor, apply_operator, keeps_rank

__all__ = ["dims_by_use"]

_SPATIAL_DIMS = {2: 1, 3: 1, 4: 2, 5: 3}
"""Spatial dimensions by all dimensions of an input: (N, C) and (N, C, L) are one kind."""

_MOST_STEPS = 100_000


def dims_by_use(script: ScriptArchive, layers: Collection[int]) -> dict[int, int]:
    """Return the spatial dimensions of those layers whose use shows them, by identity.

    Args:
        script: The archive.
        layers: The identities of the layers' objects.
    """
    following = _Following(script, layers)
    try:
        following.run()
    except (_TooMuchError, RecursionError):
        return {}  # Only a model that was made to confuse has so much code.
    found = {}
    for layer, inputs in following.inputs.items():
        dims = {_SPATIAL_DIMS.get(tensor.rank or 0) for tensor in inputs if tensor.rank}
        if len(dims) == 1 and (known := dims.pop()):
            found[layer] = known
    return found


class _TooMuchError(Exception):
    """More statements are run than in any model."""


@dataclass(frozen=True, slots=True)
class _Function:
    name: str


Value: TypeAlias = Any
"""A tensor, a module's object, a function, a plain value, or a tuple of values."""


@dataclass(slots=True)
class _Following:
    """What the code does with tensors, from one call to the next.

    Attributes:
        script: The archive.
        layers: The identities of the layers that are wanted.
        inputs: What each of them is called with.
    """

    script: ScriptArchive
    layers: Collection[int]
    inputs: dict[int, list[Tensor]] = field(default_factory=dict)
    _steps: int = 0
    # Within a branch or a loop, what takes a tensor may never come to it.
    _branches: int = 0

    def run(self) -> None:
        root = self.script.pickle.value
        source = self.script.class_of(root)
        for method in source.methods if source else ():
            if method.name.startswith("forward"):
                self._run(method, [root])

    def _run(self, function: ast.FunctionDef, arguments: Iterable[Value]) -> Value:
        names = [argument.arg for argument in function.args.args]
        known = dict(zip(names, arguments, strict=False))
        return self._block(function.body, known)

    def _block(self, statements: Iterable[ast.stmt], known: dict[str, Value]) -> Value:
        returned: Value = Tensor()
        for statement in statements:
            self._steps += 1
            if self._steps > _MOST_STEPS:
                raise _TooMuchError
            if isinstance(statement, ast.Return):
                returned = self._value(statement.value, known) if statement.value else None
            elif isinstance(statement, ast.Assign):
                self._assign(statement.targets[0], self._value(statement.value, known), known)
            elif isinstance(statement, ast.Expr):
                self._value(statement.value, known)
            elif isinstance(statement, ast.If):
                self._if(statement, known)
            elif isinstance(statement, (ast.For, ast.While)):
                self._loop(statement, known)
            elif isinstance(statement, ast.With):
                self._block(statement.body, known)
        return returned

    def _assign(self, target: ast.expr, value: Value, known: dict[str, Value]) -> None:
        if isinstance(target, ast.Name):
            known[target.id] = value
        elif isinstance(target, ast.Tuple):
            count = len(target.elts)
            if isinstance(value, Each) and value.is_size:  # ``n, c, h, w, = torch.size(x)``
                value.tensor.has(count, certain=not self._branches)
                value = Tensor()
            whole = isinstance(value, tuple) and len(value) == count
            for place, part in enumerate(target.elts):
                one = value.tensor if isinstance(value, Each) else Tensor()
                self._assign(part, value[place] if whole else one, known)

    def _if(self, statement: ast.If, known: dict[str, Value]) -> None:
        self._value(statement.test, known)
        names = _assigned(statement)
        before = {name: known[name] for name in names if name in known}
        self._branches += 1
        self._block(statement.body, known)
        then = {name: known.pop(name, None) for name in names}
        known |= before
        self._block(statement.orelse, known)
        self._branches -= 1
        for name, value in then.items():
            if not _are_alike(value, known.get(name)):
                known[name] = Tensor()

    def _loop(self, statement: ast.For | ast.While, known: dict[str, Value]) -> None:
        # What one turn assigns, the next one finds; or there is no turn at all.
        known |= {name: Tensor() for name in _assigned(statement)}
        self._branches += 1
        self._block(statement.body, known)
        self._branches -= 1
        known |= {name: Tensor() for name in _assigned(statement)}

    # Expressions

    def _value(self, node: ast.expr, known: dict[str, Value]) -> Value:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self._value(node.operand, known)
            return -value if isinstance(value, (int, float)) else Tensor()
        if isinstance(node, (ast.List, ast.Tuple)):
            return tuple(self._value(item, known) for item in node.elts)
        if isinstance(node, ast.Subscript):
            return self._item(self._value(node.value, known), self._value(node.slice, known))
        if path := dotted(node):
            return self._at(path, known)
        if isinstance(node, ast.Call):
            return self._call(node, known)
        return Tensor()

    def _item(self, value: Value, index: Value) -> Value:
        if isinstance(value, Each):
            return Tensor() if value.is_size else value.tensor
        is_there = isinstance(value, tuple) and type(index) is int
        return value[index] if is_there and -len(value) <= index < len(value) else Tensor()

    def _at(self, path: tuple[str, ...], known: dict[str, Value]) -> Value:
        if path[0] == "__torch__":
            return _Function(".".join(path))
        value = known.setdefault(path[0], Tensor())
        for name in path[1:]:
            state = value.state if isinstance(value, Call) else None
            value = state.get(name, Tensor()) if isinstance(state, dict) else Tensor()
        if isinstance(value, Call) and is_tensor_call(value):
            shape = value.arguments[2] if len(value.arguments) > 2 else None
            return Tensor(len(shape)) if isinstance(shape, tuple) else Tensor()
        return value

    def _call(self, node: ast.Call, known: dict[str, Value]) -> Value:
        arguments = [self._value(argument, known) for argument in node.args]
        function = node.func
        path = dotted(function)
        if path and path[0] == "torch":
            return apply_operator(path[-1], arguments, certain=not self._branches)
        if isinstance(function, ast.Name) and function.id in ("annotate", "unchecked_cast"):
            return arguments[-1] if arguments else Tensor()
        if path and path[0] != "ops" and isinstance(called := self._at(path, known), _Function):
            return self._function(called.name, arguments)
        if isinstance(function, ast.Attribute):
            owner = self._value(function.value, known)
            if isinstance(owner, Call):
                return self._method(owner, real_name(function.attr), arguments)
        return Tensor()

    def _function(self, name: str, arguments: list[Value]) -> Value:
        if keeps_rank(name.rpartition(".")[2]) and arguments:
            return arguments[0]
        function = self.script.function(name)
        return self._run(function, arguments) if function else Tensor()

    def _method(self, module: Call, name: str, arguments: list[Value]) -> Value:
        source = self.script.class_of(module)
        method = next((one for one in source.methods if one.name == name), None) if source else None
        is_wanted = id(module) in self.layers and name.startswith("forward")
        if is_wanted and arguments and isinstance(arguments[0], Tensor):
            self.inputs.setdefault(id(module), []).append(arguments[0])
        return self._run(method, [module, *arguments]) if method else Tensor()


def _assigned(statement: ast.stmt) -> set[str]:
    """Return the names of the variables that a statement assigns, however far in."""
    return {
        node.id
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }


def _are_alike(one: Value, other: Value) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.rank is not None and one.rank == other.rank)
    return one is other
