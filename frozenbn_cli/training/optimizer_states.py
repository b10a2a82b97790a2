"""Finds the states of optimizers among inert values, and reads which moments belong together.

What ``Optimizer.state_dict()`` returns (``torch/optim/optimizer.py``): under ``param_groups`` a
list of groups, whose ``params`` are numbers in the order in which the optimizer was given its
parameters; under ``state`` the moments of each parameter, by that number. Some write names for the
numbers, and PyTorch writes ``param_names`` beside them where the optimizer was given names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from frozenbn_cli.checkpoints.pickled_modules import attributes_of, is_module
from frozenbn_cli.checkpoints.pickled_tensors import TensorFinder, is_tensor
from frozenbn_cli.errors import FrozenBNError, UnsupportedFileError, located
from frozenbn_cli.pickles.values import Call, Value, describe, items_of

__all__ = ["OptimizerState", "Slot", "find_optimizers"]

_MAX_VISITS = 500_000
_MAX_KEY_CHARACTERS = 4096
# What a state holds that is not of the parameter's shape, and whose it is.
_FOREIGN = {
    "absmax1": "8-bit moments (bitsandbytes)",
    "qmap1": "8-bit moments (bitsandbytes)",
    "state1": "8-bit moments (bitsandbytes)",
    "prev_flat_grad": "LBFGS, which keeps one state for all parameters together",
    "old_dirs": "LBFGS, which keeps one state for all parameters together",
    "exp_avg_sq_row": "factored moments (Adafactor)",
}


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of one parameter in an optimizer.

    Attributes:
        label: What ``params`` calls it: a number, or a name.
        shape: Of its moments; None where it has none that tell.
        name: Of the parameter, where the file holds it.
        unclear: What its state is that tells no shape; empty if there is none, or it tells.
    """

    label: int | str
    shape: tuple[int, ...] | None
    name: str | None = None
    unclear: str = ""


@dataclass(frozen=True, slots=True)
class OptimizerState:
    """The state of one optimizer.

    Attributes:
        key: Where in the file it stands.
        value: The mapping itself.
        groups: The parameters of each group.
    """

    key: str
    value: Value
    groups: tuple[tuple[Slot, ...], ...]

    @property
    def count(self) -> int:
        """How many parameters it has."""
        return sum(map(len, self.groups))

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All parameters, one group after the other."""
        return tuple(slot for group in self.groups for slot in group)

    @property
    def has_moments(self) -> bool:
        """Whether it keeps anything of any parameter whose shape tells which it is."""
        return any(slot.shape is not None or slot.unclear for slot in self.slots)

    @property
    def has_names(self) -> bool:
        """Whether the file holds the name of every parameter."""
        return bool(self.slots) and all(slot.name is not None for slot in self.slots)


def find_optimizers(root: Value, finder: TensorFinder) -> list[OptimizerState]:
    """Return the states of optimizers in ``root``, in the file's order.

    Raises:
        UnsupportedFileError: One is of a form that no optimizer of PyTorch writes.
    """
    found: dict[int, OptimizerState] = {}
    for key, value in _mappings(root):
        if isinstance(value, Call) and _is_optimizer_object(value):
            raise UnsupportedFileError(
                f"key {key!a} holds an optimizer itself, not its state",
                found=describe(value),
                advice="Save its state_dict() instead.",
            )
        items = dict(items_of(value) or ())
        if "param_groups" in items and "state" in items and id(value) not in found:
            with located(f"optimizer {key!a}"):
                found[id(value)] = OptimizerState(key, value, tuple(_groups(items, finder)))
    return list(found.values())


def _mappings(root: Value) -> Iterator[tuple[str, Value]]:
    """Yield every mapping and object in ``root`` with a key; modules are not looked into."""
    waiting: list[tuple[str, Value]] = [("", root)]
    seen: set[int] = set()
    for _ in range(_MAX_VISITS):
        if not waiting:
            return
        key, value = waiting.pop()
        if id(value) in seen or len(key) > _MAX_KEY_CHARACTERS:
            continue
        seen.add(id(value))
        if isinstance(value, Call) and (is_tensor(value) or is_module(value)):
            continue
        if not isinstance(value, (list, tuple)):
            yield key, value
        inner = [
            (f"{key}.{name}" if key else str(name), child)
            for name, child in _inner(value)
            if isinstance(name, (str, int)) and isinstance(child, (Call, dict, list, tuple))
        ]
        waiting += reversed(inner)
    raise UnsupportedFileError("more values within each other than any training checkpoint has")


def _inner(value: Value) -> list[tuple[Value, Value]]:
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    items = items_of(value)
    if items is None and isinstance(value, Call):
        return [*enumerate(value.arguments), *value.items, *attributes_of(value).items()]
    return items or []


def _is_optimizer_object(value: Call) -> bool:
    attributes = attributes_of(value)
    return items_of(value) is None and {"param_groups", "state"} <= attributes.keys()


def _groups(items: Mapping[Value, Value], finder: TensorFinder) -> Iterator[tuple[Slot, ...]]:
    groups, states = items["param_groups"], items_of(items["state"])
    if not isinstance(groups, list) or states is None:
        raise UnsupportedFileError(
            expected="a list of groups, and a mapping of states", found=describe(groups)
        )
    if unknown := [name for name in items if name not in ("state", "param_groups")]:
        _check_beside({name: items[name] for name in unknown})
    by_label = dict(states)
    seen: set[int | str] = set()
    for number, group in enumerate(groups):
        fields = dict(items_of(group) or ())
        labels, names = fields.get("params"), fields.get("param_names")
        if not isinstance(labels, list) or not all(_is_label(label) for label in labels):
            raise UnsupportedFileError(
                f"group {number}", expected="a list of numbers", found=describe(labels)
            )
        if seen & set(labels) or len(set(labels)) < len(labels):
            raise UnsupportedFileError(f"group {number} has a parameter that is there twice")
        seen |= set(labels)
        if not (isinstance(names, list) and len(names) == len(labels)):
            names = [label if isinstance(label, str) else None for label in labels]
        yield tuple(
            _slot(label, name if isinstance(name, str) else None, by_label.get(label), finder)
            for label, name in zip(labels, names, strict=True)
        )
    stray = [label for label in by_label if type(label) is int and label not in seen]
    if stray:
        raise UnsupportedFileError(f"a state of number {stray[0]}, which is in no group")


def _is_label(label: Value) -> bool:
    return type(label) is int or isinstance(label, str)


def _check_beside(others: Mapping[Value, Value]) -> None:
    """Refuse an optimizer that keeps tensors, or anything by number, in a place of its own.

    Raises:
        UnsupportedFileError: It does; where its parameters stand in it is not known.
    """
    seen: set[int] = set()
    for name, value in others.items():
        waiting = [value]
        while waiting:
            inner = waiting.pop()
            if isinstance(inner, (str, bytes, int, float, type(None))) or id(inner) in seen:
                continue
            seen.add(id(inner))
            numbers = [key for key, _ in items_of(inner) or () if type(key) is int]
            if is_tensor(inner) or numbers:
                raise UnsupportedFileError(
                    f"has {describe(name)} beside its groups and states, which is not known to "
                    "follow its parameters"
                )
            waiting += [child for _, child in _inner(inner)]


def _slot(label: int | str, name: str | None, state: Value, finder: TensorFinder) -> Slot:
    moments = items_of(state) if state is not None else []
    if moments is None:
        return Slot(label, None, name, f"a state that is {describe(state)}")
    foreign = [_FOREIGN[key] for key, _ in moments if isinstance(key, str) and key in _FOREIGN]
    if foreign:
        return Slot(label, None, name, foreign[0])
    shapes: dict[tuple[int, ...], str] = {}
    for key, value in moments:
        if not isinstance(value, Call):
            if isinstance(value, (list, tuple, dict)) and value:
                return Slot(label, None, name, f"a state with {describe(key)} of no known form")
            continue
        try:
            shape = finder.tensor(value).shape if is_tensor(value) else None
        except FrozenBNError:
            shape = None
        if shape is None:
            return Slot(label, None, name, f"{describe(key)} is {describe(value)}")
        shapes.setdefault(shape, str(key))
    told = [shape for shape in shapes if shape]
    if len(told) > 1:
        return Slot(label, None, name, f"{shapes[told[0]]} and {shapes[told[1]]} differ in shape")
    return Slot(label, told[0] if told else _scalar(moments), name)


def _scalar(moments: list[tuple[Value, Value]]) -> tuple[int, ...] | None:
    """Return the shape of a parameter whose moments are all numbers, if it has any."""
    own = [key for key, value in moments if key != "step" and is_tensor(value)]
    return () if own else None
