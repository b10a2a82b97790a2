"""Expressions in a program that PyTorch evaluates, and which of them only compute a number.

`torch.export.load` gives sizes to `sympy.sympify`, and running a program executes its guards as
Python. So a tree of their syntax may hold nothing but what PyTorch itself writes there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Collection, Mapping

__all__ = ["IDENTIFIER", "KEY", "is_plain_guard", "is_plain_size"]

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""A name that may stand in code as it is."""

KEY = re.compile(r"[\w.\-+@/: ]*")
"""Text that may stand in quotes in code."""

_MAX_CHARACTERS = 4096
_MAX_EXPONENT = 64
_SYMBOL = re.compile(r"[a-z]{1,4}\d+")  # Such as s0, u3 and zuf1.
_NUMBER_OR_NAME = re.compile(r"[A-Za-z0-9_.+-]+")
_CONSTANTS = {"oo", "int_oo", "true", "false", "inf"}
_FUNCTIONS = {
    "Abs", "Add", "And", "CeilDiv", "CeilToInt", "CleanDiv", "Eq", "Equality", "Float", "FloatPow",
    "FloatTrueDiv", "FloorDiv", "FloorToInt", "Ge", "GreaterThan", "Gt", "Identity", "IntTrueDiv",
    "Integer", "IsNonOverlappingAndDenseIndicator", "LShift", "Le", "LessThan", "Lt", "Max", "Min",
    "Mod", "ModularIndexing", "Mul", "Ne", "Not", "Or", "Pow", "PowByNatural", "PythonMod",
    "RShift", "Rational", "RoundDecimal", "RoundToInt", "StrictGreaterThan", "StrictLessThan",
    "Symbol", "ToFloat", "TruncToFloat", "TruncToInt", "Unequality", "Where", "ceiling", "floor",
}  # fmt: skip
_PROPERTIES = {"positive", "negative", "nonnegative", "integer", "real", "finite", "precision"}
_GUARD_FUNCTIONS = {"abs", "bool", "float", "int", "len", "max", "min", "pow", "round"}
_OF_TENSORS = {"size", "stride", "storage_offset"}
_ATTRIBUTES: Mapping[str, Collection[str]] = {
    "math": {"ceil", "e", "floor", "inf", "isinf", "isnan", "nan", "pi", "sqrt", "trunc"},
    "torch": {"sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not", "sym_sqrt"},
}
_OPERATORS = (
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context, ast.UnaryOp, ast.BoolOp,
    ast.Compare, ast.IfExp,
)  # fmt: skip


def is_plain_size(text: str) -> bool:
    """Return whether the expression of a size holds numbers, symbols and arithmetic alone."""
    return _is_plain(text, _is_size_part)


def is_plain_guard(text: str) -> bool:
    """Return whether a condition on the inputs does no more than read sizes and compare them."""
    # It is also written into a message between double quotes.
    return '"' not in text and "\\" not in text and _is_plain(text, _is_guard_part)


def _is_plain(text: str, is_part: Callable[[ast.AST], bool]) -> bool:
    if len(text) > _MAX_CHARACTERS or not text.isascii() or "\n" in text or "\r" in text:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(map(is_part, ast.walk(tree.body)))


def _is_size_part(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name)
    if isinstance(node, ast.keyword):  # As in Symbol('s0', positive=True, integer=True).
        return node.arg in _PROPERTIES and isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _NUMBER_OR_NAME.fullmatch(node.value) is not None
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS | _CONSTANTS or _SYMBOL.fullmatch(node.id) is not None
    return _is_arithmetic(node)


def _is_arithmetic(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return isinstance(node.right, ast.Constant) and node.right.value in range(_MAX_EXPONENT)
    if isinstance(node, ast.Constant):
        return type(node.value) in (int, float, bool)
    return isinstance(node, (ast.BinOp, *_OPERATORS))


def _is_guard_part(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, (ast.Name, ast.Attribute)) and not node.keywords
    if isinstance(node, ast.Attribute):
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        return node.attr in _ATTRIBUTES.get(owner, _OF_TENSORS)
    if isinstance(node, ast.Name):
        known = {"L", *_ATTRIBUTES} | _GUARD_FUNCTIONS | _FUNCTIONS | _CONSTANTS
        return node.id in known or _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return KEY.fullmatch(node.value) is not None
    return isinstance(node, ast.Subscript) or _is_arithmetic(node)
