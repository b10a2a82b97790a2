"""Which architecture the BatchNorm layers of a file are, by their names and channels alone.

Layers are recognised where, under some prefix, they are exactly those of an architecture: not one
more, not one less. A part of an architecture, or one with a block less, is another architecture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from frozenbn_cli.architectures.index import Architecture, Candidate, Index, LayerKind, fingerprint

__all__ = ["FORMS", "Form", "Match", "RecognisedLayer", "form_fingerprint", "recognise"]

_T = TypeVar("_T")

Form = Callable[[str], str]
"""Makes another name of a layer's."""

_FEWEST_LAYERS = 4
_FEWEST_INSIDE = 8
_MOST_LAYERS = 5_000
_MOST_DEPTH = 12
_FLATTENED = re.compile(r"^([^.]*)_([0-9]+)(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Match:
    """Layers that are exactly those of an architecture.

    Attributes:
        prefix: Of their names, with its dot; empty if the whole file is that architecture.
        layers: Their names, as in the file.
        candidates: The architectures that have these layers; more than one where their kinds
            differ.
    """

    prefix: str
    layers: tuple[str, ...]
    candidates: tuple[Candidate, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All architectures that have these layers, in words."""
        return tuple(str(one) for item in self.candidates for one in item.architectures)

    @property
    def firsts(self) -> tuple[Architecture, ...]:
        """The best known architecture of each candidate."""
        return tuple(item.architectures[0] for item in self.candidates)


@dataclass(frozen=True, slots=True)
class RecognisedLayer:
    """What is known of a layer that was recognised.

    Attributes:
        match: The layers that it was recognised with.
        kinds: What each candidate of the match says of this layer.
    """

    match: Match
    kinds: tuple[LayerKind, ...]

    @property
    def eps(self) -> float | None:
        """What all candidates have; None where they differ."""
        return _agreed(kind.eps for kind in self.kinds)

    @property
    def momentum(self) -> float | None:
        """What all candidates have; None where they differ, or have none."""
        return _agreed(kind.momentum for kind in self.kinds)

    @property
    def spatial_dims(self) -> int | None:
        """What all candidates have; None where they differ, or do not say."""
        return _agreed(kind.spatial_dims for kind in self.kinds)

    @property
    def not_batch_norm(self) -> tuple[str, ...]:
        """The classes that are no BatchNorm and where they are, in words."""
        return tuple(
            f"{kind.class_name} in {candidate}"
            for kind, candidate in zip(self.kinds, self.match.candidates, strict=True)
            if kind.spatial_dims is None
        )

    @property
    def by_eps(self) -> dict[float, str]:
        """Which architectures have each eps, in words; and with which class, if that differs."""
        classes = {kind.class_name for kind in self.kinds}
        found: dict[float, str] = {}
        for kind, candidate in zip(self.kinds, self.match.candidates, strict=True):
            if kind.eps is not None:
                of_class = f" with {kind.class_name}" if len(classes) > 1 else ""
                found.setdefault(kind.eps, f"{candidate}{of_class}")
        return found


def _agreed(values: Iterable[_T | None]) -> _T | None:
    different = set(values)
    return different.pop() if len(different) == 1 else None


def recognise(
    channels: Mapping[str, int], index: Callable[[], Index] = Index.installed
) -> dict[str, RecognisedLayer]:
    """Return what is known of the layers that are those of an architecture, by name.

    Args:
        channels: Of every layer with a running mean in the file, by name.
        index: Returns the architectures that are known; not called for fewer layers than any has.
    """
    if not _FEWEST_LAYERS <= len(channels) <= _MOST_LAYERS:
        return {}
    found: dict[str, RecognisedLayer] = {}
    waiting = [("", 0, list(channels))]
    while waiting:
        prefix, depth, names = waiting.pop()
        match = _match(prefix, {name: channels[name] for name in names}, index())
        if match:
            kinds = zip(*(candidate.kinds for candidate in match.candidates), strict=True)
            found |= {
                name: RecognisedLayer(match, of_layer)
                for name, of_layer in zip(match.layers, kinds, strict=True)
            }
        elif depth < _MOST_DEPTH:
            waiting += [
                (inner, depth + 1, inside)
                for inner, inside in _modules_inside(prefix, names).items()
                if len(inside) >= _FEWEST_INSIDE
            ]
    return found


def _modules_inside(prefix: str, names: list[str]) -> dict[str, list[str]]:
    inside: dict[str, list[str]] = {}
    for name in names:
        child, dot, _ = name[len(prefix) :].partition(".")
        if dot:
            inside.setdefault(f"{prefix}{child}.", []).append(name)
    return inside


def _match(prefix: str, channels: Mapping[str, int], index: Index) -> Match | None:
    """Return what the layers under a prefix are, all taken together."""
    relative = {name[len(prefix) :]: count for name, count in channels.items()}
    for form in _forms_of(relative):
        names, print_ = form_fingerprint(relative, form)
        if candidates := index.candidates(print_):
            return Match(prefix, tuple(f"{prefix}{name}" for name in names), candidates)
    return None


def _forms_of(names: Collection[str]) -> Iterator[Form]:
    """Yield the forms in which an architecture could have these names."""
    yield as_it_is
    if any(unflattened(name) != name for name in names):
        yield unflattened
    if len(names) >= _FEWEST_INSIDE and all(name.partition(".")[0].isdigit() for name in names):
        yield without_first


def as_it_is(name: str) -> str:
    """Return the name as the library's own state dict has it."""
    return name


def unflattened(name: str) -> str:
    """Return the name with ``stages.3`` for the ``stages_3`` of timm's features_only."""
    return _FLATTENED.sub(r"\1.\2", name)


def without_first(name: str) -> str:
    """Return the name without its first part, of which ``nn.Sequential(*children)`` keeps none."""
    return name.partition(".")[2]


FORMS: tuple[Form, ...] = (as_it_is, unflattened, without_first)
"""The forms of a name that are looked up."""


def form_fingerprint(channels: Mapping[str, int], form: Form) -> tuple[list[str], str]:
    """Return the names of layers in the order of their fingerprint in a form, and that.

    Args:
        channels: Of each layer, by name.
        form: Of the names.
    """
    in_form = sorted((form(name), count, name) for name, count in channels.items())
    names = [name for _, _, name in in_form]
    return names, fingerprint([(name, count) for name, count, _ in in_form])
