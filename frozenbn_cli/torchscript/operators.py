"""Searches the code of an archive for operators that reach beyond the model, before it is run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frozenbn_cli.torchscript.script_archive import ScriptArchive
from frozenbn_cli.torchscript.source_code import dotted

__all__ = ["unsafe_operators"]

_NAMES = re.compile(r"save|load|from_file|\w*(?:read|write|open|to)_\w*file\w*|open|dlopen|system")
_SAFE_OPERATORS = {"prim", "aten", "quantized", "torchvision", "onednn", "mkldnn", "prepacked"}
_SAFE_CLASSES = {("quantized",), ("onednn",), ("mkldnn",), ("xnnpack",), ("sparse",)}
_CLASSES = ("__torch__", "torch", "classes")


def unsafe_operators(script: ScriptArchive) -> list[str]:
    """Return the operators in an archive that read or write files, or that nobody knows.

    Loading an archive can run code as well as calling it, so this comes before both.
    """
    found = dict.fromkeys(
        str(name)
        for name in script.pickle.names
        if not _is_safe_class(tuple(f"{name.module}.{name.name}".split(".")))
    )
    for path in script.code_paths:
        found |= dict.fromkeys(_unsafe(script.file(path).tree))
    return list(found)


def _unsafe(tree: ast.AST) -> Iterator[str]:
    beginnings: set[ast.AST] = set()
    for node in ast.walk(tree):
        path = dotted(node) if isinstance(node, (ast.Attribute, ast.Call, ast.Name)) else None
        if not path:
            continue
        # Parents come first: what only begins a longer name is known by now.
        if node not in beginnings and not _is_safe(path):
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
        return len(path) == 3 and path[1] in _SAFE_OPERATORS and not _NAMES.fullmatch(path[2])
    if path[0] == "torch":
        return len(path) > 1 and not _NAMES.fullmatch(path[1])
    return path != _CLASSES[: len(path)] and _is_safe_class(path)


def _is_safe_class(path: tuple[str, ...]) -> bool:
    return path[:3] != _CLASSES or path[3:4] in _SAFE_CLASSES
