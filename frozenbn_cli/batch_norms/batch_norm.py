"""The BatchNorm layers of a checkpoint: the facts of each, and where each fact is known from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, get_args

from frozenbn_cli.batch_norms.dimensions import Surroundings
from frozenbn_cli.checkpoints import LayerFacts, StateDict, StoredTensor, names_statistics

if TYPE_CHECKING:
    from frozenbn_cli.architectures import RecognisedLayer

__all__ = [
    "DEFAULT_EPS",
    "EPS_SOURCES",
    "ROLES",
    "BatchNorm",
    "Eps",
    "EpsSource",
    "Role",
    "find_batch_norms",
]

DEFAULT_EPS = 1e-5
"""The eps of `torch.nn.BatchNorm2d` where none is given."""

ROLES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
"""The entries of a BatchNorm layer, in PyTorch's order."""

EpsSource = Literal["read", "given", "recognised", "assumed"]

EPS_SOURCES: tuple[EpsSource, ...] = get_args(EpsSource)
"""Where an eps can be known from, the best source first."""

Role = Literal["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


@dataclass(frozen=True, slots=True)
class Eps:
    """What is added to the variance.

    Attributes:
        value: As a Python float, exactly.
        source: ``read`` from the file or the model, ``given`` by the user, ``recognised`` as that
            of the architecture whose layers these are, or ``assumed`` to be PyTorch's default,
            since a state dict does not hold it.
    """

    value: float
    source: EpsSource


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """One BatchNorm layer.

    Attributes:
        name: The prefix of its entries; empty if the file holds this layer alone.
        tensors: Its entries by role; roles that the file does not hold are missing.
        channels: C, the number of channels.
        eps: With its source.
        spatial_dims: 2 for BatchNorm2d, 1 or 3 for its siblings, None where nothing tells.
        dims_source: The entry that proves the number of dimensions, or the architecture that has
            it; None if it is read from the layer's class or its code, or given, or nothing tells.
        dims_given: Whether the user said how many dimensions there are.
        momentum: Of the running average; None where the file is silent, and nothing was recognised,
            or it is cumulative.
        batches_tracked: How many batches formed the statistics; None where nothing counts them.
        type_name: The layer's class, with its module; None where the file is silent.
        frozen_already: Whether the file says that the layer is frozen.
        facts: All that the file says of it beside its entries.
        recognised: What the architecture says of it whose layers these are; None where none is
            recognised, or none was looked for.
        oddity: Why it is no plain BatchNorm, though it has running statistics; None if it is one.
        frozen_before: The eps with which frozenbn froze it, where the file shows that it is live
            again; None for all others.
    """

    name: str
    tensors: dict[Role, StoredTensor]
    channels: int
    eps: Eps
    spatial_dims: int | None = None
    dims_source: str | None = None
    momentum: float | None = None
    batches_tracked: int | None = None
    type_name: str | None = None
    frozen_already: bool = False
    facts: LayerFacts = field(default_factory=LayerFacts)
    recognised: RecognisedLayer | None = None
    dims_given: bool = False
    oddity: str | None = None
    frozen_before: Eps | None = None

    @property
    def takes_any_dims(self) -> bool:
        """Whether its class takes inputs of any dimensions, so that it is frozen for all."""
        return self.facts.takes_any_dims or self.type_name in _OF_ANY_DIMS

    @property
    def is_instance_norm(self) -> bool:
        """Whether it is an InstanceNorm, which has the same entries."""
        return (self.type_name or "").startswith("torch.nn.modules.instancenorm.")

    @property
    def dims_known(self) -> Literal["read", "inferred", "given"] | None:
        """Where the number of dimensions is known from; None where nothing tells."""
        if self.spatial_dims is None:
            return None
        if self.dims_given:
            return "given"
        return "inferred" if self.dims_source else "read"

    @property
    def momentum_source(self) -> EpsSource | None:
        """Where the momentum is known from; None where it is not."""
        if self.momentum is None:
            return None
        return "recognised" if self.facts.momentum is None else "read"

    @property
    def has_statistics(self) -> bool:
        """Whether there is a running mean or a running variance."""
        return "running_mean" in self.tensors or "running_var" in self.tensors

    def entry_name(self, role: Role) -> str:
        """Return the name of an entry of this layer in the state dict."""
        return f"{self.name}.{role}" if self.name else role


def find_batch_norms(
    state_dict: StateDict,
    *,
    eps: float | None = None,
    frozen: Mapping[str, Eps] | None = None,
    frozen_dims: Mapping[str, int] | None = None,
    may_recognise: bool = False,
) -> list[BatchNorm]:
    """Return the BatchNorm layers of a state dict, in the order of their first entries.

    A layer is a group of entries with ``running_mean`` or ``running_var``, or what the file itself
    calls one.

    Args:
        state_dict: Entries, and what the file says of the layers.
        eps: As given by the user, for every layer whose eps the file does not hold.
        frozen: The layers that frozenbn froze, with their eps.
        frozen_dims: How many spatial dimensions these had, as far as that was recorded.
        may_recognise: Look the layers up among those of public architectures, where the file
            leaves an eps open.
    """
    frozen, entries = frozen or {}, state_dict.entries
    stated = (*entries, *state_dict.unsupported)
    with_statistics = [name.rpartition(".")[0] for name in filter(names_statistics, stated)]
    names = dict.fromkeys([*with_statistics, *state_dict.layers])
    groups = {name: _group(name, entries) for name in names}
    facts_of = {name: state_dict.layers.get(name, LayerFacts()) for name in groups}
    channels_of = {name: _channels(tensors, facts_of[name]) for name, tensors in groups.items()}
    known: Mapping[str, RecognisedLayer] = {}
    if may_recognise and not all(facts_of[name].states_eps for name in groups.keys() - frozen):
        from frozenbn_cli.architectures import recognise  # Few files leave it open.

        known = recognise({name: channels_of[name] for name in groups if _has_mean(groups[name])})
    surroundings = Surroundings({name: entry.shape for name, entry in entries.items()}, channels_of)
    layers = []
    for name, tensors in groups.items():
        facts, before = facts_of[name], frozen.get(name)
        recorded = None if facts.is_certain else before
        # Code that uses several says more than a name.
        recognised = None if facts.eps_is_unsettled else known.get(name)
        dims, source = facts.spatial_dims or _dims_of_class(facts.type_name), facts.dims_source
        dims = dims or (frozen_dims or {}).get(name)
        if dims is None and recognised and recognised.spatial_dims:
            dims, source = recognised.spatial_dims, str(recognised.match.firsts[0])
        if dims is None:
            dims, source = surroundings.dims_of(name)
        layers.append(
            BatchNorm(
                name,
                tensors,
                channels_of[name],
                recorded or _eps(facts, eps, recognised),
                dims,
                source,
                _momentum(facts, recognised),
                _count(tensors.get("num_batches_tracked")),
                facts.type_name,
                facts.frozen or recorded is not None,
                facts,
                recognised,
                oddity=_unread(name, state_dict.unsupported) or _oddity(name, tensors, entries),
                frozen_before=before if facts.is_certain and not facts.frozen else None,
            )
        )
    return _like_their_siblings(layers)


def _like_their_siblings(layers: list[BatchNorm]) -> list[BatchNorm]:
    """Return the layers, of unknown dimensions as the others of their class, if these agree."""
    siblings: dict[str | None, dict[int, BatchNorm]] = {}
    for layer in layers:
        if layer.spatial_dims is not None:
            siblings.setdefault(layer.type_name, {}).setdefault(layer.spatial_dims, layer)
    return [
        replace(
            layer,
            spatial_dims=sibling.spatial_dims,
            dims_source=f"{sibling.name}, of the same class",
        )
        if layer.spatial_dims is None
        and layer.type_name is not None
        and not layer.takes_any_dims
        and len(known := siblings.get(layer.type_name, {})) == 1
        and (sibling := next(iter(known.values())))
        else layer
        for layer in layers
    ]


def _has_mean(tensors: Mapping[Role, StoredTensor]) -> bool:
    return "running_mean" in tensors


def _eps(facts: LayerFacts, given: float | None, recognised: RecognisedLayer | None) -> Eps:
    if facts.eps is not None and facts.states_eps:
        return Eps(facts.eps, "read")
    if given is not None:
        return Eps(given, "given")
    if facts.eps is not None:
        return Eps(facts.eps, "recognised")
    if recognised and recognised.eps is not None:
        return Eps(recognised.eps, "recognised")
    return Eps(DEFAULT_EPS, "assumed")


def _momentum(facts: LayerFacts, recognised: RecognisedLayer | None) -> float | None:
    # A class whose file does not hold a momentum has a cumulative average.
    if facts.momentum is not None or facts.type_name is not None or recognised is None:
        return facts.momentum
    return recognised.momentum


def _unread(name: str, unsupported: Mapping[str, str]) -> str | None:
    """Return which tensor of a layer cannot be read; None if all can."""
    prefix = f"{name}." if name else ""
    for role in ROLES:
        if role != "num_batches_tracked" and prefix + role in unsupported:
            return f"its {role} cannot be read ({unsupported[prefix + role]})"
    return None


def _oddity(
    name: str, tensors: Mapping[Role, StoredTensor], entries: Mapping[str, StoredTensor]
) -> str | None:
    """Return why a group of entries is sound, and no plain BatchNorm all the same."""
    prefix = f"{name}." if name else ""
    for stored in _STORED_OTHERWISE:
        if prefix + stored in entries:
            return f"pruned or parametrised: it has {stored}"
    if f"{prefix}scale" in entries and f"{prefix}zero_point" in entries:
        return "quantised: it has scale and zero_point"
    for role, tensor in tensors.items():
        if role != "num_batches_tracked" and len(tensor.shape) != 1:
            return f"its {role} has shape {list(tensor.shape)}, which no BatchNorm's has"
    only = set(tensors) - {"num_batches_tracked"}
    if len(only) == 1 and only <= {"running_mean", "running_var"}:
        return f"its {only.pop()} stands alone, as in no BatchNorm"
    if set(tensors) == {"running_mean", "running_var"} and tensors["running_var"].elements == 1:
        return "statistics of one number and nothing else, as of what normalises rewards or inputs"
    return None


_STORED_OTHERWISE = [
    form.format(role)
    for role in ("weight", "bias")
    for form in (
        "{}_orig",
        "{}_g",
        "parametrizations.{}.original",
        "parametrizations.{}.original0",
    )
]


def _channels(tensors: Mapping[Role, StoredTensor], facts: LayerFacts) -> int:
    for role in ("running_mean", "running_var", "weight"):
        if role in tensors:
            return tensors[role].elements
    return facts.channels or 0


_OF_ANY_DIMS = {
    "torch.nn.modules.batchnorm.SyncBatchNorm",
    "frozenbn_cli.nn.FrozenBatchNormNd",
}


def _dims_of_class(type_name: str | None) -> int | None:
    """Return the spatial dimensions that a class of PyTorch or timm stands for, if it does."""
    name = (type_name or "").rpartition(".")[2]
    return {"BatchNorm1d": 1, "BatchNorm2d": 2, "BatchNorm3d": 3, "BatchNormAct2d": 2}.get(
        name.removeprefix("Frozen")
    )


def _group(name: str, entries: Mapping[str, StoredTensor]) -> dict[Role, StoredTensor]:
    prefix = f"{name}." if name else ""
    return {role: entries[prefix + role] for role in ROLES if prefix + role in entries}  # type: ignore[misc]


def _count(tensor: StoredTensor | None) -> int | None:
    if tensor is None or tensor.elements != 1 or tensor.dtype.kind != "int":
        return None
    return int(tensor.values()[0])
