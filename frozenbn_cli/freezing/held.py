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

__all__ = ["replace_held"]

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
    if isinstance(value, dict) and len(value) <= _LONGEST:
        for key, each in list(value.items()):
            yield _Place(f"{name}[{key!r}]", each, functools.partial(value.__setitem__, key))
    elif isinstance(value, (list, deque)) and len(value) <= _LONGEST:
        for index, each in enumerate(list(value)):
            yield _Place(f"{name}[{index}]", each, functools.partial(value.__setitem__, index))
    elif isinstance(value, tuple) and len(value) <= _LONGEST:
        yield from (_Place(f"{name}[{i}]", each, None) for i, each in enumerate(value))
    elif isinstance(value, types.FunctionType):
        for variable, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            if cell_holds := _contents(cell):
                put = functools.partial(setattr, cell, "cell_contents")
                yield _Place(f"{name}'s {variable}", cell_holds[0], put)
    elif isinstance(value, types.MethodType) and not isinstance(value.__self__, _LEAVES):
        yield _Place(f"{name}'s object", value.__self__, None)
    elif hasattr(value, "__dict__"):
        yield from _inside(name, value, vars(value))


def _inside(name: str, owner: Any, attributes: Mapping[str, Any]) -> Iterator[_Place]:
    for attribute, each in list(attributes.items()):
        put = functools.partial(object.__setattr__, owner, attribute)
        yield _Place(f"{name}.{attribute}", each, put)


def _contents(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # It is not filled yet.
        return ()
