"""The tensors of an archive that its state dict cannot hold, each by its place in the objects."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from frozenbn_cli.pickles.values import Call, PersistentId, Value
from frozenbn_cli.torchscript.script_archive import ScriptArchive, is_tensor_call
from frozenbn_cli.torchscript.source_code import type_name_of

__all__ = ["is_on_meta", "joined", "other_tensors"]

_PACKED = "torch.classes."


def joined(module: str, name: str) -> str:
    """Return the name of something in a module; the root has none."""
    return f"{module}.{name}" if module else name


def is_on_meta(tensor: Call) -> bool:
    """Return whether a tensor is on the device that holds no values."""
    storage = tensor.arguments[0] if tensor.arguments else None
    place = storage.value if isinstance(storage, PersistentId) else ()
    return isinstance(place, tuple) and place[3:4] == ("meta",)


def other_tensors(script: ScriptArchive, found: Collection[int]) -> Iterator[tuple[str, str]]:
    """Yield every tensor that is no entry: its place, and what it is.

    Args:
        script: The archive.
        found: The identities of the tensors that are entries.
    """
    modules = {id(module.value): module for module in script.all_modules}
    seen = set(found)
    for module in script.all_modules:
        waiting: list[tuple[str, Value, str]] = [
            (joined(module.name, name), value, "a tensor that is no buffer")
            for name, value in module.attributes.items()
        ]
        if module.restorer:
            # What of its state is no attribute that is known.
            waiting.append((module.name, module.value.state, "made by code (__setstate__)"))
        while waiting:
            name, value, what = waiting.pop()
            if id(value) in seen or (value is not module.value and id(value) in modules):
                continue
            if is_tensor_call(value):
                seen.add(id(value))
                yield name, "on the meta device, without values" if is_on_meta(value) else what
            else:
                if isinstance(value, (Call, dict, list, tuple)):
                    seen.add(id(value))
                waiting += [
                    (joined(name, key) if key else name, part, _said(value) or what)
                    for key, part in _parts(value)
                ]


def _parts(value: Value) -> list[tuple[str, Value]]:
    """Return what a value holds, each with a name."""
    if isinstance(value, Call):
        inner = [*value.arguments, value.state, *value.appended, *(v for _, v in value.items)]
        return [("", part) for part in inner]
    if isinstance(value, dict):
        return [(str(key), part) for key, part in value.items()]
    if isinstance(value, (list, tuple)):
        return [(str(index), part) for index, part in enumerate(value)]
    return []


def _said(value: Value) -> str:
    """Return what the tensors in an object are for; empty if its class does not tell."""
    if isinstance(value, Call) and value.is_new:
        name = type_name_of(f"{value.function.module}.{value.function.name}")
        return f"packed by {name}" if name.startswith(_PACKED) else f"held by {name}"
    return ""
