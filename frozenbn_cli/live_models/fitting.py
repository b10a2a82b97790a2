"""Finds how a library builds the model that a state dict belongs to. Imports torch.

Models are built without memory for their weights, and compared with the state dict by the names and
shapes of all entries. No weights are downloaded.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from frozenbn_cli.architectures import Architecture, Candidate, Match
from frozenbn_cli.checkpoints import StateDict, StoredTensor
from frozenbn_cli.errors import DependencyError, UsageError, located
from frozenbn_cli.live_models.building import state_of
from frozenbn_cli.live_models.describing import Fit, fit_of
from frozenbn_cli.live_models.guarding import first_line, foreign_code
from frozenbn_cli.live_models.known_models import KnownModel, architecture_of
from frozenbn_cli.live_models.target import AUTO, called
from frozenbn_cli.wording import is_it

__all__ = ["FittedModel", "fitted"]

_Builder = Callable[..., nn.Module]
_Arguments = Mapping[str, Any]

_PROBES = {"num_classes": (11, 13), "in_chans": (5, 7)}
"""Arguments that the shapes of a state dict show, and two values that tell which shapes."""

_AUXILIARY = ({"aux_loss": True}, {"aux_logits": False})
"""What torchvision calls a head that a state dict has or lacks."""


@dataclass(frozen=True, slots=True)
class FittedModel:
    """What builds the model of a state dict: call it for a new one.

    Attributes:
        known: What was asked for.
        architecture: What was found, in the version that is installed.
        arguments: With which it is built.
    """

    known: KnownModel
    architecture: Architecture
    arguments: Mapping[str, Any]

    def __call__(self) -> nn.Module:
        """Return a new model, without pretrained weights."""
        return _builder(self.architecture)(**self.arguments)

    def __str__(self) -> str:
        return f"{self.architecture}{', recognised' if self.is_recognised else ''}"

    @property
    def python(self) -> tuple[str, str]:
        """How it is built in Python: an import, and a call."""
        name = repr(self.architecture.name)
        if self.architecture.library == "timm":
            return "import timm", called("timm.create_model", self.arguments, name)
        call = called("get_model", self.arguments, name)
        return "from torchvision.models import get_model", call

    @property
    def is_recognised(self) -> bool:
        """Whether nobody said that it is this model."""
        return self.known.target == AUTO

    @property
    def identity(self) -> str:
        """That of what was asked for."""
        return self.known.identity


def fitted(known: KnownModel, part: StateDict) -> FittedModel:
    """Return what builds the model of a state dict.

    Raises:
        DependencyError: The library is not installed.
        UsageError: It has no such model; or that does not fit; or several do and differ in eps.
    """
    with located(f"--model {known.target}"):
        return _recognised(known, part) if known.target == AUTO else _named(known, part)


def _named(known: KnownModel, part: StateDict) -> FittedModel:
    library, _, name = known.target.partition(":")
    architecture = Architecture(library, _version(library), name)
    _check_name(architecture)
    match = architecture_of(part)
    entries = _Entries.of(part, match)
    found, problems = _fit(known, architecture, entries)
    if found is None:
        raise UsageError(
            f"the file does not fit it: {problems}",
            advice="Is it built with the arguments that it had? Give them with --model-arg.",
        )
    ways = _ways(architecture, match.candidates if match else ())
    if len({item.eps for item in ways}) > 1:
        listed = ", ".join(f"{_eps_words(item)} with {item.kinds[0].class_name}" for item in ways)
        raise UsageError(
            f"{library} builds it in several ways, with eps {listed}",
            advice="Name a function that builds yours: path/file.py:callable.",
        )
    return found


def _ways(architecture: Architecture, candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return those that are an architecture: as it is installed, or in any version if unknown."""
    named = [
        (candidate, [one.version for one in candidate.architectures if _same(one, architecture)])
        for candidate in candidates
    ]
    installed = [candidate for candidate, versions in named if architecture.version in versions]
    return installed or [candidate for candidate, versions in named if versions]


def _same(one: Architecture, other: Architecture) -> bool:
    return (one.library, one.name) == (other.library, other.name)


def _recognised(known: KnownModel, part: StateDict) -> FittedModel:
    match = architecture_of(part)
    if match is None:
        raise UsageError(
            expected="the layers of one architecture of torchvision or timm",
            found="none that is known",
            advice="Name the model: --model package.module:callable.",
        )
    entries = _Entries.of(part, match)
    fits: list[tuple[Candidate, FittedModel]] = []
    problems: list[str] = []
    for candidate in match.candidates:
        for architecture in _installed(candidate):
            found, problem = _fit(known, architecture, entries)
            if found:
                fits.append((candidate, found))
                break
            problems.append(f"{architecture}: {problem}")
    if not fits:
        raise UsageError(
            f"no architecture fits the file: {'; '.join(problems[:2]) or 'none is installed'}",
            advice="Name the model: --model package.module:callable.",
        )
    if len({candidate.eps for candidate, _ in fits}) > 1:
        listed = ", ".join(
            f"{found.architecture} with eps {_eps_words(candidate)}" for candidate, found in fits
        )
        first = fits[-1][1].architecture
        raise UsageError(
            f"several architectures fit the file, and differ in eps: {listed}",
            advice=f"Name yours, such as --model {first.library}:{first.name}.",
        )
    return fits[0][1]


def _installed(candidate: Candidate) -> Iterator[Architecture]:
    """Yield the architectures of a candidate that can be built here, in the installed version."""
    for one in candidate.architectures:
        try:
            architecture = Architecture(one.library, _version(one.library), one.name)
        except DependencyError:
            continue
        if one.name in _names(one.library):
            yield architecture


def _eps_words(candidate: Candidate) -> str:
    values = sorted({eps for eps in candidate.eps if eps is not None})
    return " and ".join(f"{eps:g}" for eps in values)


# The libraries


def _library(name: str) -> Any:
    try:
        return importlib.import_module("timm" if name == "timm" else "torchvision.models")
    except ImportError as error:
        raise DependencyError(f"{name} cannot be imported ({error})") from error


def _version(library: str) -> str:
    _library(library)
    version: str = importlib.import_module(library).__version__
    return version.partition("+")[0]


def _names(library: str) -> set[str]:
    return set(_library(library).list_models())


def _check_name(one: Architecture) -> None:
    names = _names(one.library)
    # timm takes the name of pretrained weights behind a dot.
    name = one.name.partition(".")[0]
    if name not in names:
        raise UsageError(f"{one.library} has no model {one.name!a}", advice=is_it(name, names))


def _builder(one: Architecture) -> _Builder:
    library = _library(one.library)
    if one.library == "timm":
        return partial(library.create_model, one.name, pretrained=False)
    builder = library.get_model_builder(one.name)
    taken = inspect.signature(builder).parameters
    without = {name: None for name in ("weights", "weights_backbone") if name in taken}
    return partial(builder, **without)


# Arguments


@dataclass(frozen=True, slots=True)
class _Entries:
    """What a state dict holds, without the prefix that all of its entries have.

    Attributes:
        readable: Its entries.
        unread: Names of those that cannot be read.
    """

    readable: Mapping[str, StoredTensor]
    unread: frozenset[str]

    @classmethod
    def of(cls, part: StateDict, match: Match | None) -> _Entries:
        prefix = match.prefix if match else ""
        return cls(
            {name.removeprefix(prefix): entry for name, entry in part.entries.items()},
            frozenset(name.removeprefix(prefix) for name in part.unsupported),
        )

    def fit(self, model: nn.Module) -> Fit:
        """Return how they fit a model."""
        return fit_of(model, self.readable, self.unread)


def _fit(known: KnownModel, one: Architecture, entries: _Entries) -> tuple[FittedModel | None, str]:
    """Return what builds an architecture so that it takes entries, or why nothing does."""
    builder = _builder(one)
    fits = [(entries.fit(_blank(builder, known.arguments)), known.arguments)]
    if _may_be_settled(fits[0][0]):
        fits += _tried(builder, known.arguments, entries)
    best, arguments = min(fits, key=lambda item: item[0].count)
    if best.problems:
        return None, "; ".join(best.problems)
    return FittedModel(known, one, arguments), ""


def _may_be_settled(fit: Fit) -> bool:
    """Return whether arguments may make up for a misfit: of entries that are too many, few do."""
    return bool(fit.problems) and all("aux" in name.lower() for name in fit.unexpected)


def _tried(
    builder: _Builder, given: _Arguments, entries: _Entries
) -> Iterator[tuple[Fit, _Arguments]]:
    """Yield how entries fit models that are built with what they themselves suggest."""
    for further in ({}, *_AUXILIARY):
        arguments: dict[str, Any] = {**further, **given}
        with suppress(UsageError):  # It takes no such argument.
            fit = entries.fit(_blank(builder, arguments))
            yield fit, arguments
            for name in _PROBES:
                value = None if name in given else _shown(builder, arguments, name, entries, fit)
                if value is not None:
                    arguments = {**arguments, name: value}
            yield entries.fit(_blank(builder, arguments)), arguments


def _shown(
    builder: _Builder,
    arguments: _Arguments,
    name: str,
    entries: _Entries,
    fit: Fit,
) -> int | None:
    """Return the value of an argument that makes up for a misfit; None if none does.

    Shapes are taken to grow with it evenly, which two values of it tell.
    """
    low, high = _PROBES[name]
    try:
        before, after = (
            _shapes(_blank(builder, {**arguments, name: value})) for value in (low, high)
        )
    except UsageError:  # It takes no such argument.
        return None
    depending = [entry for entry in before if before[entry] != after.get(entry)]
    if (
        name == "num_classes"
        and depending
        and fit.missing
        and not entries.readable.keys() & set(depending)
    ):
        return 0  # timm leaves out a head without classes.
    values = {
        low + (found - one) * (high - low) / (other - one)
        for entry in depending
        if entry in fit.reshaped
        for one, other, found in zip(
            before[entry], after[entry], entries.readable[entry].shape, strict=False
        )
        if one != other
    }
    value = values.pop() if len(values) == 1 else 0.0
    return int(value) if value >= 1 and value == int(value) else None


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    state = state_of(model).items()
    return {name: tuple(tensor.shape) for name, tensor in state if isinstance(tensor, Tensor)}


def _blank(builder: _Builder, arguments: _Arguments) -> nn.Module:
    """Return a model without memory for its weights, where it can be built so.

    Raises:
        UsageError: It cannot be built at all.
    """
    try:
        with foreign_code(), torch.device("meta"):
            return builder(**arguments)
    except Exception:  # Some take numbers from tensors, which hold none then.
        try:
            with foreign_code():
                return builder(**arguments)
        except Exception as error:
            raise UsageError(
                f"building the model failed ({type(error).__name__}: {first_line(error)})"
            ) from error
