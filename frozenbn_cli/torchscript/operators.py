"""Searches the code of an archive for operators that reach beyond the model, before it is run."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator

from frozenbn_cli.pickles.values import Value, parts_of
from frozenbn_cli.torchscript.script_archive import ScriptArchive
from frozenbn_cli.torchscript.source_code import dotted

__all__ = ["reaches_files", "unsafe_operators"]

_NAMES = re.compile(r"save|load|from_file|\w*(?:read|write|open|to)_\w*file\w*|open|dlopen|system")
_SAFE_OPERATORS = {"prim", "aten", "quantized", "torchvision", "onednn", "mkldnn", "prepacked"}
_SAFE_CLASSES = {("quantized",), ("onednn",), ("mkldnn",), ("xnnpack",), ("sparse",)}
_CLASSES = ("__torch__", "torch", "classes")
_MAX_DEPTH = 2_000  # Three for each module within another, of which there are 200 at most.


def reaches_files(name: str) -> bool:
    """Return whether an operator of this name may read or write files."""
    return _NAMES.fullmatch(name) is not None


def unsafe_operators(script: ScriptArchive) -> list[str]:
    """Return the operators in an archive that read or write files, or that nobody knows.

    Loading an archive can run code as well as calling it, so this comes before both.
    """
    found: dict[str, None] = {}
    for pickle in (script.pickle, script.read_constants()):
        found |= dict.fromkeys(
            str(name)
            for name in pickle.names
            if not _is_safe_class(tuple(f"{name.module}.{name.name}".split(".")))
        )
        if _is_deep(pickle.value):
            found[f"values within more than {_MAX_DEPTH:,} others"] = None
    for path in script.code_paths:
        found |= dict.fromkeys(_unsafe(script.file(path).tree))
    return list(found)


def _is_deep(root: Value) -> bool:
    """Return whether values stand so deep in others that taking them apart ends PyTorch."""
    heights: dict[int, int] = {}
    waiting: list[tuple[Value, list[Value] | None]] = [(root, None)]
    while waiting:
        value, parts = waiting.pop()
        if parts is not None:
            heights[id(value)] = 1 + max((heights[id(part)] for part in parts), default=0)
            if heights[id(value)] > _MAX_DEPTH:
                return True
        elif id(value) not in heights:
            heights[id(value)] = 0  # What stands in itself is no deeper for it.
            parts = parts_of(value)
            waiting.append((value, parts))
            waiting += [(part, None) for part in parts]
    return False


def _unsafe(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        for part in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(part, ast.FunctionDef):
                yield from _unsafe_in_function(part)
            elif isinstance(part, ast.AnnAssign):
                # The attribute itself may have any name.
                yield from _unsafe_names(part.annotation, ())
                yield from _unsafe_names(part.value or ast.Pass(), ())
            else:
                yield from _unsafe_names(part, ())


def _unsafe_in_function(function: ast.FunctionDef) -> Iterator[str]:
    """Yield what is unsafe; a submodule may be called ``ops`` or ``torch`` in what comes next."""
    yield from _unsafe_names(function.args, ())
    owner = function.args.args[0].arg if function.args.args else ""
    shadowed: frozenset[str] = frozenset()
    for statement in function.body:
        names = {
            node.id
            for node in ast.walk(statement)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
        if isinstance(statement, ast.Assign) and _is_part_of(owner, statement):
            yield from _unsafe_names(statement.value, shadowed)
            shadowed |= names
        else:
            yield from _unsafe_names(statement, shadowed - names)
            shadowed -= names


def _is_part_of(owner: str, statement: ast.Assign) -> bool:
    """Return whether a name is given to an attribute of the module itself."""
    path = dotted(statement.value)
    is_own = path is not None and len(path) > 1 and path[0] == owner
    return is_own and owner not in ("ops", "torch") and isinstance(statement.targets[0], ast.Name)


def _unsafe_names(tree: ast.AST, shadowed: Collection[str]) -> Iterator[str]:
    beginnings: set[ast.AST] = set()
    for node in ast.walk(tree):
        path = dotted(node) if isinstance(node, (ast.Attribute, ast.Call, ast.Name)) else None
        if not path:
            continue
        # Parents come first: what only begins a longer name is known by now.
        if node not in beginnings and path[0] not in shadowed and not _is_safe(path):
            yield ".".join(path)
        beginnings.add(_beginning(node))


def _beginning(node: ast.AST) -> ast.AST:
    """Return what an attribute is of, also where it is read with ``getattr``."""
    if isinstance(node, ast.Call):
        return node.args[0]
    return node.value if isinstance(node, ast.Attribute) else node


def _is_safe(path: tuple[str, ...]) -> bool:
    # Of what another variable stands for, any operator could be called.
    if path[0] == "ops":
        return len(path) == 3 and path[1] in _SAFE_OPERATORS and not reaches_files(path[2])
    if path[0] == "torch":
        return len(path) > 1 and not reaches_files(path[1])
    return path != _CLASSES[: len(path)] and _is_safe_class(path)


def _is_safe_class(path: tuple[str, ...]) -> bool:
    return path[:3] != _CLASSES or path[3:4] in _SAFE_CLASSES
