"""Models of torchvision and timm by name, and the one whose layers a file has.

``torchvision:resnet50``, ``timm:resnet50`` or ``auto``: the arguments are found in the file, which
shows how many classes and channels the model has. Nothing is imported before that.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from frozenbn_cli.errors import UsageError
from frozenbn_cli.live_models.target import AUTO

if TYPE_CHECKING:  # The command line need not wait for what opens files.
    from frozenbn_cli.architectures import Match
    from frozenbn_cli.checkpoints import StateDict

__all__ = [
    "KnownModel",
    "architecture_of",
    "found_by_auto",
    "names_known_model",
]

_LIBRARIES = ("torchvision", "timm")
_FUNCTIONS = ("create_model",)


def names_known_model(target: str) -> bool:
    """Return whether what --model names is a model of a library, rather than a callable."""
    library, _, name = target.partition(":")
    return target == AUTO or (library in _LIBRARIES and name not in _FUNCTIONS)


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that a library builds by name, before it is known for which file.

    Attributes:
        target: ``torchvision:NAME``, ``timm:NAME``, or ``auto``.
        arguments: Those that are given, before those that the file shows.
    """

    target: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> Any:
        """Raise, since it takes a file to know how the model is built."""
        raise UsageError(f"--model {self.target}", expected="a file that it belongs to")

    def __str__(self) -> str:
        return self.target

    @property
    def identity(self) -> str:
        """What tells it from another, also on another machine."""
        arguments = json.dumps(dict(self.arguments), sort_keys=True, default=repr)
        return f"{self.target} {hashlib.sha256(arguments.encode()).hexdigest()[:16]}"


def architecture_of(part: StateDict) -> Match | None:
    """Return the architecture whose layers are those of a state dict.

    A prefix counts only where all entries have it.
    """
    from frozenbn_cli.architectures import recognise

    channels = {
        name.rpartition(".")[0]: tensor.elements
        for name, tensor in part.entries.items()
        if name.rpartition(".")[2] == "running_mean"
    }
    found = next(iter(recognise(channels).values()), None)
    if found and all(name.startswith(found.match.prefix) for name in part.entries):
        return found.match
    return None


def found_by_auto(part: StateDict) -> str:
    """Return the model that `auto` is likely to find for a state dict; empty if none."""
    match = architecture_of(part)
    if match is None or len({item.eps for item in match.candidates}) > 1:
        return ""
    installed = (one for one in match.firsts if importlib.util.find_spec(one.library))
    return next((f"{one.library} {one.name}" for one in installed), "")
