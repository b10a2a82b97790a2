"""Checks that a program's JSON has the shape that its schema says, so that others may index freely.

Follows ``torch/_export/serde/schema.py``, version 8. Fields that nothing here looks at are not
checked; those that the schema gives a default may be missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from frozenbn_cli.errors import DamagedFileError, located

__all__ = ["check_config", "check_program", "subgraphs_of"]

_MAX_DEPTH = 32  # Of graphs in graphs.


def check_program(document: dict[str, Any]) -> None:
    """Check the whole of a program.

    Raises:
        DamagedFileError: It has another shape; says where.
    """
    module = _field(document, "graph_module", dict)
    for verifier in document.get("verifiers") or ():
        _be(verifier, str, "verifiers")
    with located("graph_module"):
        _check_graph(_field(module, "graph", dict), 0)
        signature = _field(module, "signature", dict)
        for kind in ("input_specs", "output_specs"):
            for index, spec in enumerate(_field(signature, kind, list)):
                with located(f"{kind}[{index:,}]"):
                    _check_spec(_union(spec))
        if len(signature["input_specs"]) != len(module["graph"]["inputs"]):
            raise DamagedFileError("input_specs, one for each input of the graph")
        for index, entry in enumerate(_field(module, "module_call_graph", list)):
            with located(f"module_call_graph[{index:,}]"):
                _check_call(_be(entry, dict, "an entry"))


def check_config(document: dict[str, Any]) -> None:
    """Check the record that says where each tensor of a program lies.

    Raises:
        DamagedFileError: It has another shape; says where.
    """
    for name, entry in _field(document, "config", dict).items():
        with located(f"entry {name[:80]!a}"):
            _be(entry, dict, "an entry")
            path = _field(entry, "path_name", str)
            if "/" in path or "\\" in path:
                raise DamagedFileError(f"path_name {path[:80]!a} leads out of its folder")
            _field(entry, "is_param", bool)
            _field(entry, "use_pickle", bool)
            if entry.get("tensor_meta") is not None:
                _check_meta(_field(entry, "tensor_meta", dict))


def subgraphs_of(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the graphs that a node takes as arguments, such as the branches of `torch.cond`."""
    for taken in node["inputs"]:
        if "as_graph" in taken["arg"]:
            yield taken["arg"]["as_graph"]["graph"]


def _check_graph(graph: dict[str, Any], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise DamagedFileError(f"graphs in graphs, more than {_MAX_DEPTH} deep")
    for role in ("inputs", "outputs"):
        for argument in _field(graph, role, list):
            _check_argument(argument)
    for name, meta in _field(graph, "tensor_values", dict).items():
        with located(f"tensor_values {name[:80]!a}"):
            _check_meta(_be(meta, dict, "a value"))
    for index, node in enumerate(_field(graph, "nodes", list)):
        with located(f"node {index:,}"):
            _check_node(_be(node, dict, "a node"))
            for inner in subgraphs_of(node):
                _check_graph(inner, depth + 1)


def _check_node(node: dict[str, Any]) -> None:
    _field(node, "target", str)
    names: set[str] = set()
    for taken in _field(node, "inputs", list):
        _be(taken, dict, "an input")
        name = _field(taken, "name", str)
        if name in names:
            raise DamagedFileError(f"an argument that is given twice, {name[:80]!a}")
        if name:  # What graphs are called with has none.
            names.add(name)
        argument = _check_argument(taken.get("arg"))
        if "as_graph" in argument:
            _field(_field(argument, "as_graph", dict), "graph", dict)
    for argument in _field(node, "outputs", list):
        _check_argument(argument)
    for value in _field(node, "metadata", dict).values():
        _be(value, str, "metadata")


def _check_argument(argument: Any) -> dict[str, Any]:
    fields = _union(argument)
    for key, read in _ARGUMENTS.items():
        if key in fields:
            read(fields[key])
    return fields


def _check_name(value: Any) -> None:
    _field(_be(value, dict, "a value"), "name", str)


def _check_names(values: Any) -> None:
    for value in _be(values, list, "values"):
        _check_name(value)


def _check_optional(value: Any) -> None:
    fields = _union(value)
    if "as_tensor" in fields:
        _check_name(fields["as_tensor"])


def _check_optionals(values: Any) -> None:
    for value in _be(values, list, "values"):
        _check_optional(value)


def _check_nested(values: Any) -> None:
    for value in _be(values, list, "values"):
        _check_names(value)


def _check_mapping(values: Any) -> None:
    for value in _be(values, dict, "values").values():
        _check_argument(value)


_ARGUMENTS: dict[str, Callable[[Any], object]] = {
    "as_tensor": _check_name,
    "as_tensors": _check_names,
    "as_optional_tensor": _check_optional,
    "as_optional_tensors": _check_optionals,
    "as_nested_tensors": _check_nested,
    "as_string_to_argument": _check_mapping,
    "as_custom_obj": _check_name,
}


def _check_meta(meta: dict[str, Any]) -> None:
    if type(meta.get("dtype")) is not int:
        raise DamagedFileError("a dtype", expected="a number", found=str(meta.get("dtype"))[:40])
    for key in ("sizes", "strides"):
        for size in _field(meta, key, list):
            _union(size)
    _field(meta, "requires_grad", bool)


def _check_spec(spec: dict[str, Any]) -> None:
    ((kind, fields),) = spec.items()
    _be(fields, dict, kind)
    if kind in ("user_input", "user_output"):
        _check_argument(fields.get("arg"))
    elif kind != "constant_input":
        _check_name(fields.get("arg"))
    for key in _NAMES.get(kind, ()):
        _field(fields, key, str)


_NAMES = {
    "parameter": ("parameter_name",),
    "buffer": ("buffer_name",),
    "buffer_mutation": ("buffer_name",),
    "parameter_mutation": ("parameter_name",),
    "tensor_constant": ("tensor_constant_name",),
    "custom_obj": ("custom_obj_name",),
}


def _check_call(entry: dict[str, Any]) -> None:
    _field(entry, "fqn", str)
    if (signature := entry.get("signature")) is None:
        return
    _be(signature, dict, "a signature")
    for role in ("inputs", "outputs"):
        for argument in _field(signature, role, list):
            _check_argument(argument)


def _union(value: Any) -> dict[str, Any]:
    """Return what stands for one of several things by its only key."""
    fields: dict[str, Any] = _be(value, dict, "a value")
    if len(fields) != 1:
        raise DamagedFileError("a value", expected="one kind", found=", ".join(fields)[:80])
    return fields


def _field(fields: dict[str, Any], key: str, kind: type) -> Any:
    if key not in fields:
        raise DamagedFileError(f"{key} is missing")
    return _be(fields[key], kind, key)


def _be(value: Any, kind: type, what: str) -> Any:
    if type(value) is not kind:
        raise DamagedFileError(what, expected=kind.__name__, found=type(value).__name__)
    return value
