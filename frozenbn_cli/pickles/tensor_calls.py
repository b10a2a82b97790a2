"""The calls that would make tensors, and the storages that a value refers to."""

from __future__ import annotations

from collections.abc import Iterator

from frozenbn_cli.errors import DamagedFileError
from frozenbn_cli.pickles.values import Call, PersistentId, Value, parts_of

__all__ = ["referred_storages", "storage_key", "without_gradient"]

_REQUIRES_GRAD = 4  # Behind storage, offset, size and strides, in every kind of rebuild call.


def without_gradient(tensor: Call) -> Call:
    """Return a tensor's call that asks for no gradient; the call itself may be shared."""
    arguments = list(tensor.arguments)
    if len(arguments) <= _REQUIRES_GRAD:
        raise DamagedFileError("a tensor with too few arguments")
    arguments[_REQUIRES_GRAD] = False
    return Call(tensor.function, tuple(arguments))


def referred_storages(value: Value) -> Iterator[str]:
    """Yield the key of each storage that a value refers to, once or more often."""
    waiting, seen = [value], set()
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, PersistentId):
            yield storage_key(part)
        else:
            waiting += parts_of(part)


def storage_key(reference: PersistentId) -> str:
    """Return the key of the storage that is referred to; empty if it is something else."""
    value = reference.value
    return str(value[2]) if isinstance(value, tuple) and len(value) > 2 else ""
