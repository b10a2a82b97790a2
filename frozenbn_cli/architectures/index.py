"""The index of public architectures: read from the file beside this one, and written.

The file is text under gzip, in sections that each begin with a line ``[name]``:

- ``[libraries]``: ``torchvision 0.29.1``, one for each version that it was made of;
- ``[kinds]``: ``1e-05 0.1 BatchNorm2d``: eps, momentum and class of a layer, ``-`` for None;
- ``[layouts]``: ``0*20 1``: the kinds of all layers in the order of their fingerprint, by number;
- ``[names]``: ``4 resnet50 resnetblur50``: a library by number, and architectures of it; several
  libraries are separated by a tab;
- ``[fingerprints]``: ``0123456789abcdef 3 17``: a fingerprint, a layout and names by number. A
  fingerprint with several lines is ambiguous.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

__all__ = ["INDEX_PATH", "Architecture", "Candidate", "Index", "LayerKind", "fingerprint"]

INDEX_PATH = Path(__file__).with_name("index.txt.gz")

_SECTIONS = ("libraries", "kinds", "layouts", "names", "fingerprints")
_FINGERPRINT_DIGITS = 16
_NONE = "-"


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model that a library builds by name.

    Attributes:
        library: ``torchvision`` or ``timm``.
        version: Of the library, the newest in which it has these layers.
        name: In the library.
    """

    library: str
    version: str
    name: str

    def __str__(self) -> str:
        return f"{self.library} {self.name} ({self.version})"


@dataclass(frozen=True, slots=True)
class LayerKind:
    """What an architecture says of one of its layers with running statistics.

    Attributes:
        eps: Added to the variance; None where the class has none.
        momentum: Of the running average; None where the class has none.
        class_name: Without its module; ``BatchNorm2d`` also for one that carries its activation.
    """

    eps: float | None
    momentum: float | None
    class_name: str

    @property
    def spatial_dims(self) -> int | None:
        """How many spatial dimensions its inputs have, where the class says it."""
        plain = self.class_name.removeprefix("Frozen")
        return {"BatchNorm1d": 1, "BatchNorm2d": 2, "BatchNorm3d": 3}.get(plain)


@dataclass(frozen=True, slots=True)
class Candidate:
    """Architectures whose layers are the same, in eps, momentum and class too.

    Attributes:
        architectures: The best known library first, and short names before long ones.
        kinds: Of each layer, in the order of the fingerprint.
    """

    architectures: tuple[Architecture, ...]
    kinds: tuple[LayerKind, ...]

    @property
    def eps(self) -> tuple[float | None, ...]:
        """Of each layer."""
        return tuple(kind.eps for kind in self.kinds)

    def __str__(self) -> str:
        first, *others = self.architectures
        return f"{first} and {len(others)} more" if others else str(first)


def fingerprint(layers: Iterable[tuple[str, int]]) -> str:
    """Return what stands for a set of layers: names and channels, in any order."""
    text = "\n".join(f"{name} {channels}" for name, channels in sorted(layers))
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:_FINGERPRINT_DIGITS]


class Index:
    """The index of a file; lines are taken apart only when they are asked for."""

    def __init__(self, sections: Mapping[str, Sequence[str]]) -> None:
        self._sections = sections
        self._found: dict[str, list[str]] = {}
        for line in sections["fingerprints"]:
            self._found.setdefault(line[:_FINGERPRINT_DIGITS], []).append(line)

    @classmethod
    @cache
    def installed(cls) -> Index:
        """Return the index that this package carries."""
        return cls.read(INDEX_PATH)

    @classmethod
    def read(cls, path: Path) -> Index:
        """Return the index of a file."""
        text = gzip.decompress(path.read_bytes()).decode()
        parts = (part.split("\n") for part in text.split("[")[1:])
        return cls({head.removesuffix("]"): lines[:-1] for head, *lines in parts})

    @property
    def libraries(self) -> tuple[str, ...]:
        """The libraries that it was made of, with their versions."""
        return tuple(self._sections["libraries"])

    @property
    def architectures(self) -> tuple[Architecture, ...]:
        """All architectures in it."""
        places = range(len(self._sections["names"]))
        found = (one for place in places for one in self._architectures(place))
        return tuple(dict.fromkeys(found))

    def candidates(self, fingerprint: str) -> tuple[Candidate, ...]:
        """Return the architectures with these layers, in as many groups as they differ in kinds."""
        candidates = []
        for line in self._found.get(fingerprint, ()):
            _, layout, names = line.split(" ")
            candidates.append(Candidate(self._architectures(int(names)), self._kinds(int(layout))))
        return tuple(candidates)

    def _architectures(self, place: int) -> tuple[Architecture, ...]:
        found = []
        for group in self._sections["names"][place].split("\t"):
            number, *names = group.split(" ")
            library, version = self._sections["libraries"][int(number)].split(" ")
            found += [Architecture(library, version, name) for name in names]
        return tuple(found)

    def _kinds(self, place: int) -> tuple[LayerKind, ...]:
        kinds: list[LayerKind] = []
        for run in self._sections["layouts"][place].split(" "):
            number, _, count = run.partition("*")
            eps, momentum, class_name = self._sections["kinds"][int(number)].split(" ")
            kind = LayerKind(_number(eps), _number(momentum), class_name)
            kinds += [kind] * int(count or 1)
        return tuple(kinds)

    def write(self, path: Path) -> None:
        """Write the index into a file; the same index gives the same bytes."""
        sections = ((name, self._sections[name]) for name in _SECTIONS)
        lines = [line for name, section in sections for line in (f"[{name}]", *section)]
        text = "\n".join((*lines, ""))
        path.write_bytes(gzip.compress(text.encode(), mtime=0))

    @classmethod
    def of(
        cls, candidates: Mapping[str, Sequence[Candidate]], libraries: Iterable[str] = ()
    ) -> Index:
        """Return the index of candidates by fingerprint, made of libraries with their versions."""
        numbers = _Numbers(sorted(set(libraries)))
        kinds, layouts, names, lines = _Numbers(), _Numbers(), _Numbers(), []
        for print_, group in sorted(candidates.items()):
            for item in group:
                of_layers = [kinds[_kind_line(kind)] for kind in item.kinds]
                layout = layouts[" ".join(_runs(of_layers))]
                lines.append(f"{print_} {layout} {names[_names_line(item, numbers)]}")
        sections = (numbers.lines, kinds.lines, layouts.lines, names.lines, lines)
        return cls(dict(zip(_SECTIONS, sections, strict=True)))


class _Numbers:
    """Lines, and the place of each among them; a new one goes to the end."""

    def __init__(self, lines: Iterable[str] = ()) -> None:
        self._places = {line: place for place, line in enumerate(lines)}

    def __getitem__(self, line: str) -> int:
        return self._places.setdefault(line, len(self._places))

    @property
    def lines(self) -> list[str]:
        return list(self._places)


def _kind_line(kind: LayerKind) -> str:
    numbers = (kind.eps, kind.momentum)
    eps, momentum = (_NONE if number is None else repr(number) for number in numbers)
    return f"{eps} {momentum} {kind.class_name}"


def _number(text: str) -> float | None:
    return None if text == _NONE else float(text)


def _runs(numbers: Sequence[int]) -> list[str]:
    runs = ((number, len(list(same))) for number, same in groupby(numbers))
    return [str(number) if count == 1 else f"{number}*{count}" for number, count in runs]


def _names_line(candidate: Candidate, libraries: _Numbers) -> str:
    groups = groupby(candidate.architectures, key=lambda one: f"{one.library} {one.version}")
    return "\t".join(
        " ".join((str(libraries[library]), *(one.name for one in group)))
        for library, group in groups
    )
