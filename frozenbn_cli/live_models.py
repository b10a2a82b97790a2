"""Models that are built rather than read: what they say of a file's layers, and how it fits them.

Imports torch. The code of a model is the user's, and may raise anything.
"""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from frozenbn_cli.checkpoints import LayerFacts, StateDict, StoredTensor
from frozenbn_cli.errors import FrozenBNError, UsageError
from frozenbn_cli.model_target import name_of_model
from frozenbn_cli.modules import BatchNormDecision, is_frozen_layer, survey_batch_norms

__all__ = [
    "Fit",
    "build",
    "described_by",
    "first_line",
    "fit_of",
    "foreign_code",
    "last_line",
    "load_state",
]

_SEED = 0
_NAMED = 4
_COUNT = "num_batches_tracked"


@contextlib.contextmanager
def foreign_code() -> Iterator[None]:
    """Run code of a model: seeded, its words on stderr, its warnings unheard."""
    with (
        torch.random.fork_rng(devices=[]),
        contextlib.redirect_stdout(sys.stderr),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        torch.manual_seed(_SEED)
        yield


def build(model: Callable[[], Any]) -> nn.Module:
    """Return a new model, in eval, on the CPU.

    Raises:
        UsageError: It cannot be built, or is no module.
    """
    try:
        with foreign_code():
            built = model()
    except FrozenBNError:
        raise
    except Exception as error:
        raise UsageError(
            f"building the model failed ({type(error).__name__}: {first_line(error)})",
            where=(f"model {name_of_model(model)}",),
            advice="Give its arguments with --model-arg.",
        ) from error
    if not isinstance(built, nn.Module):
        found = type(built).__name__
        raise UsageError(
            where=(f"model {name_of_model(model)}",), expected="a torch.nn.Module", found=found
        )
    return built.cpu().eval()


@dataclass(frozen=True, slots=True)
class Fit:
    """How the entries of a file fit a model.

    Attributes:
        missing: Names of entries that the model has and the file has not.
        unexpected: Names of entries that the file has and the model has not.
        reshaped: Names of entries whose shapes differ, with both shapes in words.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: Mapping[str, str] = field(default_factory=dict)

    @property
    def problems(self) -> tuple[str, ...]:
        """What does not fit, in words."""
        reshaped = [f"{name} ({shapes})" for name, shapes in self.reshaped.items()]
        kinds = (
            ("missing in the file", self.missing),
            ("not in the model", self.unexpected),
            ("of another shape", tuple(reshaped)),
        )
        return tuple(f"{len(names)} {kind}: {_listed(names)}" for kind, names in kinds if names)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def described_by(
    model: Callable[[], Any], part: StateDict, *, strict: bool = False
) -> tuple[StateDict, tuple[str, ...]]:
    """Return a state dict with what a model says of its layers, and what does not fit, in words.

    Each layer's class, eps and momentum come from the model, and whether it is a BatchNorm2d.

    Args:
        model: Returns the model that the state dict belongs to.
        part: The state dict, of a file that is no archive: that says itself what its layers are.
        strict: Whether to refuse entries that do not fit.

    Raises:
        UsageError: The model cannot be built, or contradicts what the file says of a layer; or
            entries do not fit, where that is ``strict``.
    """
    built = build(model)
    fit = fit_of(built, part.entries)
    if strict and fit.problems:
        raise _misfit(fit.problems)
    modules = dict(built.named_modules(remove_duplicate=False))
    facts: dict[str, LayerFacts] = {}
    for decision in survey_batch_norms(built):
        facts |= _facts(decision, modules[decision.names[0]])
    statistics = {name.rpartition(".")[0] for name in part.entries if name.endswith("running_var")}
    for name in statistics - facts.keys():
        if name in modules:
            facts[name] = _other_facts(modules[name])
    lost = {name.rpartition(".")[0] for name in fit.missing if "running_" in name}
    layers = dict(part.layers)
    for name, said in facts.items():
        if name not in lost:
            _check_eps(name, layers.get(name), said)
            layers[name] = said
    return replace(part, layers=layers), fit.problems


def fit_of(model: nn.Module, entries: Mapping[str, StoredTensor] | Mapping[str, Tensor]) -> Fit:
    """Return how entries fit a model, by their names and shapes."""
    wanted = {
        name: list(tensor.shape)
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor)
    }
    found = {name: list(tensor.shape) for name, tensor in entries.items()}
    return Fit(
        # A count of batches came to BatchNorm in PyTorch 0.4.1, and goes where a layer is frozen.
        tuple(name for name in wanted if name not in found and not name.endswith(_COUNT)),
        tuple(name for name in found if name not in wanted),
        {
            name: f"{found[name]} instead of {shape}"
            for name, shape in wanted.items()
            if found.get(name, shape) != shape
        },
    )


def _facts(decision: BatchNormDecision, layer: Any) -> dict[str, LayerFacts]:
    is_sibling = isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm3d))
    facts = LayerFacts(
        type_name=decision.type_name,
        channels=layer.num_features,
        eps=float(layer.eps),
        momentum=layer.momentum,
        code_is_known=True,
        # For what is of other dimensions, these are the reason.
        obstacle=None if is_sibling else decision.reason,
        spatial_dims=None if is_sibling else 2,
    )
    names = frozenset(decision.names)
    return {name: replace(facts, shares_with=names - {name}) for name in names}


def _other_facts(layer: Any) -> LayerFacts:
    """Return what is to be said of a layer with running statistics that is no BatchNorm."""
    kind = type(layer)
    type_name = f"{kind.__module__}.{kind.__qualname__}"
    eps = getattr(layer, "eps", None)
    frozen = is_frozen_layer(layer)
    return LayerFacts(
        type_name=type_name,
        eps=float(eps) if isinstance(eps, (int, float)) else None,
        frozen=frozen,
        code_is_known=True,
        obstacle=None if frozen else f"{type_name}, no BatchNorm",
        spatial_dims=2 if frozen else None,
    )


def _check_eps(name: str, in_file: LayerFacts | None, in_model: LayerFacts) -> None:
    if in_file is None or in_file.eps is None or in_model.eps is None:
        return
    if in_file.eps != in_model.eps:
        raise UsageError(
            f"layer {name!a}",
            expected=f"eps {in_file.eps:g}, as the file says",
            found=f"eps {in_model.eps:g} in the model",
            advice="Is this the model that the file belongs to?",
        )


def load_state(model: nn.Module, entries: Mapping[str, Tensor]) -> None:
    """Load entries into a model strictly, which takes over their dtypes.

    Raises:
        UsageError: They do not fit; all that does not is named.
    """
    own = model.state_dict(keep_vars=True)
    for name, tensor in own.items():
        # Tied tensors stay tied.
        if isinstance(tensor, Tensor) and name in entries and tensor.dtype != entries[name].dtype:
            tensor.data = tensor.data.to(entries[name].dtype)
    counts = {name: tensor for name, tensor in own.items() if name.endswith(_COUNT)}
    state: OrderedDict[str, Tensor] = OrderedDict({**counts, **entries})
    # Some modules (torchvision's MNASNet) insist on the version that a state dict is of.
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    try:
        with foreign_code():
            model.load_state_dict(state, strict=True)
    except Exception as error:
        raise _misfit(fit_of(model, entries).problems or (last_line(error),)) from error


def _misfit(problems: Iterable[str]) -> UsageError:
    return UsageError(
        "the file does not fit the model: " + "; ".join(problems),
        advice="Is it built with the arguments that it had? Give them with --model-arg.",
    )


def first_line(error: BaseException) -> str:
    """Return what an error says first."""
    lines = _lines(error)
    return lines[0][:200] if lines else type(error).__name__


def last_line(error: BaseException) -> str:
    """Return the last line of an error, which in TorchScript comes after its traceback."""
    lines = _lines(error)
    return lines[-1][:200] if lines else type(error).__name__


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()]
