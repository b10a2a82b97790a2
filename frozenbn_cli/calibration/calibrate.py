"""Forms the statistics of a file anew: open, run the model, write a copy, verify, commit.

Imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import ne
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from frozenbn_cli.batch_norms.plan import Plan, plan_state_dict
from frozenbn_cli.batch_norms.summaries import summaries_of
from frozenbn_cli.calibration.sources import batches_of, folder_of_data
from frozenbn_cli.calibration.statistics import form_statistics
from frozenbn_cli.calibration.terms import CalibrateOptions, Calibration, CalibrationResult
from frozenbn_cli.calibration.unchanged import RandomState
from frozenbn_cli.checkpoints import Checkpoint, StateDict, StoredTensor, open_checkpoint
from frozenbn_cli.containers.atomic_output import AtomicOutput
from frozenbn_cli.containers.source import BytesExtent
from frozenbn_cli.errors import UnsupportedFileError, UsageError, VerificationError, located
from frozenbn_cli.importing import importable
from frozenbn_cli.live_models.building import BuiltOnce
from frozenbn_cli.live_models.describing import described_by, load_state
from frozenbn_cli.live_models.guarding import foreign_code
from frozenbn_cli.live_models.resolving import fitted_to
from frozenbn_cli.live_models.stored_values import to_tensor
from frozenbn_cli.live_models.target import name_of_model
from frozenbn_cli.outputs.formats import calibrated_output
from frozenbn_cli.outputs.patched import PatchedCopy
from frozenbn_cli.selection import Selection
from frozenbn_cli.stages import Progress, Stages, begin, telling
from frozenbn_cli.verification.claims import Claim
from frozenbn_cli.wording import counted

__all__ = ["calibrate_file"]

_STATISTICS = ("running_mean", "running_var")
_COUNT = "num_batches_tracked"
_SEED = 0
_OF_PYTORCH = (".pt", ".pth", ".bin", ".ckpt")


def calibrate_file(
    path: str | Path,
    output: str | Path | None = None,
    *,
    options: CalibrateOptions,
    progress: Progress | None = None,
) -> CalibrationResult:
    """Form the running statistics of a checkpoint anew from data, see `calibrate_statistics`.

    The output is a copy of the input, in its format and structure, with new elements in running
    statistics and counters and every other byte as it was. It is read back before it gets its
    name. The code of the model and of the data runs; no pickle of the checkpoint is executed.

    Args:
        path: The checkpoint.
        output: Where the result belongs; beside the input as ``NAME.calibrated.SUFFIX`` if None.
        options: The model, the data, and how to go about it.
        progress: Is told how far the work has come.

    Returns:
        What was done.

    Raises:
        InputError: The input or the data are damaged, or of an unsupported kind.
        UsageError: The output exists or is the input, the model does not fit, or its code or that
            of the data fails.
        OutputError: The output cannot be written.
        RefusedError: There is nothing to calibrate, or a layer is given NaN or Inf.
    """
    with (
        telling(progress),
        open_checkpoint(
            path,
            keep_prefix=options.keep_prefix,
            strip_prefix=options.strip_prefix,
            add_prefix=options.add_prefix,
        ) as checkpoint,
    ):
        target = calibrated_output(checkpoint.path) if output is None else Path(output)
        _check_suffix(checkpoint, target)
        atomic = AtomicOutput(target, replace=options.force)
        atomic.check_target()
        if target.exists() and target.samefile(checkpoint.path):
            raise UsageError(
                "is the input, which is never changed",
                where=(str(target),),
                advice="Name another output with -o.",
            )
        with located(str(checkpoint.path)):
            return _calibrate(checkpoint, atomic, options, Stages())


def _check_suffix(checkpoint: Checkpoint, target: Path) -> None:
    """Refuse a name that promises another format than that of the input, which the result has."""
    suffix = target.suffix.lower()
    is_safe = checkpoint.container.startswith("safetensors")
    if (suffix == ".safetensors") != is_safe and suffix in (".safetensors", *_OF_PYTORCH):
        raise UsageError(
            "the result is of the format of the input",
            where=(str(target),),
            expected=f"a name for {checkpoint.container}",
            found=suffix,
        )


def _calibrate(
    checkpoint: Checkpoint, output: AtomicOutput, options: CalibrateOptions, stages: Stages
) -> CalibrationResult:
    if checkpoint.script:
        raise UnsupportedFileError(
            "a TorchScript archive, in which no layer can be watched",
            advice="Calibrate the state dict of the model, and script it again.",
        )
    if checkpoint.program:
        raise UnsupportedFileError(
            "an exported program, in which no layer can be watched",
            advice="Calibrate the state dict of the model, and export it again.",
        )
    with stages.timed("build"):
        part = checkpoint.state_dict(options.key)
        copy = PatchedCopy(checkpoint)
        model = BuiltOnce(cast(Any, fitted_to(part, options.model)))
        part, _ = described_by(model, part, strict=True, rename=not options.names_are_given)
        before = _plan(part, checkpoint)
        _check_entries(copy, part, before)
        built = model()
        load_state(built, {name: to_tensor(entry) for name, entry in part.entries.items()})
    with stages.timed("calibrate"):
        calibration, data = _run(built, before, options)
    new = _new_entries(part, calibration)
    for name, content in new.items():
        copy.replace(name, part.entries[name], content)
    after = _without_counts(_plan(_with(part, new), checkpoint), calibration)
    with output:
        digest = _write(checkpoint, copy, output, stages)
        with stages.timed("verify"):
            claim, shared = _verify(checkpoint, part, copy, output.path, new)
        checkpoint.check_unchanged()
        output.commit()
    return CalibrationResult(
        input_path=checkpoint.path,
        output_path=output.target,
        kind=checkpoint.kind,
        container=checkpoint.container,
        input_bytes=checkpoint.size_bytes,
        output_bytes=output.target.stat().st_size,
        input_sha256=digest,
        key=part.key,
        prefix=part.prefix,
        renamed=part.renaming.others,
        model=name_of_model(options.model),
        data=data,
        calibration=calibration,
        before=before,
        after=after,
        changed=tuple(new),
        shared=shared,
        claims=(claim,),
        seconds=stages.seconds,
        summaries=summaries_of(after) if options.summarize else {},
    )


def _plan(part: StateDict, checkpoint: Checkpoint) -> Plan:
    """Return the layers with the findings on them, as `convert` would see them."""
    metadata = checkpoint.metadata
    return plan_state_dict(part, metadata, eps=None, selection=Selection(), dims=(1, 2, 3))


def _without_counts(plan: Plan, calibration: Calibration) -> Plan:
    """Return the layers without what a small count says of a running average: these are none."""
    names = {name for layer in calibration.layers for name in layer.names}
    layers = [
        replace(
            item,
            findings=tuple(
                finding
                for finding in item.findings
                if finding.code != "hardly_formed" or item.layer.name not in names
            ),
        )
        for item in plan.layers
    ]
    return replace(plan, layers=tuple(layers))


def _check_entries(copy: PatchedCopy, part: StateDict, plan: Plan) -> None:
    """Raise at once, and not after hours, if new statistics could not be written."""
    for item in plan.layers:
        for role, tensor in item.layer.tensors.items():
            if role in (*_STATISTICS, _COUNT):
                name = item.layer.entry_name(role)
                copy.check(part.stored_names.get(name, name), tensor)


def _run(model: nn.Module, before: Plan, options: CalibrateOptions) -> tuple[Calibration, str]:
    """Form the statistics of a model that has those of the file, and say from what."""
    frozen = {item.layer.name for item in before.layers if item.layer.frozen_already}
    with _foreign_code_of_data(options.data):
        batches = batches_of(model, options)
        calibration = form_statistics(
            model,
            batches,
            selection=options.selection,
            frozen=frozen,
            max_batches=options.max_batches,
            passes=options.passes,
        )
        is_named = isinstance(options.data, (str, Path))
        return calibration, str(batches) if is_named else type(batches).__name__


@contextmanager
def _foreign_code_of_data(data: Any) -> Iterator[None]:
    """Run code of the data and of the model: seeded, and unable to end the process."""
    try:
        with importable(folder_of_data(data)), RandomState.seeded(_SEED), foreign_code():
            yield
    except RuntimeError as error:
        if error.__cause__ is None or isinstance(error.__cause__, Exception):
            raise
        raise UsageError(f"the code of the data or of the model ends with {error}") from error


def _new_entries(part: StateDict, calibration: Calibration) -> dict[str, bytes]:
    """Return the bytes of the entries that are new, by name."""
    new: dict[str, bytes] = {}
    for layer in calibration.layers:
        roles = {
            "running_mean": layer.means,
            "running_var": layer.variances,
            _COUNT: (layer.uses,),
        }
        for name in layer.names:
            for role, values in roles.items():
                entry = f"{name}.{role}" if name else role
                if entry in part.entries:
                    new[entry] = _encoded(values, part.entries[entry])
    return new


def _encoded(values: tuple[float, ...], stored: StoredTensor) -> bytes:
    dtype = getattr(torch, stored.dtype.name)
    # Values that came out of this dtype go into it as they were.
    tensor = torch.tensor(values, dtype=torch.float64 if dtype.is_floating_point else torch.int64)
    return bytes(tensor.to(dtype).view(torch.uint8).tolist())


def _with(part: StateDict, new: Mapping[str, bytes]) -> StateDict:
    """Return a state dict with the entries that are new."""
    entries = dict(part.entries)
    for name, content in new.items():
        stored = entries[name]
        entries[name] = StoredTensor.contiguous(stored.dtype, stored.shape, BytesExtent(content))
    return replace(part, entries=entries)


def _write(checkpoint: Checkpoint, copy: PatchedCopy, output: AtomicOutput, stages: Stages) -> str:
    """Write the copy; return the sha256 of the input, whose checksums are checked on the way."""
    with (
        ThreadPoolExecutor(1) as pool,
        stages.timed("write"),
    ):
        digest = pool.submit(checkpoint.fingerprint)
        with output.writing() as file:
            copy.write(file, begin("writing", checkpoint.size_bytes))
        begin("syncing")
        output.sync()
        begin("hashing the input")
        return digest.result()


# Verification


@dataclass(frozen=True, slots=True)
class _View:
    """Where elements lie, by which a tensor that is there twice is known."""

    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, tensor: StoredTensor) -> _View:
        start = getattr(tensor.storage, "start", -1)
        start += tensor.offset * tensor.dtype.item_bytes
        return cls(start, tensor.shape, tensor.strides, tensor.dtype.name)


def _verify(
    checkpoint: Checkpoint,
    part: StateDict,
    copy: PatchedCopy,
    written: Path,
    new: Mapping[str, bytes],
) -> tuple[Claim, tuple[str, ...]]:
    """Return the claim on the contents, and which entries are the same tensors as those changed.

    Raises:
        VerificationError: The file on the disk is not what it has to be.
    """
    if found := copy.difference(written):
        raise VerificationError(f"what was written is not what was to be written: {found}")
    views = {_View.of(part.entries[name]): content for name, content in new.items()}
    changed, kept, kept_bytes = [], 0, 0
    with open_checkpoint(written, keep_prefix=True) as opened:
        for key, (before, after) in _pairs(checkpoint, opened).items():
            for name, stored in before.entries.items():
                place = f"{key}.{name}" if key else name
                there = after.entries[name]
                if not any(map(ne, stored.chunks(), there.chunks())):
                    kept, kept_bytes = kept + 1, kept_bytes + stored.size_bytes
                elif views.get(_View.of(stored)) == there.read():
                    changed.append(place)
                else:
                    raise VerificationError(
                        f"entry {place!a} would change too, since it shares its storage with a "
                        "statistic",
                        advice="Load the file, and save it with torch.save from clones.",
                    )
    own = {part.stored_names.get(name, name) for name in new}
    own = {f"{part.key}.{name}" if part.key else name for name in own}
    shared = tuple(place for place in changed if place not in own)
    counts = sum(name.rpartition(".")[2] == _COUNT for name in new)
    detail = (
        f"{counted(kept, 'entry', 'entries')} and all that stands beside them as they were, "
        f"{counted(kept_bytes, 'byte')}; new are {counted(len(new) - counts, 'statistic')} and "
        f"{counted(counts, 'counter')}"
    )
    return Claim("contents", "equal", detail, kept), shared


def _pairs(before: Checkpoint, after: Checkpoint) -> dict[str, tuple[StateDict, StateDict]]:
    """Return each state dict of a file as it was, with the names in the file, and as it is."""
    pairs: dict[str, list[StateDict]] = {}
    for checkpoint in (before, after):
        parts = {part.key: part for part in checkpoint.state_dicts}
        parts |= {key: make() for key, make in checkpoint.others.items()}
        for key, part in parts.items():
            pairs.setdefault(key, []).append(part.as_stored or part)
    return {key: (first, second) for key, (first, second) in pairs.items()}
