"""Finds the state dicts in an unpickled value, at whatever depth of a training checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from frozenbn_cli.checkpoints.checkpoint import LayerFacts, StateDict, names_statistics
from frozenbn_cli.checkpoints.names import Naming
from frozenbn_cli.checkpoints.pickled_modules import (
    attributes_of,
    is_module,
    module_class,
    module_state_dict,
)
from frozenbn_cli.checkpoints.pickled_tensors import TensorFinder, is_tensor
from frozenbn_cli.checkpoints.tensors import StoredTensor
from frozenbn_cli.errors import UnsupportedFileError, located
from frozenbn_cli.pickles.values import Call, Value, describe, items_of

__all__ = ["Found", "find_state_dicts", "values_by_key"]

_MAX_DEPTH = 32
_MAX_VISITS = 200_000
_MAX_KEY_CHARACTERS = 4096
_FROZEN_VERSIONS = (1, 3)
_NEWER = (2, 3)  # Versions that show a PyTorch that counts batches.
_COUNT = "num_batches_tracked"


@dataclass(frozen=True, slots=True)
class Found:
    """The state dicts in a file.

    Attributes:
        kind: What to call the file.
        state_dicts: Those with BatchNorm; if there is none, the largest one.
        others: The rest by key, made when they are asked for.
        beside: What stands beside the chosen ones: name and description.
    """

    kind: str
    state_dicts: tuple[StateDict, ...]
    others: Mapping[str, Callable[[], StateDict]] = field(default_factory=dict)
    beside: Mapping[str, str] = field(default_factory=dict)


def find_state_dicts(root: Value, finder: TensorFinder, *, naming: Naming) -> Found:
    """Return the state dicts in ``root``.

    A state dict is a mapping with tensors of its own, or a pickled module.

    Raises:
        DamagedFileError: A tensor contradicts its storage.
        UnsupportedFileError: There is no state dict.
    """
    candidates = dict(_candidates(root))
    if not candidates:
        _check_called(root)
        raise UnsupportedFileError(
            expected="a state dict, a training checkpoint or a module", found=describe(root)
        )
    makers = {key: partial(_part, key, value, finder, naming) for key, value in candidates.items()}
    likely = [key for key, value in candidates.items() if _may_have_batch_norm(value)]
    parts = [part for key in likely if (part := makers[key]()).has_batch_norm]
    if not parts:
        largest = max(candidates, key=lambda key: _tensor_count(candidates[key]))
        parts = [makers[largest]()]
    keys = {part.key for part in parts}
    return Found(
        _kind(root, parts),
        tuple(parts),
        {key: make for key, make in makers.items() if key not in keys},
        _beside(root, keys),
    )


def values_by_key(root: Value) -> dict[str, Value]:
    """Return every mapping with tensors of its own and every module, under each of its keys."""
    return dict(_candidates(root))


def _check_called(root: Value) -> None:
    """Raise where a method was saved instead of what it returns.

    Raises:
        UnsupportedFileError: It was.
    """
    for value in (root, *(child for _, child in _inner(root))):
        if isinstance(value, Call) and value.function.name == "getattr" and value.arguments[1:]:
            name = describe(value.arguments[1]).strip("'")
            raise UnsupportedFileError(
                f"holds the method {name} itself, which was not called",
                advice=f"Save what it returns: torch.save(model.{name}(), …).",
            )


def _kind(root: Value, parts: list[StateDict]) -> str:
    if is_module(root):
        return f"pickled module ({module_class(root)})"
    if len(parts) > 1:
        return f"training checkpoint ({len(parts)} state dicts)"
    return "training checkpoint" if parts[0].key else "state dict"


def _candidates(root: Value) -> Iterator[tuple[str, Value]]:
    """Yield every mapping with tensors of its own and every module, under each of its keys."""
    # With how deep it lies, and whether within an object, whose attributes are looked at once.
    waiting: list[tuple[str, Value, int, bool]] = [("", root, 0, False)]
    inside: set[int] = set()
    for _ in range(_MAX_VISITS):
        if not waiting:
            return
        key, value, depth, is_within = waiting.pop()
        if is_module(value) or _tensor_count(value):
            yield key, value
        if is_module(value) or id(value) in inside or depth == _MAX_DEPTH:
            continue
        inside.add(id(value))
        is_object = _is_object(value)
        if is_object and is_within:
            continue
        children = [
            (full_key, child, depth + 1, is_within or is_object)
            for full_key, child in _children(key, value)
            if is_module(child) or _inner(child)
        ]
        waiting += reversed(children)


def _children(key: str, value: Value) -> Iterator[tuple[str, Value]]:
    """Yield what a mapping or sequence holds, with the key of each in the whole file."""
    if len(key) > _MAX_KEY_CHARACTERS:
        return
    taken: set[str] = set()
    for name, child in _inner(value):
        text = str(name) if isinstance(name, (str, int, float)) else describe(name)
        if text in taken:  # Two keys that differ in type, such as 1 and "1".
            text = f"{text} ({type(name).__name__})"
        taken.add(text)
        yield (f"{key}.{text}" if key else text), child


def _inner(value: Value) -> list[tuple[Value, Value]]:
    """Return what a container holds, or the fields or attributes of another object."""
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    if not _is_object(value):
        # What derives from a dict is one if items are set on it.
        return items_of(value) or (value.items if isinstance(value, Call) else [])
    # What derives from a tuple gets its fields as arguments of `__new__`.
    fields = list(enumerate(value.arguments)) if value.is_new else []
    return [*fields, *attributes_of(value).items()]


def _is_object(value: Value) -> bool:
    return (
        isinstance(value, Call)
        and items_of(value) is None
        and not value.items
        and not is_tensor(value)
    )


def _tensor_count(value: Value) -> int:
    if is_module(value):
        return 1
    if isinstance(value, (list, tuple)):
        return 0
    return sum(isinstance(name, str) and is_tensor(entry) for name, entry in _inner(value))


def _may_have_batch_norm(value: Value) -> bool:
    return is_module(value) or any(
        isinstance(name, str) and names_statistics(name) for name, _ in _inner(value)
    )


def _part(key: str, value: Value, finder: TensorFinder, naming: Naming) -> StateDict:
    with located(f"key {key!a}") if key else located("state dict"):
        if is_module(value):
            part = module_state_dict(key, value, finder)
        else:
            part = _mapping(key, value, finder)
    return naming.apply(part)


def _mapping(key: str, value: Value, finder: TensorFinder) -> StateDict:
    entries: dict[str, StoredTensor] = {}
    left_out: dict[str, str] = {}
    unsupported: dict[str, str] = {}
    for name, entry in _inner(value):
        if not (isinstance(name, str) and isinstance(entry, Call) and is_tensor(entry)):
            left_out[name if isinstance(name, str) else describe(name)] = describe(entry)
            continue
        with located(f"entry {name[:80]!a}"):
            finder.names.take(name, entry)
            try:
                entries[name] = finder.tensor(entry)
            except UnsupportedFileError as error:
                unsupported[name] = error.problem
    versions = _versions(value)
    return StateDict(
        key,
        entries,
        left_out,
        layers=_frozen_layers(entries, versions),
        unsupported=unsupported,
        versions=versions,
    )


def _versions(value: Value) -> dict[str, int]:
    """Return the versions of the modules, which ``state_dict()`` keeps in its ``_metadata``."""
    state = value.state if isinstance(value, Call) and isinstance(value.state, dict) else {}
    return {
        name: described["version"]
        for name, described in items_of(state.get("_metadata")) or ()
        if isinstance(name, str)
        and isinstance(described, dict)
        and type(described.get("version")) is int
    }


def _frozen_layers(
    entries: Mapping[str, StoredTensor], versions: Mapping[str, int]
) -> dict[str, LayerFacts]:
    """Return what the versions of layers say of them, where no BatchNorm has such a one.

    BatchNorm has version 2 and a count of batches since PyTorch 0.4.1. Version 3 is a frozen layer
    of detectron2. Version 1 without a count is a frozen one of torchvision, timm and others if
    another entry shows that PyTorch was newer; else it may be a live one of PyTorch 0.4.0.
    """
    layers = {name.rpartition(".")[0] for name in entries if names_statistics(name)}
    counted = {name.rpartition(".")[0] for name in entries if name.endswith(_COUNT)}
    uncounted = {name: versions.get(name) for name in sorted(layers - counted)}
    is_newer = bool(counted) or any(versions.get(name) in _NEWER for name in layers)
    return {
        name: LayerFacts(frozen=is_frozen, may_be_frozen=not is_frozen)
        for name, version in uncounted.items()
        if version in _FROZEN_VERSIONS
        for is_frozen in (is_newer or version != 1,)
    }


def _beside(root: Value, keys: set[str]) -> dict[str, str]:
    """Return what stands beside the chosen state dicts, on the way to each of them."""
    beside: dict[str, str] = {}
    on_the_way = {
        key[:place] for key in keys for place, character in enumerate(key) if character == "."
    }
    waiting = [("", root)] if "" not in keys else []
    while waiting:
        key, value = waiting.pop()
        for full_key, child in _children(key, value):
            if full_key in keys:
                continue
            if full_key in on_the_way and not is_module(child):
                waiting.append((full_key, child))
            else:
                beside[full_key] = describe(child)
    return beside
