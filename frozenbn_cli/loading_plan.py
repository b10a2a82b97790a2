"""Which entry of a file goes where in a model: names are matched, and nothing is changed.

Imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from frozenbn_cli.checkpoints.names import common_prefix
from frozenbn_cli.errors import UsageError
from frozenbn_cli.selection import matches
from frozenbn_cli.wording import listed

__all__ = ["LoadPlan", "plan_loading"]

_COUNT = "num_batches_tracked"
_NAMED = 4


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Where the entries of a file go.

    Attributes:
        sources: The file's name of each entry of the model that is loaded.
        skipped: Names of entries of the file that are left out.
        left: Names of entries of the model that are left as they are.
        layers: The model's name of each layer of the file whose statistics are loaded.
        names: How names of the file become names of the model.
        choice: What the caller leaves out.
    """

    sources: Mapping[str, str]
    skipped: tuple[str, ...]
    left: tuple[str, ...]
    layers: Mapping[str, str]
    names: _Names
    choice: _Choice

    @property
    def prefix(self) -> str:
        """What was taken off the names of the file."""
        return self.names.taken_off

    def leaves_out(self, layer: str) -> bool:
        """Return whether the caller left a layer of the model out by ``skip`` or ``only``."""
        return self.choice.leaves_out(*self.names.all_of(f"{layer}.running_mean"))


@dataclass(frozen=True, slots=True)
class _Choice:
    """What the caller leaves out.

    Attributes:
        skip: Names and patterns that are left out.
        only: Names and patterns beside which everything is left out; empty for none.
    """

    skip: tuple[str, ...]
    only: tuple[str, ...]

    def leaves_out(self, *names: str) -> bool:
        """Return whether an entry of these names, in the file and in the model, is left out."""
        if any(matches(pattern, names) for pattern in self.skip):
            return True
        return bool(self.only) and not any(matches(pattern, names) for pattern in self.only)

    def check(self, names: Iterable[str]) -> None:
        """Raise if a pattern matches none of the entries.

        Raises:
            UsageError: Most likely it is misspelt.
        """
        names = tuple(names)
        for option, patterns in (("skip", self.skip), ("only", self.only)):
            for pattern in patterns:
                if not matches(pattern, names):
                    raise UsageError(
                        f"{option} {pattern!r} matches no entry of the file or the model",
                        advice=f"The entries are named {listed(names)}.",
                    )


def plan_loading(
    own: Mapping[str, Any],
    entries: Mapping[str, Tensor],
    *,
    prefix: str = "",
    skip: tuple[str, ...] = (),
    only: tuple[str, ...] = (),
) -> LoadPlan:
    """Return where the entries of a file go in a model.

    Args:
        own: The state dict of the model.
        entries: Those of the file.
        prefix: What the names of the model have in front of those of the file.
        skip: Names and patterns of what is left out.
        only: Names and patterns of all that is loaded.

    Raises:
        UsageError: An entry has no place, or none comes for a place; or a pattern matches nothing.
    """
    if prefix and not prefix.endswith("."):
        prefix += "."
    places = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    choice = _Choice(skip, only)
    if prefix and not any(name.startswith(prefix) for name in places):
        raise UsageError(
            f"prefix {prefix!r} is in front of no entry of the model",
            advice=f"The entries are named {listed(list(places))}.",
        )
    ways = [_Names(each, prefix) for each in _prefixes(entries)]
    names = min(ways, key=lambda way: _misfit(places, entries, way, choice).count)
    choice.check(each for name in (*entries, *places) for each in names.all_of(name))
    misfit = _misfit(places, entries, names, choice)
    if misfit.count:
        raise UsageError(
            f"the file does not fit the model: {misfit.text}",
            advice="Leave another head out with skip=; if the model holds the file's model under a "
            "name, give it with prefix=.",
        )
    left_out = {name: None for name in entries if choice.leaves_out(*names.all_of(name))}
    places_of = {names.in_model(name): name for name in entries if name not in left_out}
    sources = {place: name for place, name in places_of.items() if place in places}
    return LoadPlan(
        sources,
        tuple(left_out),
        tuple(name for name in own if name not in sources and not name.endswith(_COUNT)),
        {
            name.rpartition(".")[0]: place.rpartition(".")[0]
            for place, name in sources.items()
            if name.rpartition(".")[2] == "running_mean"
        },
        names,
        choice,
    )


@dataclass(frozen=True, slots=True)
class _Names:
    """How names of the file become names of the model.

    Attributes:
        taken_off: What all names of the file have in front, and the model's lack.
        put_on: What the names of the model have in front.
    """

    taken_off: str
    put_on: str

    def in_model(self, name: str) -> str:
        return self.put_on + name.removeprefix(self.taken_off)

    def all_of(self, name: str) -> tuple[str, ...]:
        """Return what an entry is called, in the file, in the model and without any prefix."""
        bare = name.removeprefix(self.taken_off).removeprefix(self.put_on)
        return name, bare, self.put_on + bare, self.taken_off + bare


def _prefixes(names: Iterable[str]) -> Iterator[str]:
    """Yield nothing, and what all names have in front, the shortest first."""
    parts = common_prefix(names).split(".")
    yield from ("".join(f"{part}." for part in parts[:count]) for count in range(len(parts)))


@dataclass(frozen=True, slots=True)
class _Misfit:
    """What does not fit: how many entries, and which, in words."""

    count: int
    text: str


def _misfit(
    places: Mapping[str, Tensor], entries: Mapping[str, Tensor], names: _Names, choice: _Choice
) -> _Misfit:
    taken = {
        names.in_model(name): tensor
        for name, tensor in entries.items()
        if not choice.leaves_out(*names.all_of(name))
    }
    wanted = [
        name
        for name in places
        if name.startswith(names.put_on) and not choice.leaves_out(*names.all_of(name))
    ]
    # A count of batches goes where a layer is frozen.
    missing = [name for name in wanted if name not in taken and not name.endswith(_COUNT)]
    unexpected = [name for name in taken if name not in places and not name.endswith(_COUNT)]
    reshaped = [
        f"{name} ({list(tensor.shape)} instead of {list(places[name].shape)})"
        for name, tensor in taken.items()
        if name in places
        and not nn.parameter.is_lazy(places[name])
        and tensor.shape != places[name].shape
    ]
    kinds = (
        ("missing in the file", missing),
        ("not in the model", unexpected),
        ("of another shape (size mismatch)", reshaped),
    )
    texts = [f"{len(found)} {kind}: {listed(found, _NAMED)}" for kind, found in kinds if found]
    return _Misfit(len(missing) + len(unexpected) + len(reshaped), "; ".join(texts))
