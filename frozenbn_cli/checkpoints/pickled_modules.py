"""Reads whole modules that `torch.save` pickled, without their classes.

A module is pickled as its class (NEWOBJ) and its ``__dict__`` (BUILD), in which ``_parameters``,
``_buffers`` and ``_modules`` hold what a state dict is made of. See ``torch/nn/modules/module.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from frozenbn_cli.checkpoints.checkpoint import LayerFacts, StateDict
from frozenbn_cli.checkpoints.numpy_values import number
from frozenbn_cli.checkpoints.pickled_tensors import TensorFinder, is_tensor
from frozenbn_cli.checkpoints.tensors import StoredTensor
from frozenbn_cli.errors import DamagedFileError, UnsupportedFileError, located
from frozenbn_cli.pickles.values import Call, Global, Value, describe, items_of
from frozenbn_cli.torchscript.frozen_classes import names_frozen_class

__all__ = [
    "attributes_of",
    "is_module",
    "module_class",
    "module_state_dict",
    "modules_in",
    "own_parameters",
]

_RECONSTRUCTOR = Global("copy_reg", "_reconstructor")
_REDUCED_GRAPH = Global("torch.fx.graph_module", "reduce_graph_module")


def is_module(value: Value) -> bool:
    """Return whether ``value`` would become an ``nn.Module``."""
    return isinstance(value, Call) and "_modules" in attributes_of(value)


def attributes_of(value: Call) -> dict[Any, Value]:
    """Return the attributes that an object would get; empty if that is not how it is made."""
    if value.function == _REDUCED_GRAPH:  # `torch.fx` gives them to the function instead.
        state = value.arguments[0] if value.arguments else None
    elif isinstance(value.state, tuple) and len(value.state) == 2:  # With slots.
        state = {**_dict(value.state[0]), **_dict(value.state[1])}
    else:
        state = value.state
    return _dict(state)


def _dict(value: Value) -> dict[Any, Value]:
    return value if isinstance(value, dict) else {}


def module_class(module: Call) -> str:
    """Return the class of a pickled module, with its package."""
    reconstructed = module.arguments[0] if module.arguments else None
    if module.function == _RECONSTRUCTOR and isinstance(reconstructed, Global):
        return str(reconstructed)
    if module.function == _REDUCED_GRAPH:
        return "torch.fx.graph_module.GraphModule"
    return str(module.function)


def module_state_dict(key: str, root: Call, finder: TensorFinder) -> StateDict:
    """Return what ``root.state_dict()`` would be, and what each BatchNorm in it says of itself.

    Raises:
        DamagedFileError: The object tree is not that of a module.
    """
    entries: dict[str, StoredTensor] = {}
    unsupported: dict[str, str] = {}
    layers: dict[str, LayerFacts] = {}
    for name, module in _walk(root, finder):
        prefix = f"{name}." if name else ""
        for entry, value in _own_tensors(module):
            with located(f"entry {prefix + entry!a}"):
                finder.names.take(prefix + entry, value)
                try:
                    entries[prefix + entry] = finder.tensor(value)
                except UnsupportedFileError as error:
                    unsupported[prefix + entry] = error.problem
        if facts := _facts(module, finder):
            layers[name] = facts
    return StateDict(key, entries, layers=layers, is_module=True, unsupported=unsupported)


def modules_in(root: Call, finder: TensorFinder) -> Iterator[tuple[str, Call, str]]:
    """Yield every module under each of its names, with its class, parents before children."""
    for name, module in _walk(root, finder):
        yield name, module, module_class(module)


def own_parameters(module: Call) -> Iterator[tuple[str, Call, bool]]:
    """Yield the parameters of a module itself, and whether each asks for gradients."""
    for name, value in _items(module, "_parameters"):
        if isinstance(value, Call) and is_tensor(value):
            is_trained = value.arguments[1] is True if len(value.arguments) > 1 else True
            yield str(name), value, is_trained


def _walk(root: Call, finder: TensorFinder) -> Iterator[tuple[str, Call]]:
    """Yield every module under each of its names, parents before children."""
    waiting = [("", root, 0)]
    while waiting:
        name, module, depth = waiting.pop()
        finder.names.take(name, module, depth)
        yield name, module
        children = []
        for child_name, child in _items(module, "_modules"):
            if is_module(child):
                full_name = f"{name}.{child_name}" if name else str(child_name)
                children.append((full_name, child, depth + 1))
        waiting += reversed(children)


def _items(module: Call, attribute: str) -> list[tuple[Value, Value]]:
    value = attributes_of(module).get(attribute)
    items = items_of(value)
    if items is None:
        raise DamagedFileError(
            f"{module_class(module)}.{attribute}", expected="a dict", found=describe(value)
        )
    return items


def _own_tensors(module: Call) -> Iterator[tuple[str, Call]]:
    hidden = _non_persistent(module)
    for attribute in ("_parameters", "_buffers"):
        for name, value in _items(module, attribute):
            if isinstance(value, Call) and is_tensor(value) and name not in hidden:
                yield str(name), value


def _non_persistent(module: Call) -> set[Value]:
    """Return the names of the buffers that a state dict leaves out."""
    names = attributes_of(module).get("_non_persistent_buffers_set")
    if isinstance(names, Call):  # Protocol 2 has no sets: ``set([…])``.
        names = names.arguments[0] if names.arguments else ()
    if isinstance(names, (list, set, frozenset, tuple)):
        return {name for name in names if isinstance(name, str)}
    return set()


def _facts(module: Call, finder: TensorFinder) -> LayerFacts | None:
    """Return what a BatchNorm or its frozen kind says of itself; None for other modules."""
    type_name = module_class(module)
    name = type_name.rpartition(".")[2]
    state = attributes_of(module)
    buffers = dict(_items(module, "_buffers"))
    has_statistics = {"running_mean", "running_var"} <= buffers.keys()
    if not (has_statistics or "BatchNorm" in name):
        return None
    return LayerFacts(
        type_name=type_name,
        channels=_whole_number(state.get("num_features")),
        eps=_number(state.get("eps"), finder, at_most=1e30),
        momentum=_number(state.get("momentum"), finder, at_most=1),
        frozen=names_frozen_class(type_name),
    )


def _number_in(value: Call, finder: TensorFinder) -> float | int | None:
    """Return the number that a NumPy scalar or a tensor of one element stands for."""
    if not is_tensor(value):
        return number(value)
    try:
        tensor = finder.tensor(value)
        return tensor.values()[0] if tensor.elements == 1 else None
    except (DamagedFileError, UnsupportedFileError):
        return None


def _whole_number(value: Value) -> int | None:
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def _number(value: Value, finder: TensorFinder, *, at_most: float) -> float | None:
    """Return a number as a layer holds it, also in NumPy or in a tensor; None if it is none."""
    if isinstance(value, Call):
        value = _number_in(value, finder)
    if type(value) not in (int, float) or not 0 <= value <= at_most:
        return None
    return float(value)
