"""What a conversion will do, as a list of explicit edits, before anything is written."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from frozenbn_cli.batch_norms.batch_norm import BatchNorm, find_batch_norms
from frozenbn_cli.batch_norms.findings import STRUCTURAL, Finding, eps_matters_together, examine
from frozenbn_cli.batch_norms.left_alone import reason_left
from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.checkpoints import StateDict
from frozenbn_cli.errors import UsageError
from frozenbn_cli.selection import Selection, checked_dims

if TYPE_CHECKING:
    from frozenbn_cli.architectures import Match

__all__ = ["Edit", "LayerPlan", "Plan", "check_eps_is_wanted", "make_plan", "plan_state_dict"]


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What happens to one BatchNorm layer.

    Attributes:
        layer: The layer.
        action: ``freeze`` it, or ``leave`` it as it is.
        reason: Why it is left.
        findings: On its statistics.
        selected: Whether it would be frozen if its statistics allowed it.
        deselected: Whether the user's selection alone leaves it out.
    """

    layer: BatchNorm
    action: Literal["freeze", "leave"]
    reason: str | None
    findings: tuple[Finding, ...]
    selected: bool
    deselected: bool = False

    @property
    def broken(self) -> bool:
        """Whether the layer was to be frozen and its statistics are broken or never formed."""
        return self.selected and any(finding.severity == "error" for finding in self.findings)

    @property
    def stays_live(self) -> bool:
        """Whether it is left for its dimensions, and nobody chose that."""
        return any(finding is _STAYS_LIVE for finding in self.findings)


@dataclass(frozen=True, slots=True)
class Edit:
    """A change to one entry; every entry without an edit is copied byte for byte.

    Attributes:
        kind: ``drop`` the entry, or ``rewrite`` its values.
        entry: Its name.
        reason: Why.
    """

    kind: Literal["drop", "rewrite"]
    entry: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a conversion will do.

    Attributes:
        layers: Every BatchNorm layer, in the file's order.
        edits: Every change to the state dict.
    """

    layers: tuple[LayerPlan, ...]
    edits: tuple[Edit, ...]

    @property
    def frozen(self) -> tuple[LayerPlan, ...]:
        """The layers to freeze."""
        return tuple(layer for layer in self.layers if layer.action == "freeze")

    @property
    def selected(self) -> tuple[LayerPlan, ...]:
        """The layers to freeze if their statistics allow it."""
        return tuple(layer for layer in self.layers if layer.selected)

    @property
    def left(self) -> tuple[LayerPlan, ...]:
        """The layers to leave alone."""
        return tuple(layer for layer in self.layers if layer.action == "leave")

    @property
    def broken(self) -> tuple[LayerPlan, ...]:
        """The layers whose statistics stand against freezing them."""
        return tuple(layer for layer in self.layers if layer.broken)

    @property
    def matches(self) -> tuple[Match, ...]:
        """The groups of layers that were recognised as those of an architecture."""
        found = (item.layer.recognised.match for item in self.layers if item.layer.recognised)
        return tuple({id(match): match for match in found}.values())

    @property
    def forceable(self) -> bool:
        """Whether some of the broken layers can be frozen all the same."""
        return any(layer.action == "freeze" for layer in self.broken)

    @property
    def advice(self) -> str:
        """How to freeze more; empty where the user left nothing open."""
        stays = any(layer.stays_live for layer in self.layers)
        return "--dims 1,2,3 freezes its BatchNorm1d and BatchNorm3d." if stays else ""

    def kept(self, names: Iterable[str]) -> list[str]:
        """Return those of an input's entry ``names`` that the output has too, in order."""
        dropped = {edit.entry for edit in self.edits if edit.kind == "drop"}
        return [name for name in names if name not in dropped]


def plan_state_dict(
    part: StateDict,
    metadata: Mapping[str, str],
    *,
    eps: float | None,
    selection: Selection,
    dims: Collection[int] | None = None,
    may_recognise: bool = True,
) -> Plan:
    """Find the BatchNorm layers of a state dict and decide what happens to each.

    Args:
        part: The state dict.
        metadata: Of its file, which may say what frozenbn froze before.
        eps: As given by the user, for the layers whose eps the file does not hold.
        selection: The user's choice among the layers.
        dims: The spatial dimensions of the layers to freeze, of 1, 2 and 3; None for no choice,
            which is 2.
        may_recognise: Look layers up whose eps is not known among those of public architectures.

    Raises:
        UsageError: A pattern of the selection matches no layer, or a dimension is none of these.
    """
    record = ConversionRecord.from_metadata(metadata)
    record = record.of(part) if record else None
    layers = find_batch_norms(
        part,
        eps=eps,
        frozen=record.layers if record else None,
        frozen_dims=record.dims_of if record else None,
        may_recognise=may_recognise,
    )
    return make_plan(layers, selection, dims)


def check_eps_is_wanted(plan: Plan, eps: float | None) -> None:
    """Refuse an eps that the user gives where none is wanted.

    Raises:
        UsageError: The eps of every layer is known without.
    """
    sources = {item.layer.eps.source for item in plan.layers}
    if eps is not None and sources and "given" not in sources:
        raise UsageError("eps is given, and the file holds that of every layer")


def make_plan(
    layers: Iterable[BatchNorm], selection: Selection, dims: Collection[int] | None = None
) -> Plan:
    """Decide which layers are frozen, and which edits that takes.

    Args:
        layers: The BatchNorm layers of a checkpoint.
        selection: The user's choice among them.
        dims: As for `plan_state_dict`.

    Raises:
        UsageError: As `plan_state_dict`.
    """
    layers = tuple(layers)
    meant = checked_dims(dims)
    selection.check(layer.name for layer in layers)
    layers = _as_said(layers, selection, meant)
    plans = []
    for layer in layers:
        is_other = layer.oddity or layer.is_instance_norm
        findings = () if is_other else examine(layer)
        reason = reason_left(layer, meant)
        unselected = None if reason else selection.reason_left_out([layer.name])
        reason = reason or unselected
        selected = reason is None
        if selected and (unfit := [item for item in findings if item.code in STRUCTURAL]):
            reason = f"cannot be frozen: {unfit[0].message}"
        findings += (*_on_dimensions(layer, dims), *_on_class(layer), *_on_mode(layer, reason))
        action: Literal["freeze", "leave"] = "leave" if reason else "freeze"
        deselected = unselected is not None
        plans.append(LayerPlan(layer, action, reason, findings, selected, deselected))
    plans = _together(_with_eps_of_all(plans))
    edits = tuple(
        Edit("drop", plan.layer.entry_name("num_batches_tracked"), "a frozen layer counts nothing")
        for plan in plans
        if plan.action == "freeze" and "num_batches_tracked" in plan.layer.tensors
    )
    return Plan(tuple(plans), edits)


def _with_eps_of_all(plans: list[LayerPlan]) -> list[LayerPlan]:
    """Return the plans with what an eps that the file does not hold does to the whole model."""
    found: dict[str, Finding] = {}
    for source in ("assumed", "recognised"):
        sound = [
            plan.layer
            for plan in plans
            if plan.action == "freeze"
            and plan.layer.eps.source == source
            and not any(
                finding.severity == "error" or finding.code in ("eps_matters", "eps_ambiguous")
                for finding in plan.findings
            )
        ]
        found |= eps_matters_together(sound)
    return [
        replace(plan, findings=(*plan.findings, found[plan.layer.name]))
        if plan.layer.name in found
        else plan
        for plan in plans
    ]


def _as_said(
    layers: Iterable[BatchNorm], selection: Selection, meant: Collection[int]
) -> tuple[BatchNorm, ...]:
    """Return the layers with what the user says of those that the file cannot tell.

    Raises:
        UsageError: The file tells it.
    """
    dims = dict(selection.dims_of)
    said = []
    for layer in layers:
        if layer.name in dims and layer.dims_known == "read":
            raise UsageError(
                f"dimensions are given of layer {layer.name!a}, and it is known that there are "
                f"{layer.spatial_dims}"
            )
        given = selection.said_dims(layer.name, meant)
        said.append(_with_dims(layer, given) if layer.dims_known != "read" else layer)
    undecided = [layer for layer in said if layer.facts.may_be_frozen]
    if selection.state and not undecided:
        raise UsageError(
            f"layers are said to be {selection.state}, and the file tells it of every layer"
        )
    if selection.state:
        return tuple(_decided(layer, frozen=selection.state == "frozen") for layer in said)
    return tuple(said)


def _with_dims(layer: BatchNorm, dims: int | None) -> BatchNorm:
    if dims is None:
        return layer
    return replace(layer, spatial_dims=dims, dims_source=None, dims_given=True)


def _decided(layer: BatchNorm, *, frozen: bool) -> BatchNorm:
    """Return a layer as a live or a frozen one, if the file does not tell which it is."""
    if not layer.facts.may_be_frozen:
        return layer
    facts = replace(layer.facts, may_be_frozen=False, frozen=frozen)
    return replace(layer, frozen_already=frozen, facts=facts)


def _together(plans: list[LayerPlan]) -> list[LayerPlan]:
    """Leave layers alone that share tensors, in the output too, with one that is left alone.

    Raises:
        UsageError: It is left alone because of the user's selection.
    """
    left = {plan.layer.name: plan for plan in plans if plan.action == "leave"}
    together = []
    for plan in plans:
        others = sorted(plan.layer.facts.shares_with & left.keys())
        if plan.action == "freeze" and others:
            if left[others[0]].deselected:
                raise UsageError(
                    f"layers {plan.layer.name!a} and {others[0]!a} share tensors",
                    advice="Select both or neither.",
                )
            reason = f"shares tensors with {others[0]}, which is left alone"
            together.append(replace(plan, action="leave", reason=reason))
        else:
            together.append(plan)
    return together


def _on_dimensions(layer: BatchNorm, dims: Collection[int] | None) -> tuple[Finding, ...]:
    if (
        layer.oddity
        or layer.frozen_already
        or layer.facts.may_be_frozen
        or layer.takes_any_dims
        or not layer.has_statistics
        or layer.is_instance_norm
    ):
        return ()
    meant = checked_dims(dims)
    if layer.spatial_dims is None and meant == {1, 2, 3}:
        return (_DIMS_UNKNOWN,)
    if layer.spatial_dims is None:
        return (_DIMS_ASSUMED,) if 2 in meant else ()
    # A choice that leaves it out is no news.
    return () if layer.spatial_dims in meant or dims is not None else (_STAYS_LIVE,)


def _on_mode(layer: BatchNorm, reason: str | None) -> Iterator[Finding]:
    """Yield what there is to say of a program that was exported in training mode, or put in it."""
    if layer.facts.exported_in_training and reason is None:
        said = "took batch statistics, takes running ones once frozen"
        yield Finding("exported_in_training", "warning", said)
    ours = (layer.type_name or "").startswith("frozenbn_cli.nn.Frozen")
    if layer.frozen_before or (ours and layer.facts.is_certain and not layer.frozen_already):
        said = "was frozen, and something has made it live again"
        if (before := layer.frozen_before) and before.value != layer.eps.value:
            said += f", with eps {layer.eps.value!r} instead of {before.value!r}"
        yield Finding("revived", "warning", said)


def _on_class(layer: BatchNorm) -> tuple[Finding, ...]:
    """Return what there is to say of a layer that is no BatchNorm in all that have such layers."""
    if layer.type_name or not layer.recognised or not layer.recognised.not_batch_norm:
        return ()
    others = ", ".join(layer.recognised.not_batch_norm)
    return (Finding("class_ambiguous", "note", f"{others}, which is no BatchNorm"),)


_DIMS_ASSUMED = Finding(
    "dims_assumed",
    "note",
    "nothing proves how many dimensions it has: it is taken for a BatchNorm2d, and does not fit a "
    "model that has another there",
)
_DIMS_UNKNOWN = Finding(
    "dims_unknown",
    "note",
    "nothing proves how many dimensions it has: it is frozen whichever they are",
)
_STAYS_LIVE = Finding(
    "stays_live",
    "note",
    "BatchNorm1d and BatchNorm3d stay live beside frozen layers; --dims 1,2,3 freezes them too",
)
