"""Walks over the object tree of a TorchScript archive, and copies of it."""

from __future__ import annotations

from frozenbn_cli.pickles.tensor_calls import referred_storages, storage_key
from frozenbn_cli.pickles.values import Call
from frozenbn_cli.torchscript.script_archive import ScriptArchive, ScriptModule

__all__ = ["children_first", "lost_storages"]


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
    before = {storage_key(item) for item in script.pickle.persistent_ids}
    names = {f"{script.root}data/{key}" for key in before.difference(referred_storages(tree))}
    return names & script.archive.records.keys()
