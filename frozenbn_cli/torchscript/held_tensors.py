"""Which objects of an archive hold which tensors: a tensor is known by its storage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from frozenbn_cli.pickles.values import Call, Value
from frozenbn_cli.torchscript.script_archive import (
    ScriptArchive,
    ScriptModule,
    is_tensor_call,
    storage_keys,
)

__all__ = ["AFFINE_AND_STATISTICS", "COUNT", "FALSE", "NOTHING", "HeldTensors", "Token", "Tokens"]

AFFINE_AND_STATISTICS = ("running_mean", "running_var", "weight", "bias")
COUNT = "num_batches_tracked"

Token: TypeAlias = tuple[str, object]
"""``storage`` and its key, ``module`` or ``flag`` and an identity, ``false`` or ``unknown``."""

Tokens: TypeAlias = frozenset[Token]
"""What a value may be, or hold."""

_UNKNOWN: Token = ("unknown", None)
NOTHING: Tokens = frozenset({_UNKNOWN})
FALSE: Tokens = frozenset({("false", None)})


class HeldTensors:
    """The objects of an archive, asked for what they hold.

    Attributes:
        modules: By identity.
        layers: Those with running statistics.
        tracked: The storages of the layers' tensors, and of all that are no parameters.
        holding: The modules that hold a tracked storage, however far in.
    """

    def __init__(self, script: ScriptArchive) -> None:
        self._script = script
        self.modules: dict[int, ScriptModule] = {id(item.value): item for item in script.modules}
        self.layers = {key for key, module in self.modules.items() if module.has_statistics}
        self._attributes: dict[tuple[int, str], Tokens] = {}
        self.tracked = self._find_tracked()
        self.holding = self._find_holding()

    def _find_tracked(self) -> set[str]:
        tracked: set[str] = set()
        for key, module in self.modules.items():
            parameters = () if key in self.layers else module.source.listed("__parameters__")
            for role, value in module.attributes.items():
                if role not in parameters and is_tensor_call(value):
                    tracked |= set(storage_keys(value))
        return tracked

    def _find_holding(self) -> set[int]:
        holders: dict[int, list[int]] = {}
        waiting = []
        for key, module in self.modules.items():
            tokens = self._within(module.value.state)
            if any(kind == "storage" for kind, _ in tokens):
                waiting.append(key)
            for kind, part in tokens:
                if kind == "module" and isinstance(part, int):
                    holders.setdefault(part, []).append(key)
        holding: set[int] = set()
        while waiting:
            key = waiting.pop()
            if key not in holding:
                holding.add(key)
                waiting += holders.get(key, ())
        return holding

    def _within(self, value: Value) -> Tokens:
        """Return what a value is or holds; modules in it are not opened."""
        if id(value) in self.modules:
            return frozenset({("module", id(value))})
        tokens: set[Token] = {_UNKNOWN}
        waiting: list[Value] = [value]
        seen: set[int] = set()
        while waiting:
            part = waiting.pop()
            if id(part) in self.modules:
                tokens.add(("module", id(part)))
            elif is_tensor_call(part):
                tokens |= {("storage", key) for key in storage_keys(part) if key in self.tracked}
            elif isinstance(part, (Call, list, tuple, dict)) and id(part) not in seen:
                seen.add(id(part))
                waiting += _parts(part)
        return frozenset(tokens)

    def attribute(self, key: int, name: str) -> Tokens:
        """Return what an attribute of a module is or holds."""
        if name == "training" and key in self.layers:
            return frozenset({("flag", key)})
        place = key, name
        if place not in self._attributes:
            self._attributes[place] = self._within(self.modules[key].attributes.get(name))
        return self._attributes[place]

    def storages(self, tokens: Tokens) -> set[str]:
        """Return the storages that can be reached by a value."""
        found: set[str] = set()
        waiting, seen = list(tokens), set()
        while waiting:
            token = waiting.pop()
            kind, what = token
            if kind == "storage":
                found.add(str(what))
            elif kind == "module" and token not in seen and isinstance(what, int):
                seen.add(token)
                waiting += self._within(self.modules[what].value.state)
        return found

    def restored(self) -> Iterator[tuple[str, str]]:
        """Yield modules that code restores, by name, with each tracked storage that they hold."""
        for module in self._script.all_modules:
            if module.restorer is not None:
                for kind, key in self._within(module.value.state):
                    if kind == "storage":
                        yield module.name, str(key)

    def own(self, key: int) -> set[str]:
        """Return the storages of a layer, but for that of its count."""
        attributes = self.modules[key].attributes
        return {
            found for role in AFFINE_AND_STATISTICS for found in storage_keys(attributes.get(role))
        }

    def counts(self, key: int) -> set[str]:
        """Return the storage of a layer's count."""
        return set(storage_keys(self.modules[key].attributes.get(COUNT)))


def _parts(value: Value) -> list[Value]:
    if isinstance(value, Call):
        pairs = [part for item in value.items for part in item]
        return [*value.arguments, value.state, *value.appended, *pairs]
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return list(value)
