"""Walks over the object tree of a TorchScript archive, and copies of it."""

from __future__ import annotations

from collections.abc import Iterable

from frozenbn_cli.errors import DamagedFileError
from frozenbn_cli.pickles.values import Call, PersistentId, Value, parts_of
from frozenbn_cli.torchscript.script_archive import ScriptArchive, ScriptModule

__all__ = ["children_first", "lost_storages", "without_gradient"]

_REQUIRES_GRAD = 4  # The place among the arguments of `torch._utils._rebuild_tensor_v2`.


def children_first(script: ScriptArchive) -> dict[int, ScriptModule]:
    """Return every module object once, by identity, none before those within it."""
    modules = {id(module.value): module for module in script.modules}
    ordered: dict[int, ScriptModule] = {}
    waiting = [(id(script.pickle.value), False)]
    while waiting:
        key, children_are_done = waiting.pop()
        if key in ordered:
            continue
        if children_are_done:
            ordered[key] = modules[key]
            continue
        waiting.append((key, True))
        waiting += [
            (id(part), False) for part in modules[key].attributes.values() if id(part) in modules
        ]
    return ordered


def lost_storages(script: ScriptArchive, tree: Call) -> set[str]:
    """Return the records of storages that no tensor of a new tree refers to any more."""
    before = {_storage_key(item) for item in script.pickle.persistent_ids}
    after = {_storage_key(item) for item in _references(tree)}
    names = {f"{script.root}data/{key}" for key in before - after}
    return names & script.archive.records.keys()


def without_gradient(tensor: Call) -> Call:
    """Return a tensor's call that asks for no gradient; the call itself may be shared."""
    arguments = list(tensor.arguments)
    if len(arguments) <= _REQUIRES_GRAD:
        raise DamagedFileError("a tensor with too few arguments")
    arguments[_REQUIRES_GRAD] = False
    return Call(tensor.function, tuple(arguments))


def _references(tree: Value) -> Iterable[PersistentId]:
    waiting, seen = [tree], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, PersistentId):
            yield value
        else:
            waiting += parts_of(value)


def _storage_key(reference: PersistentId) -> str:
    value = reference.value
    return str(value[2]) if isinstance(value, tuple) and len(value) > 2 else ""
