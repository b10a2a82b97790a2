"""Verifies what a conversion wrote, before it gets its name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from frozenbn_cli.batch_norms.batch_norm import BatchNorm, find_batch_norms
from frozenbn_cli.batch_norms.frozen_model import FrozenModel
from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.batch_norms.target_eps import Retargeting
from frozenbn_cli.checkpoints import Checkpoint, StateDict, StoredTensor, open_checkpoint
from frozenbn_cli.checkpoints.exported_programs import model_of
from frozenbn_cli.containers.rewriting import Rewriting
from frozenbn_cli.containers.utf8_path import utf8_path
from frozenbn_cli.live_models.run_options import RunOptions
from frozenbn_cli.outputs import OutputFormat
from frozenbn_cli.outputs.rewritable import rewritable
from frozenbn_cli.stages import begin
from frozenbn_cli.training.edited import EditedCheckpoint
from frozenbn_cli.verification.checkpoints import WrittenModel, verify_checkpoint_contents
from frozenbn_cli.verification.claims import Claim, merged
from frozenbn_cli.verification.contents import verify_contents
from frozenbn_cli.verification.layers import verify_layers
from frozenbn_cli.verification.loaders import (
    FromFile,
    Loader,
    archive_loader,
    blank_loader,
    frozen_loader,
    module_loader,
    original_loader,
    program_loader,
)
from frozenbn_cli.verification.private_copies import PrivateCopies
from frozenbn_cli.verification.records import other_record
from frozenbn_cli.verification.tolerance import EXACT, Tolerance
from frozenbn_cli.verification.whole_models import verify_whole_model
from frozenbn_cli.verification.written import WrittenFile, open_written

__all__ = ["Written", "verify_output"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a conversion wrote, and what it has to be.

    Attributes:
        path: The file, still under another name.
        output_format: Of the file.
        kept: The entries that it has to hold, as they lie in the input.
        layers: The frozen layers, as they are in the input.
        may_have: Entries that it may hold beside these.
        retargeting: What an eps that it was written for takes, if there is one.
        rewriting: How the archive was changed, if the input is one.
        edited: What was to change in a training checkpoint, if the output is one.
    """

    path: Path
    output_format: OutputFormat
    kept: Mapping[str, StoredTensor]
    layers: Mapping[str, BatchNorm]
    may_have: Collection[str] = ()
    retargeting: Retargeting | None = None
    rewriting: Rewriting | None = None
    edited: EditedCheckpoint | None = None


def verify_output(
    checkpoint: Checkpoint,
    part: StateDict,
    written: Written,
    options: RunOptions,
    tolerance: Tolerance = EXACT,
) -> tuple[Claim, ...]:
    """Return the three claims on the output of a conversion.

    Args:
        checkpoint: The input.
        part: The state dict of it that was converted.
        written: The output.
        options: Which model is run, and on what.
        tolerance: Of the outputs of layers and model.

    Raises:
        VerificationError: The library of the format cannot read it back.
    """
    if written.edited:
        return _verify_checkpoint(checkpoint, part, written, options, tolerance)
    key = part.key if written.rewriting else ""
    file = open_written(written.path, written.output_format, key=key)
    total = sum(tensor.size_bytes for tensor in written.kept.values())
    comparing = begin("comparing", total)
    contents = verify_contents(file, written.kept, comparing, may_have=written.may_have)
    if contents.status == "equal" and (found := _other_record(checkpoint, part, written)):
        contents = Claim("contents", "different", found)
    layers = verify_layers(
        file,
        written.layers,
        rewritten=written.retargeting.layers if written.retargeting else (),
        tolerance=tolerance,
    )
    return contents, layers, _verify_model(checkpoint, part, written, file, options, tolerance)


def _verify_checkpoint(
    checkpoint: Checkpoint,
    part: StateDict,
    written: Written,
    options: RunOptions,
    tolerance: Tolerance,
) -> tuple[Claim, ...]:
    """Return the claims on a training checkpoint: on the layers of every model in it."""
    models = written.edited.models if written.edited else ()
    contents = Claim("contents", "not verified", "")
    if written.edited:
        comparing = begin("comparing", checkpoint.size_bytes)
        contents = verify_checkpoint_contents(checkpoint, written.path, written.edited, comparing)
    with open_checkpoint(written.path, keep_prefix=True) as output:
        files = {model.key: _written_model(model, output) for model in models}
        layers = merged(
            (
                model.key,
                verify_layers(
                    files[model.key],
                    {item.layer.name: item.layer for item in model.frozen},
                    rewritten=model.retargeting.before if model.retargeting else (),
                    tolerance=tolerance,
                ),
            )
            for model in models
            if model.frozen
        )
        with PrivateCopies() as copies:
            before = original_loader(checkpoint, part, options, copies)
            if part.is_module and options.model is None:
                after = module_loader(output, part, options)
            else:
                blank, file = blank_loader(checkpoint, part, options), files[part.key]
                after = frozen_loader(blank, file, file.stated_eps())
            model = verify_whole_model(before, after, written.layers, options, tolerance)
    return contents, layers, model


def _written_model(model: FrozenModel, output: Checkpoint) -> WrittenModel:
    part = output.state_dict(model.key)
    if part.is_module:  # Its own classes say it.
        stated = {layer.name: layer.eps for layer in find_batch_norms(part)}
    else:
        record = ConversionRecord.from_metadata(output.metadata)
        stated = dict(record.of_key(model.key).layers) if record else {}
    return WrittenModel(
        model,
        part,
        {
            item.layer.name: stated[model.stored_layer(item)]
            for item in model.frozen
            if model.stored_layer(item) in stated
        },
    )


def _other_record(checkpoint: Checkpoint, part: StateDict, written: Written) -> str | None:
    """Return which record of a rewritten archive is not what it has to be, or None."""
    own = rewritable(checkpoint, part)
    if written.rewriting is None or own is None:
        return None
    with open_checkpoint(written.path) as output:
        change = own.other_change(output, written.layers)
    return change or other_record(written.path, own, written.rewriting)


def _verify_model(
    checkpoint: Checkpoint,
    part: StateDict,
    written: Written,
    file: WrittenFile,
    options: RunOptions,
    tolerance: Tolerance,
) -> Claim:
    with PrivateCopies() as copies:
        before = original_loader(
            checkpoint,
            part,
            options,
            copies,
            frozen=written.layers,
            as_program=written.output_format == "pt2",
        )
        after = _after(checkpoint, part, written, file, options, copies)
        return verify_whole_model(before, after, written.layers, options, tolerance)


def _after(
    checkpoint: Checkpoint,
    part: StateDict,
    written: Written,
    file: WrittenFile,
    options: RunOptions,
    copies: PrivateCopies,
) -> Loader | str:
    if written.output_format == "pt2":
        model = model_of(checkpoint.program, part) if checkpoint.program else "model"
        loader = program_loader(utf8_path(written.path), options, copies, model=model)
    elif written.output_format == "torchscript":
        loader = archive_loader(utf8_path(written.path), options)
    else:
        eps = {name: layer.eps for name, layer in written.layers.items()}
        if written.retargeting:
            eps = dict.fromkeys(eps, written.retargeting.stated)
        return frozen_loader(blank_loader(checkpoint, part, options), file, eps)
    # What was made of a live model here is the code of that model, not of a file.
    is_own = written.rewriting is None and options.model is not None
    return loader.load if is_own and isinstance(loader, FromFile) else loader
