"""Layers that are held outside the module tree: in lists, dicts, bound methods and closures.

What a module reaches by its plain attributes is searched, so that no layer stays in use there
after another has taken its place in the tree.
"""

from __future__ import annotations

import functools
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["live_outside", "replace_held"]

_DEEPEST = 4
_LONGEST = 10_000
# A module's own bookkeeping, which is not what its author wrote; the tree is walked without it.
_OWN = {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"}
_PROXIES = (weakref.ProxyType, weakref.CallableProxyType)
_LEAVES = (nn.Module, torch.Tensor, type, types.ModuleType, str, bytes, int, float, complex)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a value is held.

    Attributes:
        name: In words of Python, from the module on.
        value: What is held.
        put: Puts another value there; None where that is impossible.
    """

    name: str
    value: Any
    put: Callable[[Any], None] | None


def replace_held(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> tuple[str, ...]:
    """Replace layers also where they are held outside the tree, and name where that is impossible.

    Args:
        model: The model, in whose tree the layers are replaced already.
        replacements: The new layer of each old one.

    Returns:
        The places that go on using an old layer.
    """
    if not replacements:
        return ()
    stays = []
    for place in _places(model):
        new = _replacement(place.value, replacements)
        if new is not None and place.put is not None:
            place.put(new)
        elif new is not None or _holds_inside(place.value, replacements):
            stays.append(place.name)
    return tuple(stays)


def live_outside(model: nn.Module) -> dict[str, nn.Module]:
    """Return the BatchNorm layers in training mode that modules hold outside the tree, by place.

    No ``eval()`` reaches them, nor does freezing. What was put in eval by hand is a teacher, say.
    """
    known = set(model.modules())
    found: dict[str, nn.Module] = {}
    for place in _places(model):
        if isinstance(place.value, nn.Module) and place.value not in known:
            inner = dict(place.value.named_modules())
            if model in inner.values():
                continue  # What the model is a part of is not held by it.
            for name, module in inner.items():
                if module not in known and isinstance(module, nn.modules.batchnorm._BatchNorm):
                    known.add(module)
                    if module.training:
                        found[f"{place.name}.{name}" if name else place.name] = module
    return found


def _replacement(value: Any, replacements: Mapping[nn.Module, nn.Module]) -> Any:
    """Return what takes the place of ``value``: a layer, a method of one, a weak reference."""
    if isinstance(value, nn.Module):
        return replacements.get(value)
    if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
        new = replacements.get(value.__self__)
        return None if new is None else getattr(new, value.__func__.__name__, None)
    if type(value) is weakref.ref and isinstance(held := value(), nn.Module):
        new = replacements.get(held)
        return None if new is None else weakref.ref(new)
    return None


def _holds_inside(value: Any, replacements: Mapping[nn.Module, nn.Module]) -> bool:
    """Return whether a value that cannot be changed, or a method the new layer lacks, holds one."""
    if isinstance(value, types.MethodType):
        return isinstance(value.__self__, nn.Module) and value.__self__ in replacements
    if isinstance(value, functools.partial):
        held = (value.func, *value.args, *value.keywords.values())
        return any(_replacement(each, replacements) is not None for each in held)
    if isinstance(value, (set, frozenset)):
        return any(_replacement(each, replacements) is not None for each in value)
    return False


def _places(model: nn.Module) -> Iterator[_Place]:
    """Yield every place that the modules reach by their plain attributes, each object once."""
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        waiting: deque[tuple[_Place, int]] = deque(
            (place, 1)
            for place in _inside(module_name or "the model", module, vars(module))
            if place.name.rpartition(".")[2] not in _OWN
        )
        while waiting:
            place, depth = waiting.popleft()
            if type(place.value) in _PROXIES:
                continue
            yield place
            if depth < _DEEPEST and id(place.value) not in seen:
                seen.add(id(place.value))
                waiting.extend((inner, depth + 1) for inner in _held_by(place))


def _held_by(place: _Place) -> Iterator[_Place]:
    value, name = place.value, place.name
    if isinstance(value, _LEAVES) or value is None:
        return
    if isinstance(value, (dict, list, deque, tuple)):
        if len(value) <= _LONGEST:
            yield from _in_container(name, value)
    elif isinstance(value, types.FunctionType):
        yield from _in_function(name, value)
    elif isinstance(value, types.MethodType):
        if not isinstance(value.__self__, _LEAVES):
            yield _Place(f"{name}'s object", value.__self__, None)
    else:
        yield from _inside(name, value, {**_slots(value), **getattr(value, "__dict__", {})})


def _in_container(name: str, value: Any) -> Iterator[_Place]:
    if isinstance(value, tuple):
        yield from (_Place(f"{name}[{i}]", each, None) for i, each in enumerate(value))
        return
    if isinstance(value, dict):
        yield from (_Place(f"a key of {name}", each, None) for each in list(value))
    for key, each in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield _Place(f"{name}[{key!r}]", each, functools.partial(value.__setitem__, key))


def _in_function(name: str, function: types.FunctionType) -> Iterator[_Place]:
    for index, each in enumerate(function.__defaults__ or ()):
        put = functools.partial(_put_default, function, index)
        yield _Place(f"a default of {name}", each, put)
    by_name = function.__kwdefaults__ or {}
    for key, each in list(by_name.items()):
        yield _Place(f"a default of {name}", each, functools.partial(by_name.__setitem__, key))
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for variable, cell in cells:
        if cell_holds := _contents(cell):
            put = functools.partial(setattr, cell, "cell_contents")
            yield _Place(f"{name}'s {variable}", cell_holds[0], put)


def _inside(name: str, owner: Any, attributes: Mapping[str, Any]) -> Iterator[_Place]:
    for attribute, each in list(attributes.items()):
        put = functools.partial(object.__setattr__, owner, attribute)
        yield _Place(f"{name}.{attribute}", each, put)


def _slots(value: Any) -> dict[str, Any]:
    """Return the attributes that an object of a class in Python keeps in slots."""
    names = [
        name
        for kind in type(value).__mro__
        if "__slots__" in vars(kind)
        for name, member in vars(kind).items()
        if isinstance(member, types.MemberDescriptorType)
    ]
    return {name: getattr(value, name) for name in names if hasattr(value, name)}


def _put_default(function: types.FunctionType, index: int, value: Any) -> None:
    defaults = list(function.__defaults__ or ())
    defaults[index] = value
    function.__defaults__ = tuple(defaults)


def _contents(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # It is not filled yet.
        return ()
