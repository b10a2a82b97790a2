"""Finds the state dicts in an unpickled value, at whatever depth of a training checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from frozenbn_cli.checkpoints.checkpoint import LayerFacts, StateDict
from frozenbn_cli.checkpoints.pickled_modules import is_module, module_class, module_state_dict
from frozenbn_cli.checkpoints.pickled_tensors import TensorFinder, is_tensor
from frozenbn_cli.checkpoints.tensors import StoredTensor
from frozenbn_cli.errors import UnsupportedFileError, located
from frozenbn_cli.pickles.values import Call, Value, describe, items_of

__all__ = ["WRAPPER_PREFIXES", "kind_of", "state_dicts_in", "without_wrapper_prefix"]

WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and `torch.compile` put in front of every name."""

_MAX_DEPTH = 32
_MAX_VISITS = 500_000


def state_dicts_in(
    root: Value, finder: TensorFinder, *, keep_prefix: bool = False
) -> tuple[tuple[StateDict, ...], dict[str, str]]:
    """Return the state dicts in ``root``, and what stands beside them.

    A state dict is a mapping with tensors of its own, or a pickled module. If any has BatchNorm,
    those without (an optimizer's state, say) count as beside.

    Raises:
        DamagedFileError: A tensor contradicts its storage.
        UnsupportedFileError: There is no state dict, or a tensor of an unsupported layout.
    """
    parts = [
        _part(key, value, finder)
        if keep_prefix
        else without_wrapper_prefix(_part(key, value, finder))
        for key, value in _candidates(root)
    ]
    if not parts:
        raise UnsupportedFileError(
            expected="a state dict, a training checkpoint or a module", found=describe(root)
        )
    chosen = [part for part in parts if part.has_batch_norm] or parts[:1]
    return tuple(chosen), _beside(root, chosen)


def kind_of(root: Value, parts: tuple[StateDict, ...]) -> str:
    """Return what to call a file whose pickle holds ``root``."""
    if is_module(root):
        return f"pickled module ({module_class(root)})"
    if len(parts) > 1:
        return f"training checkpoint ({len(parts)} state dicts)"
    return "training checkpoint" if parts[0].key else "state dict"


def without_wrapper_prefix(part: StateDict) -> StateDict:
    """Return a state dict without what wrappers put in front of every name."""
    prefix = ""
    while found := next(
        (
            wrapper
            for wrapper in WRAPPER_PREFIXES
            if part.entries and all(name.startswith(prefix + wrapper) for name in part.entries)
        ),
        None,
    ):
        prefix += found
    if not prefix:
        return part
    return replace(
        part,
        prefix=prefix,
        entries={name.removeprefix(prefix): entry for name, entry in part.entries.items()},
        left_out={name.removeprefix(prefix): text for name, text in part.left_out.items()},
        layers={name.removeprefix(prefix): facts for name, facts in part.layers.items()},
    )


def _candidates(root: Value) -> Iterator[tuple[str, Value]]:
    """Yield the key and value of every mapping with tensors of its own, and of every module."""
    waiting: list[tuple[str, Value, int]] = [("", root, 0)]
    seen: set[int] = set()
    while waiting:
        key, value, depth = waiting.pop()
        if id(value) in seen or depth > _MAX_DEPTH or len(seen) > _MAX_VISITS:
            continue
        seen.add(id(value))
        if is_module(value):
            yield key, value
            continue
        items = items_of(value)
        if items is None:
            continue
        if any(isinstance(name, str) and is_tensor(entry) for name, entry in items):
            yield key, value
        children = [
            (f"{key}.{name}" if key else name, entry, depth + 1)
            for name, entry in items
            if isinstance(name, str) and (is_module(entry) or items_of(entry) is not None)
        ]
        waiting += reversed(children)


def _part(key: str, value: Value, finder: TensorFinder) -> StateDict:
    with located(f"key {key!a}") if key else located("state dict"):
        if is_module(value):
            return module_state_dict(key, value, finder)
        entries: dict[str, StoredTensor] = {}
        left_out: dict[str, str] = {}
        for name, entry in items_of(value) or ():
            if isinstance(name, str) and isinstance(entry, Call) and is_tensor(entry):
                with located(f"entry {name[:80]!a}"):
                    entries[name] = finder.tensor(entry)
            elif not isinstance(name, str) or items_of(entry) is None or not key:
                left_out[name if isinstance(name, str) else describe(name)] = describe(entry)
        return StateDict(key, entries, left_out, layers=_versions(value, entries))


def _versions(value: Value, entries: Mapping[str, StoredTensor]) -> dict[str, LayerFacts]:
    """Return the layers that the state dict's versions show to be frozen already.

    `torch.save` keeps ``state_dict()._metadata``, in which BatchNorm has version 2. A layer with
    the same entries and another version is a frozen one: 1 for torchvision, timm and this
    package, 3 for detectron2.
    """
    metadata = (
        value.state.get("_metadata")
        if isinstance(value, Call) and isinstance(value.state, dict)
        else None
    )
    versions = dict(items_of(metadata) or ())
    frozen: dict[str, LayerFacts] = {}
    for name in entries:
        layer, _, role = name.rpartition(".")
        described = versions.get(layer)
        if role != "running_var" or not isinstance(described, dict):
            continue
        counted = (f"{layer}.num_batches_tracked" if layer else "num_batches_tracked") in entries
        if described.get("version") in (1, 3) and not counted:
            frozen[layer] = LayerFacts(frozen=True)
    return frozen


def _beside(root: Value, chosen: list[StateDict]) -> dict[str, str]:
    """Return what the outermost mapping holds beside the chosen state dicts."""
    keys = {part.key for part in chosen}
    if is_module(root) or "" in keys:
        return {}
    inside = {key.split(".")[0] for key in keys} | keys
    return {
        name if isinstance(name, str) else describe(name): describe(value)
        for name, value in items_of(root) or ()
        if name not in inside
    }
