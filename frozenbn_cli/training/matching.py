"""Which places of an optimizer are those of parameters that go, and what proves it.

An optimizer gets its parameters in the order of ``parameters()``, or in groups, each in that
order. What proves a way of parting them is that the shapes of all moments fit, and that every other
way that fits comes to the same places. A place without moments fits every parameter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations, product

from frozenbn_cli.training.optimizer_states import OptimizerState
from frozenbn_cli.training.parameters import Parameter, Parameters

__all__ = ["Match", "Places", "matches_of"]

Places = frozenset[int]
"""Places in an optimizer, counted through all groups from 0."""

_MOST_STATES = 200_000  # Of the search through all ways.
_MOST_ORDERS, _MOST_PARTINGS = 5, 20_000


@dataclass(frozen=True, slots=True)
class Match:
    """A way in which the places of an optimizer are those of parameters.

    Attributes:
        places: Those of parameters that go.
        names: What is known of them: the parameter of each place, as far as the way tells it.
        proof: Why it is this way, in words.
    """

    places: Places
    names: tuple[str | None, ...]
    proof: str


def matches_of(optimizer: OptimizerState, parameters: Parameters) -> list[Match]:
    """Return the ways that fit and differ in the places of parameters that go; none if none fits.

    Args:
        optimizer: The state of an optimizer that does not name its parameters.
        parameters: Of a model that may be its own.
    """
    if parameters.are_certain:
        found = _distinct(_usual_ways(optimizer, parameters))
        if found:
            return found
    elif not optimizer.has_moments:
        listed = parameters.listed
        # Where nothing is kept, a single group is told by its size alone.
        if len(optimizer.groups) == 1 and optimizer.count == len(listed):
            return [_match(listed, "the number of parameters, since there are no moments")]
        return []
    if not optimizer.has_moments:
        return []
    return _every_way(optimizer, parameters)


def _distinct(found: Iterable[Match]) -> list[Match]:
    return list({match.places: match for match in reversed(list(found))}.values())


def _match(order: Sequence[Parameter], proof: str) -> Match:
    places = frozenset(place for place, item in enumerate(order) if item.goes)
    return Match(places, tuple(item.name for item in order), proof)


# The ways in which optimizers are usually given their parameters


def _usual_ways(optimizer: OptimizerState, parameters: Parameters) -> Iterator[Match]:
    proof = parameters.source + (
        ", proved by the shapes of the moments"
        if optimizer.has_moments
        else " and the sizes of the groups, since there are no moments"
    )
    by_kind = [
        _match(order, f"{proof}, in groups by kind")
        for listed in _subsets(optimizer, parameters)
        for order in _by_kind(optimizer, listed)
    ]
    yield from by_kind
    if by_kind and len(optimizer.groups) > 1 and not optimizer.has_moments:
        return  # Runs fit whatever the groups are, where there is no shape to contradict them.
    for listed in _subsets(optimizer, parameters):
        for order in _in_runs(optimizer, listed):
            yield _match(order, proof)


def _subsets(optimizer: OptimizerState, parameters: Parameters) -> Iterator[tuple[Parameter, ...]]:
    """Yield the parameters that an optimizer of this size may have."""
    seen: dict[tuple[str, ...], tuple[Parameter, ...]] = {}
    for listed in (parameters.listed, parameters.trained):
        rest = listed[len(listed) - optimizer.count :]
        if optimizer.has_moments and 0 < len(rest) == optimizer.count:
            # The first stages may have been left out.
            seen.setdefault(tuple(item.name for item in rest), rest)
        # Without moments, that the number is that of a submodule too would prove nothing.
        for prefix in _submodules(listed) if optimizer.has_moments else [""]:
            subset = tuple(item for item in listed if item.name.startswith(prefix))
            if len(subset) == optimizer.count:
                seen.setdefault(tuple(item.name for item in subset), subset)
    yield from seen.values()


def _submodules(listed: Sequence[Parameter]) -> list[str]:
    found = {""}
    for item in listed:
        parts = item.name.split(".")
        found |= {".".join(parts[:count]) + "." for count in range(1, len(parts))}
    return sorted(found)


def _in_runs(
    optimizer: OptimizerState, listed: tuple[Parameter, ...]
) -> Iterator[tuple[Parameter, ...]]:
    """Yield the orders in which each group is a run of the parameters, in any order of groups."""
    numbers = range(len(optimizer.groups))
    sizes = [len(group) for group in optimizer.groups]
    with_moments = optimizer.has_moments and len(sizes) <= _MOST_ORDERS
    for order in permutations(numbers) if with_moments else [tuple(numbers)]:
        runs: dict[int, tuple[Parameter, ...]] = {}
        start = 0
        for number in order:
            runs[number] = listed[start : start + sizes[number]]
            start += sizes[number]
        way = tuple(item for number in numbers for item in runs[number])
        if _fits(optimizer, way):
            yield way


def _by_kind(
    optimizer: OptimizerState, listed: tuple[Parameter, ...]
) -> Iterator[tuple[Parameter, ...]]:
    """Yield the orders in which all parameters of one kind are in one group."""
    kinds = sorted({item.kind for item in listed})
    numbers = range(len(optimizer.groups))
    if len(numbers) < 2 or len(numbers) ** len(kinds) > _MOST_PARTINGS:
        return
    sizes = [len(group) for group in optimizer.groups]
    of_kind = {kind: sum(item.kind == kind for item in listed) for kind in kinds}
    for chosen in product(numbers, repeat=len(kinds)):
        group_of = dict(zip(kinds, chosen, strict=True))
        if all(
            sum(of_kind[kind] for kind in kinds if group_of[kind] == number) == sizes[number]
            for number in numbers
        ):
            way = tuple(
                item for number in numbers for item in listed if group_of[item.kind] == number
            )
            if _fits(optimizer, way):
                yield way


def _fits(optimizer: OptimizerState, way: Sequence[Parameter]) -> bool:
    return len(way) == optimizer.count and all(
        slot.shape in (None, item.shape) for slot, item in zip(optimizer.slots, way, strict=True)
    )


# Every way in which each group is in the model's order


def _every_way(optimizer: OptimizerState, parameters: Parameters) -> list[Match]:
    """Return what all ways come to in which each group has its parameters in the model's order.

    Parameters may be left out, as many as there are too many. If the ways differ in the places of
    parameters that go, two of them are returned.
    """
    search = _Search(optimizer, parameters.listed)
    choices = search.choices()
    if choices is None:
        return []
    firsts = tuple(min(found, default=None) for found in choices)
    names = tuple(
        None if first is None else parameters.listed[first].name if len(found) == 1 else None
        for first, found in zip(firsts, choices, strict=True)
    )
    goes = [{parameters.listed[number].goes for number in found} for found in choices]
    if any(not found for found in choices):
        return []
    proof = f"{parameters.source}, proved by shapes that fit in no other way"
    least = frozenset(place for place, found in enumerate(goes) if found == {True})
    most = frozenset(place for place, found in enumerate(goes) if True in found)
    return [Match(places, names, proof) for places in {least, most}]


class _Search:
    """Goes through the parameters in order: each is the next of some group, or left out."""

    def __init__(self, optimizer: OptimizerState, listed: Sequence[Parameter]) -> None:
        self._listed = listed
        self._groups = [[slot.shape for slot in group] for group in optimizer.groups]
        self._starts = [
            sum(len(group) for group in self._groups[:number])
            for number in range(len(self._groups))
        ]
        self._spare = len(listed) - optimizer.count

    def choices(self) -> list[set[int]] | None:
        """Return, for each place, the parameters that may be there; None if there are too many."""
        if self._spare < 0:
            return [set()] * sum(map(len, self._groups))
        layers = [{(0,) * len(self._groups)}]
        states = 1
        for number in range(len(self._listed)):
            layers.append(
                {after for before in layers[-1] for after, _ in self._steps(before, number)}
            )
            states += len(layers[-1])
            if states > _MOST_STATES:
                return None
        alive = layers[-1] & {tuple(map(len, self._groups))}
        found: list[set[int]] = [set() for group in self._groups for _ in group]
        for number in reversed(range(len(self._listed))):
            ending = set()
            for before in layers[number]:
                for after, place in self._steps(before, number):
                    if after in alive:
                        ending.add(before)
                        if place is not None:
                            found[place].add(number)
            alive = ending
        return found

    def _steps(
        self, before: tuple[int, ...], number: int
    ) -> Iterator[tuple[tuple[int, ...], int | None]]:
        if number - sum(before) < self._spare:
            yield before, None
        shape = self._listed[number].shape
        for group, done in enumerate(before):
            shapes = self._groups[group]
            if done < len(shapes) and shapes[done] in (None, shape):
                after = (*before[:group], done + 1, *before[group + 1 :])
                yield after, self._starts[group] + done
