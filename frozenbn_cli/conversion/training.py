"""Plans the conversion of a training checkpoint: all models in it alike, and its optimizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from frozenbn_cli.batch_norms.frozen_model import FrozenModel
from frozenbn_cli.checkpoints import Checkpoint, StateDict
from frozenbn_cli.conversion.terms import ConvertOptions
from frozenbn_cli.errors import UsageError
from frozenbn_cli.stages import import_torch_for
from frozenbn_cli.training.edited import (
    EditedCheckpoint,
    edited_checkpoint,
    read_checkpoint,
)
from frozenbn_cli.wording import listed

__all__ = ["plan_training"]


def plan_training(
    checkpoint: Checkpoint, models: Sequence[FrozenModel], options: ConvertOptions
) -> EditedCheckpoint:
    """Return a training checkpoint as it is to be.

    Args:
        checkpoint: The file.
        models: Those whose layers are to be frozen, with what becomes of each layer.
        options: With the model and the optimizer that the user names.

    Raises:
        UsageError: Models of one architecture would be frozen in part; or which parameters an
            optimizer has is not proved.
        UnsupportedFileError: The file cannot be written as it was.
    """
    _check_alike(models)
    if options.optimizer is not None and options.model is None:
        raise UsageError("--optimizer is given, and no --model whose parameters it takes")
    for option, prefix in (
        ("--strip-prefix", options.strip_prefix),
        ("--add-prefix", options.add_prefix),
    ):
        if prefix:
            raise UsageError(f"{option} has no effect: a training checkpoint keeps its names")
    stored = read_checkpoint(checkpoint)
    built = None
    if options.model is not None:
        live = import_torch_for("frozenbn_cli.live_models.building").build(options.model)
        models = [replace(model, live=live) for model in models]
        if options.optimizer is not None:
            optimizers = import_torch_for("frozenbn_cli.live_models.optimizers")
            built = optimizers.parameter_names(live, options.optimizer)
    chosen = {model.key for model in models}
    return edited_checkpoint(stored, models, _others(checkpoint, chosen), built)


def _others(checkpoint: Checkpoint, chosen: set[str]) -> Mapping[str, Callable[[], StateDict]]:
    """Return what makes the other state dicts of a checkpoint, by key."""

    def known(part: StateDict) -> Callable[[], StateDict]:
        return lambda: part

    parts = {part.key: known(part) for part in checkpoint.state_dicts if part.key not in chosen}
    return {**parts, **{key: make for key, make in checkpoint.others.items() if key not in chosen}}


def _check_alike(models: Sequence[FrozenModel]) -> None:
    """Refuse models of one architecture of which some layers would be frozen in one alone.

    Raises:
        UsageError: Names the layers.
    """
    first = models[0]
    frozen = {item.layer.name for item in first.frozen}
    layers = {item.layer.name for item in first.plan.layers}
    for model in models[1:]:
        if layers == {item.layer.name for item in model.plan.layers} and (
            apart := frozen ^ {item.layer.name for item in model.frozen}
        ):
            raise UsageError(
                f"layers would be frozen in {first.key!a} or {model.key!a} alone: "
                f"{listed(sorted(apart))}",
                advice="Leave them out with --exclude, or choose one model with --key.",
            )
