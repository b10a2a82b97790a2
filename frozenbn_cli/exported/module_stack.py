"""``nn_module_stack``: in which modules a node was made, as ``key,path,class`` with ``;`` between.

It is not always there, and in a strict export the paths are odd: a class is read where a path is
that of the layer, and nowhere else.
"""

from __future__ import annotations

__all__ = ["innermost", "paths_in", "type_in_stack", "with_type"]


def innermost(stack: str) -> tuple[str | None, str]:
    """Return the name and the class of the innermost module; None and empty if there is none."""
    return _path_and_type(stack.rpartition(";")[2])


def paths_in(stack: str) -> set[str]:
    """Return the names of all modules in a stack."""
    return {path for entry in stack.split(";") if (path := _path_and_type(entry)[0]) is not None}


def type_in_stack(stack: str, name: str) -> str | None:
    """Return the class of the innermost module of this name; None if the stack has none."""
    for entry in reversed(stack.split(";")):
        path, type_name = _path_and_type(entry)
        if path == name and type_name:
            return type_name
    return None


def with_type(stack: str, name: str, type_name: str) -> str:
    """Return a stack in which the modules of this name are of another class."""
    entries = stack.split(";")
    for index, entry in enumerate(entries):
        path, old = _path_and_type(entry)
        if path == name and old:
            entries[index] = f"{entry[: -len(old)]}{type_name}"
    return ";".join(entries)


def _path_and_type(entry: str) -> tuple[str | None, str]:
    _, comma, rest = entry.partition(",")
    path, other_comma, type_name = rest.rpartition(",")
    return (path, type_name) if comma and other_comma else (None, "")
