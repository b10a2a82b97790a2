"""The code text of a TorchScript archive: classes and methods, with the place of each in the bytes.

TorchScript prints modules as Python classes (``torch/csrc/jit/serialization/python_print.cpp``), so
Python's own parser reads them, but for names that are keywords in Python and not in TorchScript.
Text is changed by spans of bytes; what is not changed stays as it was.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from frozenbn_cli.errors import DamagedFileError, UnsupportedFileError

__all__ = ["ClassSource", "CodeFile", "Span", "apply_edits", "dotted", "file_of", "type_name_of"]

Span = tuple[int, int, bytes]
"""Bytes from, to (exclusive), and what comes in their place."""

_ROOT = "__torch__"
_MAX_CODE_BYTES = 64 << 20
_KEYWORDS = ("from", "lambda", "try", "except", "finally", "yield", "async", "await", "nonlocal")
# A letter of two bytes in UTF-8 takes the place of the first two of each keyword.
_STAND_INS = {keyword: "ǁ" + keyword[2:] for keyword in _KEYWORDS}
_REAL_NAMES = {stand_in: keyword for keyword, stand_in in _STAND_INS.items()}
# Text in quotes comes first, so that what it says stays as it is. Where its end is missing it goes
# on to the end of the line, or each quote would be looked for anew from the next.
_TEXT_OR_KEYWORD = re.compile(
    r'"(?:[^"\\\n]|\\.)*(?:"|\\?$)|\b(?:' + "|".join(_KEYWORDS) + r")\b", re.M
)
_MANGLE = re.compile(r"\.___torch_mangle_\d+")


def file_of(qualified_name: str) -> str:
    """Return where the code of a type lies below ``code/``."""
    return qualified_name.rpartition(".")[0].replace(".", "/") + ".py"


def type_name_of(qualified_name: str) -> str:
    """Return the Python class of a type: ``torch.nn.X`` for ``__torch__.torch.nn.X``."""
    return _MANGLE.sub("", qualified_name).removeprefix(f"{_ROOT}.")


def real_name(name: str) -> str:
    """Return a name as it stands in the archive."""
    return _REAL_NAMES.get(name, name)


def dotted(node: ast.expr) -> tuple[str, ...] | None:
    """Return ``a.b.c``, also where written with ``getattr``, as its parts; None for the rest."""
    parts: list[str] = []
    current: Any = node
    while True:
        if isinstance(current, ast.Attribute):
            parts.append(real_name(current.attr))
            current = current.value
        elif (
            isinstance(current, ast.Call)
            and isinstance(current.func, ast.Name)
            and current.func.id == "getattr"
            and len(current.args) == 2
            and isinstance(current.args[1], ast.Constant)
        ):
            parts.append(real_name(str(current.args[1].value)))
            current = current.args[0]
        elif isinstance(current, ast.Name):
            parts.append(real_name(current.id))
            return tuple(reversed(parts))
        else:
            return None


class CodeFile:
    """One file of code.

    Attributes:
        path: Below ``code/``.
        text: Its bytes.
        classes: The classes in it, by qualified name.
        functions: The functions in it, likewise.
        header: What has to stand in front of a class in a file of its own.

    Raises:
        DamagedFileError: The text is no code.
    """

    def __init__(self, path: str, text: bytes) -> None:
        self.path = path
        self.text = text
        self.tree = _parse(text)
        self._types_in: dict[ast.AST, dict[tuple[str, ...], list[tuple[int, int]]]] = {}
        self._line_starts = [0, *(found.end() for found in re.finditer(rb"\n", text))]
        module = path.removesuffix(".py").replace("/", ".")
        self.classes: dict[str, ClassSource] = {}
        self.functions: dict[str, ast.FunctionDef] = {}
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef):
                name = f"{module}.{real_name(node.name)}"
                self.classes[name] = ClassSource(name, self, node)
            elif isinstance(node, ast.FunctionDef):
                self.functions[f"{module}.{real_name(node.name)}"] = node
        self.header = b"".join(
            self.lines(node) for node in self.tree.body if isinstance(node, ast.Assign)
        )

    def span(self, node: Any) -> tuple[int, int]:
        """Return the bytes of a node, from and to."""
        start = self._line_starts[node.lineno - 1] + node.col_offset
        return start, self._line_starts[node.end_lineno - 1] + node.end_col_offset

    def line_span(self, node: Any) -> tuple[int, int]:
        """Return the bytes of all lines of a node."""
        is_last = node.end_lineno == len(self._line_starts)
        end = len(self.text) if is_last else self._line_starts[node.end_lineno]
        return self._line_starts[node.lineno - 1], end

    def line_starts(self, node: Any) -> list[int]:
        """Return where each line of a node begins."""
        return self._line_starts[node.lineno - 1 : node.end_lineno]

    def lines(self, node: Any) -> bytes:
        """Return the text of all lines of a node."""
        start, end = self.line_span(node)
        return self.text[start:end]

    def references(self, within: ast.AST, qualified_name: str) -> list[tuple[int, int]]:
        """Return the place of every reference to a type, strings not among them."""
        if within not in self._types_in:
            self._types_in[within] = self._find_types(within)
        return self._types_in[within].get(tuple(qualified_name.split(".")), [])

    def _find_types(self, within: ast.AST) -> dict[tuple[str, ...], list[tuple[int, int]]]:
        """Return the places of all that may be types, by name."""
        found: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        beginnings: set[ast.AST] = set()
        for node in ast.walk(within):
            if isinstance(node, ast.Attribute):
                # Parents come first: what only begins a longer name is known by now.
                beginnings.add(node.value)
                if node not in beginnings and (name := dotted(node)):
                    found.setdefault(name, []).append(self.span(node))
        return found


def _parse(text: bytes) -> ast.Module:
    if len(text) > _MAX_CODE_BYTES:
        raise UnsupportedFileError(f"code of {len(text):,} bytes is beyond any model")
    try:
        decoded = text.decode("utf-8")
        if "\r" in decoded or "\f" in decoded or "\0" in decoded:
            raise DamagedFileError("code with control characters")
        replaced = _TEXT_OR_KEYWORD.sub(lambda found: _STAND_INS.get(found[0], found[0]), decoded)
        with warnings.catch_warnings():
            # Escapes in strings that Python would write otherwise.
            warnings.simplefilter("ignore")
            return ast.parse(replaced)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise DamagedFileError("no code of TorchScript", found=str(error)[:80]) from error


@dataclass(slots=True)
class ClassSource:
    """The text of one class.

    Attributes:
        name: Its qualified name, such as ``__torch__.torch.nn.modules.conv.Conv2d``.
        file: Where it stands.
        node: As parsed.
        annotations: The type of each attribute, by name.
        methods: In order.
        lists: The assignments of ``__parameters__`` and ``__buffers__``.
    """

    name: str
    file: CodeFile
    node: ast.ClassDef
    annotations: dict[str, ast.expr] = field(default_factory=dict)
    attribute_lines: dict[str, ast.stmt] = field(default_factory=dict)
    methods: list[ast.FunctionDef] = field(default_factory=list)
    lists: dict[str, ast.List] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for statement in self.node.body:
            if isinstance(statement, ast.FunctionDef):
                self.methods.append(statement)
            elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                self._annotate(real_name(statement.target.id), statement.annotation, statement)
            elif isinstance(statement, ast.Assign):
                self._assign(statement)

    def _annotate(self, name: str, annotation: ast.expr, statement: ast.stmt) -> None:
        self.annotations[name] = annotation
        self.attribute_lines[name] = statement

    def _assign(self, statement: ast.Assign) -> None:
        target = statement.targets[0]
        if isinstance(target, ast.Name) and isinstance(statement.value, ast.List):
            self.lists[target.id] = statement.value
        elif isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
            # ``__annotations__["0"] = …`` of a name that is no identifier.
            self._annotate(real_name(str(target.slice.value)), statement.value, statement)

    @property
    def is_module(self) -> bool:
        """Whether it is a module, rather than an interface, a tuple or a plain class."""
        return self._bases == ["Module"]

    @property
    def is_tuple(self) -> bool:
        """Whether it is a named tuple."""
        return self._bases == ["NamedTuple"]

    @property
    def _bases(self) -> list[str]:
        return [base.id for base in self.node.bases if isinstance(base, ast.Name)]

    @property
    def is_scripted(self) -> bool:
        """Whether it has what only scripting leaves behind: constants."""
        return any(self.annotation(name).startswith("Final[") for name in self.annotations)

    @property
    def has_hooks(self) -> bool:
        """Whether calling it calls functions that belong to its type, before or after."""
        return bool(self.listed("__forward_hooks__") or self.listed("__forward_pre_hooks__"))

    @property
    def restores_itself(self) -> bool:
        """Whether it makes its attributes out of a state of its own."""
        return any(method.name == "__setstate__" for method in self.methods)

    def mentions(self, text: bytes) -> bool:
        """Whether its code has this text in it."""
        start, end = self.file.line_span(self.node)
        return self.file.text.find(text, start, end) >= 0

    def annotation(self, attribute: str) -> str:
        """Return the text of an attribute's type; empty if there is no such attribute."""
        if attribute not in self.annotations:
            return ""
        start, end = self.file.span(self.annotations[attribute])
        return self.file.text[start:end].decode()

    def constant(self, attribute: str) -> Any:
        """Return the value of an attribute that is ``Final`` and a plain one; else None."""
        line = self.attribute_lines.get(attribute)
        value = line.value if isinstance(line, ast.AnnAssign) else None
        return value.value if isinstance(value, ast.Constant) else None

    def listed(self, name: str) -> list[str]:
        """Return the names in ``__parameters__`` or ``__buffers__``."""
        if name not in self.lists:
            return []
        return [
            real_name(str(item.value))
            for item in self.lists[name].elts
            if isinstance(item, ast.Constant)
        ]


def apply_edits(text: bytes, edits: Iterable[Span], *, start: int, end: int) -> bytes:
    """Return ``text[start:end]`` with its spans replaced; a span within another has no effect."""
    parts = []
    position = start
    for begin, stop, replacement in sorted(edits, key=lambda edit: (edit[0], -edit[1])):
        if begin < position:
            continue
        parts += [text[position:begin], replacement]
        position = stop
    parts.append(text[position:end])
    return b"".join(parts)
