"""Choosing layers by the name of a submodule (``backbone``) or a pattern (``layer?.*.bn1``)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from frozenbn_cli.errors import UsageError
from frozenbn_cli.wording import is_it, listed

__all__ = ["Selection", "checked_dims", "kinds_of", "matches"]


@dataclass(frozen=True, slots=True)
class Selection:
    """Names and patterns that decide which layers are frozen.

    A name without ``*``, ``?`` and ``[`` stands for the layer or submodule of that name, with all
    layers in it; a shell-style pattern for the layers whose whole name it matches.

    Attributes:
        include: A layer must match one of these; empty selects every layer.
        exclude: A layer that matches one of these is left alone, also if it is included.
        dims_of: What the user says of the spatial dimensions of layers: name and 1, 2 or 3.
        state: Whether the layers are ``live`` or ``frozen`` of which the file cannot tell it.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    dims_of: tuple[tuple[str, int], ...] = ()
    state: Literal["live", "frozen"] | None = None

    @classmethod
    def of(cls, include: str | Iterable[str] = (), exclude: str | Iterable[str] = ()) -> Selection:
        """Return a selection from one pattern or several."""
        return cls(_patterns(include), _patterns(exclude))

    def reason_left_out(self, names: Iterable[str]) -> str | None:
        """Return why the layer that goes by ``names`` is not selected, or None if it is."""
        names = tuple(names)
        for pattern in self.exclude:
            if matches(pattern, names):
                return f"excluded by {pattern!r}"
        if self.include and not any(matches(pattern, names) for pattern in self.include):
            return "not included by " + " or ".join(repr(pattern) for pattern in self.include)
        return None

    def said_dims(self, name: str, meant: Collection[int]) -> int | None:
        """Return the spatial dimensions that the user says a layer has.

        To include it by its name says that it has those which are meant, if these are of one kind.
        """
        named = next(iter(meant)) if len(meant) == 1 and name in self.include else None
        return dict(self.dims_of).get(name, named)

    def check(self, names: Iterable[str], kind: str = "BatchNorm layer") -> None:
        """Raise if a pattern matches none of the layers' ``names``.

        Args:
            names: Of all layers of the model.
            kind: What the layers are, for the message.

        Raises:
            UsageError: A pattern has no effect; most likely it is misspelt.
        """
        names = tuple(names)
        for name, _ in self.dims_of:
            if name not in names:
                raise UsageError(
                    f"dimensions are given of {name!a}, which is no BatchNorm layer",
                    advice=_nearest(name, names),
                )
        for option, patterns in (("include", self.include), ("exclude", self.exclude)):
            for pattern in patterns:
                if not matches(pattern, names):
                    raise UsageError(
                        f"{option} pattern {pattern!r} matches no {kind}",
                        advice=_nearest(pattern, names),
                    )


def checked_dims(dims: Iterable[int] | None) -> frozenset[int]:
    """Return the spatial dimensions that are meant: 2 where none are chosen.

    Raises:
        UsageError: One of them is not 1, 2 or 3.
    """
    chosen = frozenset((2,) if dims is None else dims)
    if not chosen or not chosen <= {1, 2, 3}:
        raise UsageError("dims", expected="some of 1, 2 and 3", found=repr(sorted(chosen)))
    return chosen


def _nearest(pattern: str, names: Collection[str]) -> str:
    """Return which layer or module may be meant, or else how the first are named."""
    modules = {name[:dot] for name in names for dot in range(len(name)) if name[dot] == "."}
    named = f"The layers are named {listed(names)}." if names else ""
    return is_it(pattern, [*names, *sorted(modules)]) or named


def kinds_of(dims: Iterable[int]) -> str:
    """Return the layers of these spatial dimensions, in words."""
    return " or ".join(f"BatchNorm{each}d" for each in sorted(dims))


def _patterns(patterns: str | Iterable[str]) -> tuple[str, ...]:
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def matches(pattern: str, names: Iterable[str]) -> bool:
    """Return whether a name or pattern stands for a layer that goes by any of ``names``."""
    if not any(wildcard in pattern for wildcard in "*?["):
        return any(name == pattern or name.startswith(f"{pattern}.") for name in names)
    return any(fnmatchcase(name, pattern) for name in names)
