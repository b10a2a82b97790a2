"""The names of entries: what wrappers put into them, and what a user or a model wants of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TypeVar

from frozenbn_cli.checkpoints.checkpoint import Renaming, StateDict, names_statistics
from frozenbn_cli.errors import UsageError

__all__ = ["Naming", "common_prefix", "prefix_that_fits", "renamed"]

_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What DataParallel, `torch.compile` and others call the module that they wrap."""

# What stands beside a wrapped model in the state dict of what trains it.
_BESIDE = ("criterion", "criterions", "loss", "loss_fn", "loss_func", "metric", "metrics")
_COUNT = "num_batches_tracked"
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Naming:
    """How the entries of a file are to be named.

    Attributes:
        keep: Whether what wrappers put into names stays there.
        strip: A prefix to take off the names that have it.
        add: A prefix to put in front of every name.
    """

    keep: bool = False
    strip: str = ""
    add: str = ""

    @property
    def is_given(self) -> bool:
        """Whether the user says what the names are, so that no model has to be asked."""
        return self.keep or bool(self.strip or self.add)

    def apply(self, part: StateDict) -> StateDict:
        """Return a state dict with these names.

        Raises:
            UsageError: Two entries get one name.
        """
        if not self.keep:
            part = _without_wrappers(part)
        if self.strip and any(name.startswith(_dotted(self.strip)) for name in part.entries):
            part = renamed(part, ((_dotted(self.strip), ""),))
        return renamed(part, (("", _dotted(self.add)),)) if self.add else part

    def check(self, parts: Iterable[StateDict]) -> None:
        """Refuse a prefix that is to be taken off, and that no entry has.

        Raises:
            UsageError: There is no such entry.
        """
        prefix = _dotted(self.strip)
        parts = list(parts)
        if not self.strip or any((prefix, "") in part.renaming.steps for part in parts):
            return
        common = common_prefix(parts[0].entries) if len(parts) == 1 else ""
        raise UsageError(
            f"no entry begins with {prefix!a}",
            advice=f"All begin with {common!a}." if common else "",
        )


def prefix_that_fits(names: Iterable[str], wanted: Collection[str]) -> str | None:
    """Return the one prefix without which every name is wanted, or None; "" if all are as they are.

    Counts of batches are left out of this: a frozen layer has none.
    """
    names = [name for name in names if not name.endswith(_COUNT)]
    common = common_prefix(names)
    parts = common.split(".")
    prefixes = ["", *(".".join(parts[:count]) + "." for count in range(1, len(parts)))]
    return next(
        (
            prefix
            for prefix in prefixes
            if names and all(name[len(prefix) :] in wanted for name in names)
        ),
        None,
    )


def common_prefix(names: Iterable[str]) -> str:
    """Return the modules that all names begin with, with a dot at the end; empty if none."""
    names = sorted(names) or [""]
    first, last = names[0].split("."), names[-1].split(".")
    common = takewhile(lambda pair: pair[0] == pair[1], zip(first[:-1], last, strict=False))
    return "".join(f"{one}." for one, _ in common)


def renamed(part: StateDict, steps: Iterable[tuple[str, str]]) -> StateDict:
    """Return a state dict with beginnings of its names replaced.

    Args:
        part: The state dict.
        steps: What a name begins with, and what it begins with instead; one after the other.

    Raises:
        UsageError: Two entries get one name.
    """
    renaming = Renaming(tuple(steps))
    if not renaming.steps:
        return part
    new = {renaming(name): name for name in part.entries}
    if len(new) < len(part.entries):
        lost = next(name for name in part.entries if new[renaming(name)] != name)
        raise UsageError(f"two entries would be called {renaming(lost)!a}")

    def apply(mapping: Mapping[str, _T]) -> dict[str, _T]:
        return {renaming(name): value for name, value in mapping.items()}

    return replace(
        part,
        renaming=Renaming(part.renaming.steps + renaming.steps),
        stored_names={name: part.stored_names.get(old, old) for name, old in new.items()},
        entries=apply(part.entries),
        left_out=apply(part.left_out),
        layers={renaming.of_module(name): facts for name, facts in part.layers.items()},
        unsupported=apply(part.unsupported),
        versions={renaming.of_module(name): value for name, value in part.versions.items()},
        as_stored=part.as_stored or part,
    )


def _without_wrappers(part: StateDict) -> StateDict:
    """Return a state dict without what wrappers put into its names, and without their own counts.

    A wrapper is around every BatchNorm layer, or around all that its parent holds.
    """
    prefix = ""
    while found := _around_all(part, prefix):
        prefix += found
    bare = part
    if prefix:
        own = [name for name in part.entries if not name.startswith(prefix) and "." not in name]
        bare = replace(
            part,
            entries={name: entry for name, entry in part.entries.items() if name not in own},
            left_out={**part.left_out, **dict.fromkeys(own, "the wrapper's own")},
            as_stored=part,
        )
        bare = renamed(bare, ((prefix, ""),))
    # A module is loaded as it is: what lies within it keeps its names.
    while not part.is_module and (inner := list(_inner_wrappers(bare.entries))):
        bare = renamed(bare, inner)
    return bare


def _around_all(part: StateDict, prefix: str) -> str:
    """Return the wrapper that stands behind ``prefix`` in all that matters; empty if none does."""
    for wrapper in _WRAPPERS:
        longer = f"{prefix}{wrapper}."
        inside = sum(name.startswith(longer) for name in part.entries)
        if inside and all(
            name.startswith(longer) or _is_stray(name, part) for name in part.entries
        ):
            return f"{wrapper}."
    return ""


def _is_stray(name: str, part: StateDict) -> bool:
    """Return whether an entry is of what trains or averages a model rather than of the model."""
    if names_statistics(name):
        return False
    if "." in name:
        return name.partition(".")[0] in _BESIDE
    return part.entries[name].elements == 1


def _inner_wrappers(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield what to replace, and by what, where wrappers stand in the middle of names."""
    # Of each module: its children, and whether one of them is no module but an entry.
    children: dict[str, set[str]] = {}
    entries: set[str] = set()
    for name in names:
        parts = name.split(".")
        for depth in range(len(parts) - 1):
            children.setdefault(".".join(parts[:depth]), set()).add(parts[depth])
        entries.add(".".join(parts[:-1]))
    for parent, inside in children.items():
        (child, *others) = inside
        if others or parent in entries or child not in _WRAPPERS or not parent:
            continue
        # Some modules call the one layer that they hold `module`; those are no wrappers.
        if child != "module" or (
            f"{parent}.{child}" in children and f"{parent}.{child}" not in entries
        ):
            yield f"{parent}.{child}.", f"{parent}."


def _dotted(prefix: str) -> str:
    return prefix if prefix.endswith(".") else f"{prefix}."
