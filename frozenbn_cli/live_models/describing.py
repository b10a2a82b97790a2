"""What a model that is built says of a file's layers, and how the file fits it. Imports torch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from frozenbn_cli.checkpoints import LayerFacts, StateDict, StoredTensor
from frozenbn_cli.checkpoints.names import common_prefix, prefix_that_fits, renamed
from frozenbn_cli.errors import UsageError
from frozenbn_cli.freezing.frozen_elsewhere import is_frozen_layer
from frozenbn_cli.freezing.survey import (
    BatchNormDecision,
    dims_of_layer,
    survey_batch_norms,
)
from frozenbn_cli.live_models.building import build, state_of
from frozenbn_cli.live_models.guarding import foreign_code, last_line
from frozenbn_cli.live_models.target import is_recognised
from frozenbn_cli.wording import listed

__all__ = ["Fit", "described_by", "fit_of", "load_state"]

_NAMED = 4
_COUNT = "num_batches_tracked"


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
    def count(self) -> int:
        """How many entries do not fit."""
        return len(self.missing) + len(self.unexpected) + len(self.reshaped)

    @property
    def problems(self) -> tuple[str, ...]:
        """What does not fit, in words."""
        reshaped = [f"{name} ({shapes})" for name, shapes in self.reshaped.items()]
        kinds = (
            ("missing in the file", self.missing),
            ("not in the model", self.unexpected),
            ("of another shape", tuple(reshaped)),
        )
        return tuple(f"{len(names)} {kind}: {_named(names)}" for kind, names in kinds if names)

    @property
    def advice(self) -> str:
        """What can be done about it."""
        begin = common_prefix(self.unexpected)
        if begin and not common_prefix(self.missing).startswith(begin):
            return f"Take the beginning of the names off with --strip-prefix {begin}"
        if self.unexpected and (begin := common_prefix(self.missing)):
            return f"Put what the names lack in front of them with --add-prefix {begin}"
        return "Is it built with the arguments that it had? Give them with --model-arg."


def described_by(
    model: Callable[[], Any], part: StateDict, *, strict: bool = False, rename: bool = True
) -> tuple[StateDict, tuple[str, ...]]:
    """Return a state dict with what a model says of its layers, and what does not fit, in words.

    Each layer's class, eps and momentum come from the model, and how many dimensions it has.

    Args:
        model: Returns the model that the state dict belongs to.
        part: The state dict, of a file that is no archive: that says itself what its layers are.
        strict: Whether to refuse entries that do not fit.
        rename: Whether the names may be others, if these make every entry fit.

    Raises:
        UsageError: The model cannot be built, or contradicts what the file says of a layer; or
            entries do not fit, where that is ``strict``.
    """
    built = build(model)
    fit = fit_of(built, part.entries, part.unsupported)
    if fit.problems and rename:
        part, fit = _renamed_to_fit(built, part, fit)
    if strict and fit.problems:
        raise _misfit(fit.problems, fit.advice)
    modules = dict(built.named_modules(remove_duplicate=False))
    facts: dict[str, LayerFacts] = {}
    for decision in survey_batch_norms(built, dims=(1, 2, 3)):
        facts |= _facts(decision, modules[decision.names[0]])
    if is_recognised(model):
        facts = {name: replace(said, eps_is_recognised=True) for name, said in facts.items()}
    statistics = {name.rpartition(".")[0] for name in part.entries if name.endswith("running_var")}
    for name in statistics - facts.keys():
        if name in modules:
            facts[name] = _other_facts(modules[name])
        elif f"{name}.running_var" not in fit.unexpected:
            raise UsageError(
                f"layer {name!a}",
                expected="a module of this name in the model",
                found="one that its state_dict() renames",
                advice="Leave --model out.",
            )
    lost = {name.rpartition(".")[0] for name in fit.missing if "running_" in name}
    layers = dict(part.layers)
    for name, said in facts.items():
        if name not in lost:
            in_file = layers.get(name, LayerFacts())
            _check_eps(name, in_file, said)
            # A model with live layers may be that of a file which has frozen them since.
            since = in_file.frozen and said.obstacle is None
            layers[name] = replace(said, frozen=said.frozen or since)
    own = state_of(built)
    absent = {name: what for name, what in part.unsupported.items() if name in own}
    others = {name: what for name, what in part.unsupported.items() if name not in own}
    left_out = {**part.left_out, **others}
    return replace(part, layers=layers, unsupported=absent, left_out=left_out), fit.problems


def _renamed_to_fit(model: nn.Module, part: StateDict, fit: Fit) -> tuple[StateDict, Fit]:
    """Return a state dict with the names that the model has, if one prefix is all that differs.

    What seems to be of a wrapper may be the model's own attribute, and is kept then.
    """
    wanted = state_of(model).keys()
    if prefix := prefix_that_fits(part.entries, wanted):
        part = renamed(part, ((prefix, ""),))
    elif (
        prefix is None and part.as_stored and prefix_that_fits(part.as_stored.entries, wanted) == ""
    ):
        part = part.as_stored
    else:
        return part, fit
    return part, fit_of(model, part.entries, part.unsupported)


def fit_of(
    model: nn.Module,
    entries: Mapping[str, StoredTensor] | Mapping[str, Tensor],
    unread: Collection[str] = (),
) -> Fit:
    """Return how entries fit a model, by their names and shapes.

    Args:
        model: The model.
        entries: Of a file.
        unread: Names of entries of the file that cannot be read, and so are not among these.
    """
    wanted = {
        name: list(tensor.shape)
        for name, tensor in state_of(model).items()
        if isinstance(tensor, Tensor)
    }
    found = {name: list(tensor.shape) for name, tensor in entries.items()}
    return Fit(
        # A count of batches came to BatchNorm in PyTorch 0.4.1, and goes where a layer is frozen.
        tuple(
            name
            for name in wanted
            if name not in found and name not in unread and not name.endswith(_COUNT)
        ),
        tuple(name for name in found if name not in wanted),
        {
            name: f"{found[name]} instead of {shape}"
            for name, shape in wanted.items()
            if found.get(name, shape) != shape
        },
    )


def _facts(decision: BatchNormDecision, layer: Any) -> dict[str, LayerFacts]:
    dims = dims_of_layer(layer)
    facts = LayerFacts(
        type_name=decision.type_name,
        channels=getattr(layer, "num_features", None),
        eps=_eps_of(layer),
        momentum=getattr(layer, "momentum", None),
        code_is_known=True,
        obstacle=decision.reason,
        spatial_dims=dims,
        takes_any_dims=dims is None and decision.frozen,
    )
    names = frozenset(decision.names)
    return {name: replace(facts, shares_with=names - {name}) for name in names}


def _other_facts(layer: Any) -> LayerFacts:
    """Return what is to be said of a layer with running statistics that is no BatchNorm."""
    kind = type(layer)
    type_name = f"{kind.__module__}.{kind.__qualname__}"
    frozen = is_frozen_layer(layer)
    return LayerFacts(
        type_name=type_name,
        eps=_eps_of(layer),
        frozen=frozen,
        code_is_known=True,
        obstacle=None if frozen else f"{type_name}, no BatchNorm",
        spatial_dims=dims_of_layer(layer),
    )


def _eps_of(layer: Any) -> float | None:
    eps = getattr(layer, "eps", None)
    return float(eps) if isinstance(eps, (int, float)) else None


def _check_eps(name: str, in_file: LayerFacts, in_model: LayerFacts) -> None:
    if in_file.eps is None or in_model.eps is None:
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

    Archives also hold the buffers that a state dict leaves out.

    Raises:
        UsageError: They do not fit; all that does not is named.
    """
    own = state_of(model)
    for name, tensor in own.items():
        # Tied tensors stay tied.
        if isinstance(tensor, Tensor) and name in entries and tensor.dtype != entries[name].dtype:
            tensor.data = tensor.data.to(entries[name].dtype)
    # What is no tensor (`get_extra_state`) or none that can be read is not in what comes of a file.
    kept = {
        name: value
        for name, value in own.items()
        if name.endswith(_COUNT) or not isinstance(value, Tensor) or not _is_plain(value)
    }
    beside = {
        name: buffer
        for name, buffer in model.named_buffers(remove_duplicate=False)
        if name in entries.keys() - own.keys()
    }
    given = {name: entry for name, entry in entries.items() if name not in beside}
    state: OrderedDict[str, Any] = OrderedDict({**kept, **given})
    # Some modules (torchvision's MNASNet) insist on the version that a state dict is of.
    state._metadata = own._metadata  # type: ignore[attr-defined]
    try:
        with foreign_code():
            model.load_state_dict(state, strict=True)
            for name, buffer in beside.items():
                buffer.data = entries[name].clone()
    except Exception as error:
        fit = fit_of(model, entries)
        raise _misfit(fit.problems or (last_line(error),), fit.advice) from error


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta)


def _named(names: Collection[str]) -> str:
    """Return the first names, or what all of many begin with."""
    begin = common_prefix(names) if len(names) > _NAMED else ""
    return f"all begin with {begin!a}" if begin else listed(names, _NAMED)


def _misfit(problems: Iterable[str], advice: str) -> UsageError:
    return UsageError(
        "the file does not fit the model: " + "; ".join(problems),
        advice=advice,
    )
