"""Searches an archive of programs for what loading or running it would execute, before either is.

`torch.export.load` evaluates sizes, writes names into code that it compiles, imports what trees of
arguments name, and unpickles what it does not find as plain bytes. What is listed here as safe is
what PyTorch itself writes of a model; anything else may be anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from frozenbn_cli.containers.source import FileExtent, SourceWindow, stream
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.errors import DamagedFileError, InputError
from frozenbn_cli.exported.expressions import IDENTIFIER, KEY, is_plain_guard, is_plain_size
from frozenbn_cli.exported.program_archive import Part, ProgramArchive
from frozenbn_cli.pickles.reader import read_pickle
from frozenbn_cli.pickles.values import Global
from frozenbn_cli.torchscript.operators import reaches_files

__all__ = ["unsafe_in"]

_SHOWN = 60
_RECORDS = re.compile(
    r"models/[^/]+\.json|data/(weights|constants|sample_inputs)/[^/]+|extra/.*|archive_format"
    r"|archive_version|byteorder|version|\.data/(version|serialization_id)"
)
_RECORDS_WITHOUT_FOLDER = re.compile(
    r"serialized_exported_program\.json|serialized_(state_dict|constants|example_inputs)\.pt"
    r"|version|extra_files/.*"
)
_RECORDS_OF_PICKLES = re.compile(
    r"[^/]+/(data\.pkl|byteorder|version|\.format_version|\.storage_alignment|data/\d+"
    r"|\.data/(version|serialization_id))"
)
_PAYLOADS: Mapping[Part, str] = {"weights": "weight_", "constants": "tensor_"}

_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)\.(\w+)")
_OPERATOR_OF_GRAPHS = re.compile(r"torch\.ops\.higher_order\.(\w+)")
_OTHER_FUNCTION = re.compile(r"torch\.sym_\w+|torch\._sym_sqrt|math\.[a-z]\w*|_operator\.(\w+)")
_NAMESPACES = {"aten", "prims", "quantized", "quantized_decomposed", "torchvision", "torchao"}
_OF_GRAPHS = {
    "associative_scan", "auto_functionalized", "auto_functionalized_v2", "cond", "hints_wrapper",
    "invoke_subgraph", "map", "map_impl", "out_dtype", "scan", "strict_mode", "switch",
    "tag_activation_checkpoint", "while_loop", "with_effects", "wrap_activation_checkpoint",
    "wrap_with_autocast", "wrap_with_set_grad_enabled",
}  # fmt: skip
_MESSAGE = re.compile(  # Of torch._check; the quotes hold a name, and end no text around them.
    r"Runtime assertion failed for expression [\w .,()<>=!+*/%|&~-]* on node '\w+'"
)
_DUNDERS = re.compile(r"__i?(and|or|xor|lshift|rshift)__")
_OF_OPERATOR = {
    "abs", "add", "and_", "eq", "floordiv", "ge", "getitem", "gt", "inv", "invert", "le", "lshift",
    "lt", "matmul", "mod", "mul", "ne", "neg", "not_", "or_", "pos", "pow", "rshift", "sub",
    "truediv", "xor",
}  # fmt: skip

_TREES = {
    None, "builtins.dict", "builtins.list", "builtins.tuple", "collections.OrderedDict",
    "collections.deque", "torch.Size", "torch.fx.immutable_collections.immutable_dict",
    "torch.fx.immutable_collections.immutable_list",
}  # fmt: skip

_UNPICKLED = {
    "torch._utils": {"_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_parameter"},
    "torch.nn.parameter": {"Parameter"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size", "device"},
    "collections": {"OrderedDict"},
}
_TYPES = re.compile(r"[A-Z]\w*Storage|(b?float|int|uint|complex|bool)\w*")


def unsafe_in(programs: ProgramArchive) -> list[str]:
    """Return what in an archive could do more than compute, in words; nothing if it is safe.

    Raises:
        InputError: Something in it is damaged.
    """
    found = dict.fromkeys(_other_records(programs))
    for model in programs.models:
        found |= dict.fromkeys(_unsafe(programs.program(model)))
        for part in _PAYLOADS:
            if programs.layout == "C":
                found |= dict.fromkeys(_unsafe_payloads(programs, model, part))
    for name in programs.archive.records:
        if name.endswith(".pt") and not name.startswith(("extra_files/", f"{programs.root}extra/")):
            found |= dict.fromkeys(f"{item} in {name}" for item in _unsafe_pickle(programs, name))
    return list(found)


# Records


def _other_records(programs: ProgramArchive) -> Iterator[str]:
    known = _RECORDS if programs.root else _RECORDS_WITHOUT_FOLDER
    for name in programs.archive.records:
        if not known.fullmatch(name.removeprefix(programs.root)):
            yield f"record {name[:_SHOWN]}"


def _unsafe_payloads(programs: ProgramArchive, model: str, part: Part) -> Iterator[str]:
    yield from _unsafe(programs.config(model, part))
    for name, payload in programs.payloads(model, part).items():
        file = payload.record.rpartition("/")[2]
        if not KEY.fullmatch(name):
            yield f"name {name[:_SHOWN]!a}"
        if payload.is_pickled or payload.meta is None or not file.startswith(_PAYLOADS[part]):
            yield f"{name[:_SHOWN]}, which is unpickled"
        elif not programs.extent(payload.record).size_bytes and not _is_empty(payload.meta):
            yield f"{name[:_SHOWN]}, which has a size and no bytes"


def _is_empty(meta: Mapping[str, Any]) -> bool:
    return any(size.get("as_int") == 0 for size in meta["sizes"])


def _unsafe_pickle(programs: ProgramArchive, name: str) -> Iterator[str]:
    """Yield what unpickling a file of `torch.save` in the archive would execute."""
    extent = programs.extent(name)
    if not extent.size_bytes:
        return
    try:
        if not isinstance(extent, FileExtent):
            raise DamagedFileError("compressed")
        nested = ZipArchive(SourceWindow(extent.source, extent.start, extent.size_bytes))
        names = list(nested.records)
        for record in names:
            if not _RECORDS_OF_PICKLES.fullmatch(record):
                yield f"record {record[:_SHOWN]}"
        (record,) = [record for record in names if record.endswith("/data.pkl")]
        pickle = read_pickle(stream(nested.extent(record)))
    except (InputError, ValueError):
        yield "what is no pickle of tensors"
        return
    for named in pickle.names:
        if not _is_unpickled_safely(named):
            yield str(named)[:_SHOWN]


def _is_unpickled_safely(name: Global) -> bool:
    if name.module in ("torch", "torch.storage") and _TYPES.fullmatch(name.name):
        return True
    return name.name in _UNPICKLED.get(name.module, ())


# Programs


def _unsafe(document: dict[str, Any]) -> Iterator[str]:
    """Yield what is unsafe anywhere in a program, whatever place the schema gives to it."""
    waiting: list[Any] = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            for key, part in value.items():
                if key == "metadata":  # Words, none of which is executed.
                    continue
                check = _CHECKS.get(key)
                if check and part is not None and not check(part):
                    yield f"{key} {json.dumps(part)[:_SHOWN]}"
                waiting.append(part)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and (not value or IDENTIFIER.fullmatch(value) is not None)


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and KEY.fullmatch(value) is not None


def _are_names(value: Any) -> bool:
    return isinstance(value, (list, dict)) and all(map(_is_name, value))


def _are_paths(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_path, value))


def _is_text(value: Any) -> bool:
    if not isinstance(value, str) or not value.isprintable():
        return False
    return not set(value) & set("'\"\\{}") or _MESSAGE.fullmatch(value) is not None


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_size(value: Any) -> bool:
    return isinstance(value, str) and is_plain_size(value)


def _are_guards(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(guard, str) and is_plain_guard(guard) for guard in value
    )


def _is_nothing(value: Any) -> bool:
    return not value


def _is_safe_target(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    if found := _OPERATOR.fullmatch(value):
        namespace, name, overload = found.groups()
        is_attribute = name.startswith("__") and not _DUNDERS.fullmatch(name)
        if is_attribute or overload.startswith("__"):
            return False
        return namespace in _NAMESPACES and not reaches_files(name)
    if found := _OPERATOR_OF_GRAPHS.fullmatch(value):
        return found[1] in _OF_GRAPHS
    found = _OTHER_FUNCTION.fullmatch(value)
    return found is not None and (found[1] is None or found[1] in _OF_OPERATOR)


def _is_plain_tree(value: Any) -> bool:
    """Return whether a tree of arguments or outputs is one of Python's own collections."""
    if value == "":
        return True
    if not isinstance(value, str) or (trees := _trees(value)) is None:
        return False
    return all(_is_plain_node(tree) for tree in trees)


def _is_plain_call(value: Any) -> bool:
    """Return whether the same holds of arguments; those by name become names in code."""
    if not _is_plain_tree(value):
        return False
    trees = _trees(value) or [{}]
    by_name = trees[0].get("children_spec", [])[1:2]
    return all(
        isinstance(key, str) and IDENTIFIER.fullmatch(key) is not None
        for tree in by_name
        for key in _keys(tree) or ()
    )


def _trees(text: str) -> list[Any] | None:
    """Return a tree and all within it; None where it is none of the only form that is known."""
    try:
        protocol, root = json.loads(text)
    except (ValueError, RecursionError, TypeError):
        return None
    trees = [root]
    for tree in trees:  # It grows meanwhile.
        if not isinstance(tree, dict) or not isinstance(tree.get("children_spec"), list):
            return None
        trees += tree["children_spec"]
    return trees if protocol == 1 else None


def _is_plain_node(tree: dict[str, Any]) -> bool:
    kind, keys = tree.get("type"), _keys(tree)
    if keys is None or not (kind is None or isinstance(kind, str)):
        return False
    return kind in _TREES and all(
        key is None or type(key) is int or (isinstance(key, str) and KEY.fullmatch(key))
        for key in keys
    )


def _keys(tree: dict[str, Any]) -> list[Any] | None:
    """Return what a collection has beside its values, which is JSON in JSON; None if it is none."""
    context = tree.get("context")
    if context is None:
        return []
    try:
        keys = json.loads(context)
    except (ValueError, RecursionError, TypeError):
        return None
    return keys if isinstance(keys, list) else [keys]


_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "name": _is_name,
    "as_name": _is_name,
    "forward_arg_names": _are_names,
    "tensor_values": _are_names,
    "sym_int_values": _are_names,
    "sym_bool_values": _are_names,
    "sym_float_values": _are_names,
    "as_string_to_argument": _are_names,
    "parameter_name": _is_path,
    "buffer_name": _is_path,
    "tensor_constant_name": _is_path,
    "user_input_name": _is_path,
    "fqn": _is_path,
    "as_string": _is_text,
    "as_strings": _are_texts,
    "expr_str": _is_size,
    "range_constraints": lambda value: isinstance(value, dict) and all(map(_is_size, value)),
    "guards_code": _are_guards,
    "target": _is_safe_target,
    "as_operator": _is_safe_target,
    "in_spec": _is_plain_call,
    "out_spec": _is_plain_tree,
    "treespec_namedtuple_fields": _is_nothing,
    "custom_obj": _is_nothing,
    "custom_obj_values": _is_nothing,
    "as_custom_obj": _is_nothing,
    "class_fqn": _is_nothing,
}
"""What has to hold of the values of these keys, wherever in a program they stand."""
