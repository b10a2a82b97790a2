"""Plans a conversion: what becomes of the layers, and of the archive that they may be in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from frozenbn_cli.batch_norms.frozen_model import FrozenModel
from frozenbn_cli.batch_norms.plan import Plan, check_eps_is_wanted, plan_state_dict
from frozenbn_cli.checkpoints import Checkpoint, StateDict, StoredTensor
from frozenbn_cli.containers.rewriting import Rewriting
from frozenbn_cli.conversion.terms import ConvertOptions
from frozenbn_cli.errors import UsageError
from frozenbn_cli.live_models.resolving import fitted_to
from frozenbn_cli.live_models.target import no_model_wanted
from frozenbn_cli.outputs import OutputFormat, own_format
from frozenbn_cli.outputs.rewritable import Rewritable, rewritable
from frozenbn_cli.stages import import_torch_for

if TYPE_CHECKING:
    from frozenbn_cli.batch_norms.target_eps import Retargeting
    from frozenbn_cli.training.edited import EditedCheckpoint

__all__ = ["ConversionPlan", "parts_to_convert", "plan_conversion"]

_WITH_OWN_EPS = ("torchscript", "pt2")
_MADE: Mapping[OutputFormat, str] = {
    "torchscript": "a TorchScript archive",
    "pt2": "an exported program",
}


@dataclass(frozen=True, slots=True)
class ConversionPlan:
    """What is to be written, as far as it is known before the first byte is.

    Attributes:
        checkpoint: The input.
        to: The format of the output.
        options: How to convert, with what builds the very model that fits the file.
        models: The state dicts that are meant, with what becomes of their layers.
        archive: The input as an archive that can be edited, where the output is the same kind.
        rewriting: What becomes of that archive; None where nothing does.
        edited: The training checkpoint as it is to be, where the output is one.
    """

    checkpoint: Checkpoint
    to: OutputFormat
    options: ConvertOptions
    models: tuple[FrozenModel, ...]
    archive: Rewritable | None = None
    rewriting: Rewriting | None = None
    edited: EditedCheckpoint | None = None

    @property
    def main(self) -> FrozenModel:
        """The model that is reported on first: the first of which something is frozen."""
        return next((model for model in self.models if model.frozen), self.models[0])

    @property
    def part(self) -> StateDict:
        """The state dict of the main model."""
        return self.main.part

    @property
    def is_whole(self) -> bool:
        """Whether the output holds all that the input does, whatever it is."""
        return self.rewriting is not None or self.edited is not None

    def kept(self) -> dict[str, StoredTensor]:
        """Return the entries that the output is to have, by name."""
        main = self.main
        entries = main.part.entries
        kept = {name: entries[name] for name in main.plan.kept(entries)}
        return kept | (main.retargeting.entries(main.plan) if main.retargeting else {})


def parts_to_convert(
    checkpoint: Checkpoint, key: str | None, to: OutputFormat
) -> tuple[StateDict, ...]:
    """Return the state dicts that are meant: all with BatchNorm in a training checkpoint, else one.

    Args:
        checkpoint: The input.
        key: The one that is meant; None for what the file itself makes plain.
        to: The format of the output.
    """
    if to == "checkpoint" and key is None:
        several = tuple(part for part in checkpoint.state_dicts if part.has_batch_norm)
        return several or (checkpoint.state_dict(None),)
    return (checkpoint.state_dict(key),)


def plan_conversion(
    checkpoint: Checkpoint,
    parts: Sequence[StateDict],
    options: ConvertOptions,
    *,
    to: OutputFormat,
) -> ConversionPlan:
    """Return what becomes of the layers of state dicts, and of the archive that they are in.

    Args:
        checkpoint: The input.
        parts: The state dicts of it that are meant; one, unless the output is a training
            checkpoint.
        options: How to convert.
        to: The format of the output.

    Raises:
        UsageError: An option does not fit the file or the output, or there is neither an archive
            nor a model to make one of.
        RefusedError: The file has layers that are frozen already, for another eps.
        UnsupportedFileError: The archive cannot be edited.
    """
    own = own_format(checkpoint)
    if options.model is not None:
        if own == to:
            raise no_model_wanted()
        options = replace(options, model=fitted_to(parts[0], options.model))
    models: list[FrozenModel] = []
    archive = rewriting = retargeting = None
    for stored in parts:
        part = stored if own else _described(stored, options)
        plan = _planned_layers(checkpoint, part, options)
        if to == own:  # Then one state dict is meant.
            archive = rewritable(checkpoint, part)
            plan, rewriting = _rewritten(archive, plan)
        else:
            _check_can_be_made(checkpoint, part, options, to=to)
        if options.target_eps is not None:
            plan, retargeting = _retargeted(plan, options.target_eps, to)
        models.append(FrozenModel(part, plan, retargeting))
    return ConversionPlan(checkpoint, to, options, tuple(models), archive, rewriting)


def _described(part: StateDict, options: ConvertOptions) -> StateDict:
    """Return a state dict with what the model says of its layers, if there is one."""
    if options.model is None:
        return part
    live_models = import_torch_for("frozenbn_cli.live_models.describing")
    described, _ = live_models.described_by(
        options.model, part, strict=True, rename=not options.names_are_given
    )
    return cast(StateDict, described)


def _planned_layers(checkpoint: Checkpoint, part: StateDict, options: ConvertOptions) -> Plan:
    plan = plan_state_dict(
        part,
        checkpoint.metadata,
        eps=options.eps,
        selection=options.selection,
        dims=options.dims,
        may_recognise=options.may_recognise,
    )
    check_eps_is_wanted(plan, options.eps)
    return plan


def _rewritten(archive: Rewritable | None, plan: Plan) -> tuple[Plan, Rewriting | None]:
    """Return how an archive changes, and the plan with what that takes."""
    if archive is None or not plan.frozen:
        return plan, None
    rewriting = archive.rewrite({item.layer.name for item in plan.frozen})
    kept = {f"{name}.num_batches_tracked" for name in rewriting.kept_counts}
    edits = tuple(edit for edit in plan.edits if edit.entry not in kept)
    return replace(plan, edits=edits), rewriting


def _check_can_be_made(
    checkpoint: Checkpoint, part: StateDict, options: ConvertOptions, *, to: OutputFormat
) -> None:
    """Refuse to make an archive of code or graphs of what is no model."""
    may_be_trusted = part.is_module and own_format(checkpoint) is None
    if to in _MADE and not (options.model or (may_be_trusted and options.trust)):
        trust = "--trust, or " if may_be_trusted else ""
        raise UsageError(
            f"--to {to}",
            expected=f"{_MADE[to]}, or a model",
            found=checkpoint.kind,
            advice=f"Pass {trust}--model package.module:callable.",
        )


def _retargeted(plan: Plan, target: float, to: OutputFormat) -> tuple[Plan, Retargeting]:
    if to in _WITH_OWN_EPS:
        raise UsageError(
            f"--target-eps {target:g}",
            expected="an output whose layers are loaded into a model",
            found=f"{to}, whose code holds the eps of each layer",
        )
    from frozenbn_cli.batch_norms.target_eps import retargeted

    return retargeted(plan, target)
