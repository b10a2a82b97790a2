"""Converts a checkpoint: open, plan, write beside the target, read back and verify, commit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from frozenbn_cli.batch_norms.plan import Plan, check_eps_is_wanted, plan_state_dict
from frozenbn_cli.batch_norms.record import ConversionRecord, RecordedClaim
from frozenbn_cli.batch_norms.summaries import summaries_of
from frozenbn_cli.batch_norms.target_eps import Retargeting, retargeted
from frozenbn_cli.checkpoints import Checkpoint, StateDict, StoredTensor
from frozenbn_cli.containers.atomic_output import AtomicOutput
from frozenbn_cli.containers.fingerprint import fingerprint
from frozenbn_cli.containers.rewriting import Rewriting
from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.containers.temporary_folder import temporary_folder
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.conversion.recording import frozen_layers, recorded_models
from frozenbn_cli.conversion.refusing import check_record, refuse_claims, refuse_plan
from frozenbn_cli.conversion.terms import ConversionResult, ConvertOptions
from frozenbn_cli.conversion.training import models_to_freeze, plan_training
from frozenbn_cli.errors import UsageError, located
from frozenbn_cli.foreign_code import apart
from frozenbn_cli.live_models.resolving import fitted_to
from frozenbn_cli.live_models.target import name_of_model, no_model_wanted
from frozenbn_cli.live_models.unused_options import NOTHING_IS_RUN, check_used
from frozenbn_cli.outputs import (
    FORMATS,
    OUTPUTS,
    CheckpointOutput,
    Output,
    OutputFormat,
    Rewritable,
    RewrittenOutput,
    check_name,
    default_output,
    format_of,
    own_format,
    rewritable,
)
from frozenbn_cli.stages import Progress, Stages, begin, import_torch_for, telling
from frozenbn_cli.training.edited import EditedCheckpoint, FrozenModel
from frozenbn_cli.verification.claims import CLAIMS, Claim, with_required
from frozenbn_cli.verification.tolerance import Tolerance
from frozenbn_cli.version import __version__, torch_version
from frozenbn_cli.wording import date_text

if TYPE_CHECKING:
    from frozenbn_cli.conversion.making import Made

__all__ = ["ConversionResult", "ConvertOptions", "convert_file"]

_ROOM_BYTES = 16 << 20  # For the code of an archive, beside its tensors.
_WITH_OWN_EPS = ("torchscript", "pt2")
_MADE: Mapping[OutputFormat, str] = {
    "torchscript": "a TorchScript archive",
    "pt2": "an exported program",
}
_SKIPPED = "skipped by --no-verify"
_MAKERS: Mapping[OutputFormat, str] = {
    "torchscript": "frozenbn_cli.conversion.scripting",
    "pt2": "frozenbn_cli.conversion.exporting",
}
"""What makes archives of live models; each imports torch."""


def convert_file(
    path: str | Path,
    output: str | Path | None = None,
    *,
    output_dir: str | Path | None = None,
    options: ConvertOptions | None = None,
    progress: Progress | None = None,
) -> ConversionResult:
    """Freeze the BatchNorm2d layers of a checkpoint and write the result.

    The output is verified against the input before it gets its name: it is whole and right, or
    not there. The input is never changed, and no pickle in it is executed. A TorchScript archive
    is rewritten without being run, and then run to verify the result.

    Args:
        path: The checkpoint.
        output: Where the result belongs, in a name that fits the format; beside the input as
            ``NAME.frozen.safetensors``, ``NAME.frozen.pt`` or ``NAME.frozen.pt2`` if None.
        output_dir: The folder for that name instead of the input's; made if it is not there.
        options: How to convert.
        progress: Is told how far the work has come.

    Returns:
        What was done, or would be done in a dry run.

    Raises:
        InputError: The input is damaged or of an unsupported kind.
        UsageError: The output exists, is the input, has the name of another format, or a pattern
            matches no layer.
        OutputError: The output cannot be written.
        RefusedError: There is nothing to freeze, statistics are broken, or the verification
            failed; the error's ``result`` holds what was found until then.
    """
    path, target = Path(path), None if output is None else Path(output)
    options = options or ConvertOptions()
    check_name(target, options.to)
    with telling(progress), options.open(path) as checkpoint:
        to = format_of(checkpoint, options.to, target)
        target = target or default_output(path, to)
        if output_dir is not None:
            target = Path(output_dir) / target.name
        atomic = AtomicOutput(target, replace=options.force, make_folder=output_dir is not None)
        is_alone = output_dir is None
        return _Conversion(checkpoint, atomic, to, options, is_alone=is_alone).run()


class _Conversion:
    """One run: what is known so far, and the steps that find out more."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        output: AtomicOutput,
        to: OutputFormat,
        options: ConvertOptions,
        *,
        is_alone: bool,
    ) -> None:
        self._checkpoint = checkpoint
        self._is_alone = is_alone
        self._output = output
        self._target = output.target
        self._to = to
        self._options = options
        self._date = date_text(options.date or datetime.now(timezone.utc))
        self._tolerance = Tolerance(options.atol, options.rtol)
        self._stages = Stages()
        self._place = str(checkpoint.path)
        self._rewriting: Rewriting | None = None
        self._retargeting: Retargeting | None = None
        self._models: tuple[FrozenModel, ...] = ()
        self._edited: EditedCheckpoint | None = None
        self._archive: Rewritable | None = None
        self._made: Made | None = None

    def run(self) -> ConversionResult:
        with self._stages.timed("plan"), located(self._place):
            parts = self._parts()
            if self._is_alone:  # Among several files, an option may have an effect on another.
                is_made = FORMATS[self._to].is_program and own_format(self._checkpoint) != self._to
                not_run = "" if self._options.verify or is_made else NOTHING_IS_RUN
                check_used(self._options, (self._checkpoint, parts[0]), not_run=not_run)
            own = own_format(self._checkpoint)
            if own and self._options.verify and not self._options.dry_run:
                self._prepare()  # Beside the plan too, since it takes seconds.
            self._models = tuple(map(self._planned, parts))
            main = next((model for model in self._models if model.frozen), self._models[0])
            part, plan, self._retargeting = main.part, main.plan, main.retargeting
            if self._to == "checkpoint":
                self._edited = plan_training(self._checkpoint, self._models, self._options)
        planned = ConversionResult(
            outcome="planned",
            input_path=self._checkpoint.path,
            kind=self._checkpoint.kind,
            container=self._checkpoint.container,
            input_bytes=self._checkpoint.size_bytes,
            output_path=self._target,
            output_format=self._to,
            key=part.key,
            prefix=part.prefix,
            renamed=part.renaming.others,
            entries=tuple(part.entries),
            left_out={} if self._is_whole else {**part.left_out, **part.unsupported},
            absent=() if self._is_whole else tuple(part.unsupported),
            beside={} if self._edited else self._checkpoint.beside,
            foreign_names=self._checkpoint.foreign_names,
            plan=plan,
            retargeting=self._retargeting,
            others={model.key: model.plan for model in self._models if model is not main},
            optimizers=self._edited.optimizers if self._edited else (),
            is_taken=self._output.is_taken,
            builder=getattr(self._options.model, "python", ("", "")),
            model="" if own_format(self._checkpoint) else name_of_model(self._options.model),
            summaries=summaries_of(plan) if self._options.summarize else {},
            seconds=self._stages.seconds,
        )
        for model in (main, *(model for model in self._models if model.plan.broken)):
            one = replace(planned, plan=model.plan, key=model.key, retargeting=model.retargeting)
            refuse_plan(one, self._checkpoint, self._options)
        self._check_target(self._output)
        if self._options.dry_run:
            return planned
        with self._output as output:
            return self._convert(planned, part, output)

    def _check_target(self, output: AtomicOutput) -> None:
        sources = self._checkpoint.sources
        if self._target.exists() and any(self._target.samefile(item.path) for item in sources):
            raise UsageError(
                "is the input, which is never changed",
                where=(str(self._target),),
                advice="Name another output with -o.",
            )
        output.check_target(may_exist=self._options.dry_run)

    @property
    def _is_whole(self) -> bool:
        """Whether the output holds all that the input does, whatever it is."""
        return self._rewriting is not None or self._edited is not None

    def _parts(self) -> tuple[StateDict, ...]:
        """Return the state dicts that are meant."""
        if self._to == "checkpoint":
            return models_to_freeze(self._checkpoint, self._options.key)
        return (self._checkpoint.state_dict(self._options.key),)

    def _planned(self, part: StateDict) -> FrozenModel:
        """Return a state dict with what becomes of its layers."""
        part = self._described(part)
        plan, retargeting = self._plan(part), None
        plan = self._plan_archive(part, plan)
        if self._options.target_eps is not None:
            plan, retargeting = self._plan_retargeted(plan, self._options.target_eps)
        return FrozenModel(part, plan, retargeting)

    def _described(self, part: StateDict) -> StateDict:
        """Return the state dict with what the model says of its layers, if there is one."""
        if self._options.model is None:
            return part
        own = own_format(self._checkpoint)
        if own == self._to:
            raise no_model_wanted()
        self._options = replace(self._options, model=fitted_to(part, self._options.model))
        if own:
            return part
        live_models = import_torch_for("frozenbn_cli.live_models.describing")
        described, _ = live_models.described_by(
            self._options.model, part, strict=True, rename=not self._options.names_are_given
        )
        return cast(StateDict, described)

    def _plan(self, part: StateDict) -> Plan:
        eps = self._options.eps
        plan = plan_state_dict(
            part,
            self._checkpoint.metadata,
            eps=eps,
            selection=self._options.selection,
            dims=self._options.dims,
            may_recognise=self._options.may_recognise,
        )
        check_eps_is_wanted(plan, eps)
        return plan

    def _plan_retargeted(self, plan: Plan, target: float) -> tuple[Plan, Retargeting]:
        if self._to in _WITH_OWN_EPS:
            raise UsageError(
                f"--target-eps {target:g}",
                expected="an output whose layers are loaded into a model",
                found=f"{self._to}, whose code holds the eps of each layer",
            )
        return retargeted(plan, target)

    def _plan_archive(self, part: StateDict, plan: Plan) -> Plan:
        """Return the plan with what an output takes that is an archive of code or graphs.

        Raises:
            UsageError: There is neither such an archive nor a model to make one of.
        """
        own = own_format(self._checkpoint)
        if self._to == own:
            return self._rewrite(part, plan)
        may_be_trusted = part.is_module and own is None
        if self._to in _MADE and not (
            self._options.model or (may_be_trusted and self._options.trust)
        ):
            trust = "--trust, or " if may_be_trusted else ""
            raise UsageError(
                f"--to {self._to}",
                expected=f"{_MADE[self._to]}, or a model",
                found=self._checkpoint.kind,
                advice=f"Pass {trust}--model package.module:callable.",
            )
        return plan

    def _rewrite(self, part: StateDict, plan: Plan) -> Plan:
        """Find out how the archive changes; return the plan with what that takes."""
        self._archive = rewritable(self._checkpoint, part)
        if self._archive is None or not plan.frozen:
            return plan
        self._rewriting = self._archive.rewrite({item.layer.name for item in plan.frozen})
        kept = {f"{name}.num_batches_tracked" for name in self._rewriting.kept_counts}
        return replace(plan, edits=tuple(edit for edit in plan.edits if edit.entry not in kept))

    def _prepare(self) -> None:
        """Start the process that runs code of the file."""
        apart.prepare(for_programs="pt2" in (self._to, own_format(self._checkpoint)))

    def _convert(
        self, planned: ConversionResult, part: StateDict, output: AtomicOutput
    ) -> ConversionResult:
        plan = planned.plan
        if self._options.verify and self._options.runs_code_of(self._checkpoint, part):
            self._prepare()
        kept = {name: part.entries[name] for name in plan.kept(part.entries)}
        kept |= self._retargeting.entries(plan) if self._retargeting else {}
        writer, record = self._write(output, kept, part, plan)
        if self._made:
            kept = {name: kept[name] for name in kept if name not in self._made.beside}
        with self._stages.timed("verify"):
            claims = self._verify(output.path, kept, part, plan)
        self._checkpoint.check_unchanged()
        digest = str(record.source["sha256"])
        result = replace(planned, claims=claims, input_sha256=digest, made=str(self._made or ""))
        refuse_claims(result)
        record = record.found(
            RecordedClaim.cut(claim.name, claim.status, claim.detail) for claim in claims
        )
        with output.writing():
            writer.finish(record)
        names = None if self._edited else kept.keys() | self._added
        key = part.key if self._rewriting else None
        check_record(output.path, names, record, key)
        self._checkpoint.check_unchanged()
        sha256 = self._hashed(output) if self._options.hash_output else None
        begin("syncing")
        output.commit()
        size_bytes = self._target.stat().st_size
        return replace(result, outcome="converted", output_bytes=size_bytes, output_sha256=sha256)

    def _write(
        self,
        output: AtomicOutput,
        kept: Mapping[str, StoredTensor],
        part: StateDict,
        plan: Plan,
    ) -> tuple[Output, ConversionRecord]:
        """Write the whole file, to the disk, but for the claims; hash the input meanwhile."""
        pool = ThreadPoolExecutor(2)
        try:
            sha256 = pool.submit(self._checkpoint.fingerprint)
            record = self._record(part, plan, sha256="0" * 64)
            total = sum(tensor.size_bytes for tensor in kept.values())
            with (
                self._stages.timed("write"),
                output.writing() as file,
                located(self._place),
                self._begun(file, kept, part, record) as writer,
            ):
                writer.write_tensors(begin("writing", total))
            syncing = pool.submit(output.sync)
            if self._options.verify:
                with self._stages.timed("verify"):  # Any earlier, importing torch slows writing.
                    import_torch_for("frozenbn_cli.verification.output")
            with self._stages.timed("write"):
                begin("syncing")
                syncing.result()
                begin("hashing the input")
                record = self._record(part, plan, sha256=sha256.result())
                with output.writing():
                    writer.finish(record.found(()))
        finally:
            pool.shutdown(wait=False)
        return writer, record

    @contextmanager
    def _begun(
        self,
        file: BinaryIO,
        kept: Mapping[str, StoredTensor],
        part: StateDict,
        longest: ConversionRecord,
    ) -> Iterator[Output]:
        """Begin the output; what it is made of is there until its tensors are written."""
        if self._edited:
            yield CheckpointOutput(file, self._edited, longest)
        elif self._rewriting and (own := self._archive):
            yield RewrittenOutput(file, own.archive, self._rewriting, own.record_path)
        elif self._to in _MAKERS:
            room_bytes = _ROOM_BYTES + sum(entry.size_bytes for entry in kept.values())
            with (
                temporary_folder(room_bytes) as folder,
                self._made_archive(folder, part, longest) as (archive, made),
            ):
                yield RewrittenOutput(file, archive, Rewriting(), made.record_path)
        else:
            # A BatchNorm2d adds its count to what has no version; below version 3, old layers of
            # detectron2 subtract eps from the variance.
            versions = {
                name: version
                for name, version in part.versions.items()
                if name not in longest.layers
            }
            yield OUTPUTS[self._to](
                file,
                kept,
                metadata=self._checkpoint.metadata,
                longest_record=longest,
                versions=versions,
            )

    @contextmanager
    def _made_archive(
        self, folder: str, part: StateDict, record: ConversionRecord
    ) -> Iterator[tuple[ZipArchive, Made]]:
        """Make an archive of the live model, with the layers of a record frozen."""
        path = Path(folder, f"model.{self._to}")
        maker = import_torch_for(_MAKERS[self._to])
        made = maker.make(self._checkpoint, part, record.layers, path, self._options)
        self._made = made
        with closing(ByteSource(path)) as source:
            yield ZipArchive(source), made

    def _record(self, part: StateDict, plan: Plan, *, sha256: str) -> ConversionRecord:
        """Return the record with every claim, which is as long as it can become."""
        source: dict[str, str | int] = {
            "file": self._checkpoint.path.name,
            "sha256": sha256,
            "size_bytes": self._checkpoint.size_bytes,
        }
        before = ConversionRecord.from_metadata(self._checkpoint.metadata)
        main = next(model for model in self._models if model.part is part)
        own = frozen_layers(main, before, in_file=self._edited is not None)
        deciding = self._options.deciding(self._to)
        if part.renaming.steps and not self._edited:
            deciding["renamed"] = [list(step) for step in part.renaming.steps]
        recognised = {match.prefix: match.names for match in plan.matches}
        record = ConversionRecord(
            __version__,
            source,
            own.layers,
            (),
            deciding,
            recognised,
            dims_of=own.dims_of,
            rewritten=own.rewritten,
            state_dicts=recorded_models(self._models, before) if self._edited else {},
            optimizers={
                each.optimizer.key: tuple(sorted(each.places))
                for each in (self._edited.optimizers if self._edited else ())
            },
            date=self._date,
            torch=torch_version(),
        )
        return replace(record, verified=CLAIMS, claims=tuple(map(RecordedClaim.longest, CLAIMS)))

    def _verify(
        self, written: Path, kept: Mapping[str, StoredTensor], part: StateDict, plan: Plan
    ) -> tuple[Claim, ...]:
        if not self._options.verify:
            return tuple(Claim(name, "not verified", _SKIPPED) for name in CLAIMS)
        verification = import_torch_for("frozenbn_cli.verification.output")
        claims: tuple[Claim, ...]
        with located(self._place):
            claims = verification.verify_output(
                self._checkpoint,
                part,
                verification.Written(
                    path=written,
                    output_format=self._to,
                    kept=kept,
                    layers={item.layer.name: item.layer for item in plan.frozen},
                    may_have=self._added,
                    retargeting=self._retargeting,
                    rewriting=self._rewriting,
                    edited=self._edited,
                ),
                self._options,
                self._tolerance,
            )
        return with_required(claims, self._options.require)

    def _hashed(self, output: AtomicOutput) -> str:
        """Return the sha256 of the output, which is known when its last byte is: its record."""
        begin("hashing the output")
        with self._stages.timed("write"), closing(ByteSource(output.path)) as file:
            return fingerprint([file])

    @property
    def _added(self) -> frozenset[str]:
        return self._made.added if self._made else frozenset()
