"""Decides which parameters each optimizer of a training checkpoint loses, or refuses to guess."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from frozenbn_cli.checkpoints.names import common_prefix
from frozenbn_cli.errors import UnsupportedFileError, UsageError, located
from frozenbn_cli.training.matching import Match, Places, matches_of
from frozenbn_cli.training.optimizer_states import OptimizerState
from frozenbn_cli.training.parameters import Parameters
from frozenbn_cli.wording import counted, listed

__all__ = ["BuiltOptimizer", "Reconciled", "reconciled"]

_AVERAGES = ("ema", "swa", "avg", "average", "shadow", "teacher")
_NAMES_THEM = "the names of the parameters, which the file holds"

BuiltOptimizer = Sequence[Sequence[str]]
"""The names of the parameters in each group of an optimizer, as a user's own code builds it."""


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What becomes of one optimizer.

    Attributes:
        optimizer: Its state, as it is in the file.
        key_of_model: The state dict whose parameters it has.
        places: Those of parameters that go.
        names: The parameters that go, as far as they are known by name.
        proof: How it is known which they are, in words.
    """

    optimizer: OptimizerState
    key_of_model: str
    places: Places
    names: tuple[str, ...]
    proof: str

    @property
    def group_sizes(self) -> tuple[tuple[int, int], ...]:
        """The number of parameters in each group, before and after."""
        sizes, start = [], 0
        for group in self.optimizer.groups:
            end = start + len(group)
            lost = sum(start <= place < end for place in self.places)
            sizes.append((len(group), len(group) - lost))
            start = end
        return tuple(sizes)


def reconciled(
    optimizers: Iterable[OptimizerState],
    models: Iterable[Parameters],
    built: Sequence[BuiltOptimizer] | None = None,
) -> tuple[Reconciled, ...]:
    """Return what becomes of each optimizer.

    Args:
        optimizers: Those of the file.
        models: The parameters of each model in the file.
        built: The same optimizers, in the same order, as the user's own code builds them.

    Raises:
        UsageError: It is not proved which parameters are which; says what to give.
        UnsupportedFileError: An optimizer keeps what tells no shapes.
    """
    optimizers, models = tuple(optimizers), _trained(models)
    if not any(parameter.goes for model in models for parameter in model.listed):
        return ()
    if built is not None and len(built) != len(optimizers):
        raise UsageError(
            "--optimizer",
            expected=f"{counted(len(optimizers), 'optimizer')}, as the file has",
            found=str(len(built)),
        )
    results = []
    for number, optimizer in enumerate(optimizers):
        with located(f"optimizer {optimizer.key!a}"):
            results.append(_one(optimizer, models, built[number] if built else None))
    return tuple(results)


def _trained(models: Iterable[Parameters]) -> tuple[Parameters, ...]:
    """Return the models that an optimizer may be of: not those that are averages of another."""
    alike: dict[tuple[object, ...], list[Parameters]] = {}
    for model in models:
        same = tuple((item.name, item.shape) for item in model.listed)
        alike.setdefault(same, []).append(model)
    return tuple(
        next((model for model in group if not _is_average(model.key)), group[0])
        for group in alike.values()
    )


def _is_average(key: str) -> bool:
    return any(word in key.lower() for word in _AVERAGES)


def _one(
    optimizer: OptimizerState, models: tuple[Parameters, ...], built: BuiltOptimizer | None
) -> Reconciled:
    if built is not None:
        proof = "the optimizer that --optimizer builds"
        given = [name for group in built for name in group]
        if [len(group) for group in built] != [len(group) for group in optimizer.groups]:
            sizes = ", ".join(str(len(group)) for group in optimizer.groups)
            raise UsageError(
                expected=f"groups of {sizes} parameters, as in the file",
                found=", ".join(str(len(group)) for group in built),
            )
        return _by_name(optimizer, models, given, proof)
    if optimizer.has_names:
        return _by_name(
            optimizer, models, [slot.name or "" for slot in optimizer.slots], _NAMES_THEM
        )
    if unclear := next((slot.unclear for slot in optimizer.slots if slot.unclear), ""):
        raise UnsupportedFileError(
            f"its state does not tell which parameter it is of: {unclear}",
            advice="Give the optimizer as it was built: --model and --optimizer path/file.py:name.",
        )
    found = [(model, match) for model in models for match in matches_of(optimizer, model)]
    if len({match.places for _, match in found}) != 1:
        raise _unproved(optimizer, models, found)
    model, match = found[0]
    named = tuple(name for place in sorted(match.places) if (name := match.names[place]))
    return Reconciled(optimizer, model.key, match.places, named, match.proof)


def _by_name(
    optimizer: OptimizerState, models: tuple[Parameters, ...], names: Sequence[str], proof: str
) -> Reconciled:
    for model in models:
        own = {parameter.name: parameter for parameter in model.listed}
        found = _own_names(names, own.keys())
        if found is None:
            continue
        for slot, name in zip(optimizer.slots, found, strict=True):
            if slot.shape not in (None, own[name].shape):
                raise UsageError(
                    f"{name}: its moments",
                    expected=f"shape {list(own[name].shape)}",
                    found=f"{list(slot.shape or ())}",
                )
        places = frozenset(place for place, name in enumerate(found) if own[name].goes)
        going = tuple(found[place] for place in sorted(places))
        return Reconciled(optimizer, model.key, places, going, proof)
    raise UsageError(
        f"names parameters that no model in the file has: {listed(list(names))}",
        advice="Choose the model with --key.",
    )


def _own_names(names: Sequence[str], own: Collection[str]) -> list[str] | None:
    """Return names as a model has them: with or without what either has in front."""
    theirs, ours = common_prefix(names), common_prefix(own)
    for off in _beginnings(theirs):
        for on in _beginnings(ours):
            found = [on + name.removeprefix(off) for name in names]
            if all(name in own for name in found):
                return found
    return None


def _beginnings(prefix: str) -> list[str]:
    parts = prefix.split(".")
    return ["".join(f"{part}." for part in parts[:count]) for count in range(len(parts))]


def _unproved(
    optimizer: OptimizerState,
    models: tuple[Parameters, ...],
    found: Sequence[tuple[Parameters, Match]],
) -> UsageError:
    sizes = ", ".join(str(len(group)) for group in optimizer.groups)
    groups = counted(len(optimizer.groups), "group")
    if found:
        what = f"its {groups} of {sizes} parameters fit the model in several ways"
    elif optimizer.has_moments:
        what = (
            f"its {groups} of {sizes} parameters are not proved to be those of a model in the "
            "file: no order fits the shapes of the moments"
        )
    else:
        what = f"has no moments, which alone could tell its {groups} of {sizes} parameters apart"
    are_certain = all(model.are_certain for model in models)
    advice = (
        "Give the optimizer as it was built: --optimizer path/file.py:callable, which takes the "
        "model and returns it."
        if are_certain
        else "Name the model with --model, whose parameters() tell which is which."
    )
    return UsageError(what, advice=advice)
