"""Searches the code of an archive for operators that reach beyond the model, before it is run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from frozenbn_cli.torchscript.script_archive import ScriptArchive
from frozenbn_cli.torchscript.source_code import dotted

__all__ = ["unsafe_operators"]

_SUSPICIOUS = re.compile(rb"\bops\.|\btorch\.classes\.|\b(?:save|load|\w*_?file|open)\b")
_NAMES = re.compile(r"save|load|from_file|\w*(?:read|write|open|to)_\w*file\w*|open|dlopen|system")
_SAFE_OPERATORS = {"prim", "aten", "quantized", "torchvision", "onednn", "mkldnn", "prepacked"}
_SAFE_CLASSES = {"quantized", "onednn", "mkldnn", "xnnpack", "sparse"}
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
        if _SUSPICIOUS.search(script.text(path)):
            found |= dict.fromkeys(_unsafe(script.file(path).tree))
    return list(found)


def _unsafe(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        path = dotted(node) if isinstance(node, ast.Attribute) else None
        if not path:
            continue
        if path[0] == "ops" and len(path) == 3:
            is_safe = path[1] in _SAFE_OPERATORS and not _NAMES.fullmatch(path[2])
        elif path[0] == "torch" and len(path) == 2:
            is_safe = not _NAMES.fullmatch(path[1])
        else:
            is_safe = _is_safe_class(path)
        if not is_safe:
            yield ".".join(path)


def _is_safe_class(path: tuple[str, ...]) -> bool:
    return path[:3] != _CLASSES or len(path) < 5 or path[3] in _SAFE_CLASSES
