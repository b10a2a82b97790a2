"""Converts a checkpoint: open, plan, write beside the target, read back and verify, commit."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from frozenbn_cli.batch_norms.record import ConversionRecord, RecordedClaim
from frozenbn_cli.checkpoints import Checkpoint, StoredTensor
from frozenbn_cli.containers.atomic_output import AtomicOutput
from frozenbn_cli.containers.fingerprint import Fingerprint, fingerprint
from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.containers.zip_archive import Record
from frozenbn_cli.conversion.planning import ConversionPlan, parts_to_convert, plan_conversion
from frozenbn_cli.conversion.reading_back import check_record, check_written
from frozenbn_cli.conversion.recording import longest_record
from frozenbn_cli.conversion.refusing import refuse_claims, refuse_plan
from frozenbn_cli.conversion.terms import ConversionResult, ConvertOptions
from frozenbn_cli.conversion.writing import begun_output
from frozenbn_cli.errors import UsageError, located
from frozenbn_cli.importing import import_quietly
from frozenbn_cli.live_models.target import name_of_model
from frozenbn_cli.live_models.unused_options import NOTHING_IS_RUN, check_used
from frozenbn_cli.outputs import (
    FORMATS,
    OutputFormat,
    check_name,
    default_output,
    format_of,
    own_format,
)
from frozenbn_cli.outputs.output import Output
from frozenbn_cli.stages import Progress, Stages, begin, import_torch_for, telling
from frozenbn_cli.verification.claims import CLAIMS, Claim, with_required
from frozenbn_cli.verification.tolerance import Tolerance
from frozenbn_cli.wording import date_text

if TYPE_CHECKING:
    from frozenbn_cli.batch_norms.plan import Plan
    from frozenbn_cli.batch_norms.summaries import Summary
    from frozenbn_cli.conversion.making import Made

__all__ = ["ConversionResult", "ConvertOptions", "convert_file"]

_SKIPPED = "skipped by --no-verify"


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
    with telling(progress), closing(Fingerprint.of(path)) as sha256:
        if not options.dry_run:
            sha256.begin()
        with options.open(path) as checkpoint, closing(sha256):  # It reads the same files.
            sha256.go_on(checkpoint.sources, checkpoint.archives)
            to = format_of(checkpoint, options.to, target)
            target = target or default_output(path, to)
            if output_dir is not None:
                target = Path(output_dir) / target.name
            atomic = AtomicOutput(target, replace=options.force, make_folder=output_dir is not None)
            stages, date = Stages(), date_text(options.date or datetime.now(timezone.utc))
            with stages.timed("plan"), located(str(checkpoint.path)):
                plan = _planned(checkpoint, options, to, is_alone=output_dir is None)
            return _Conversion(plan, atomic, stages, date, sha256).run()


def _planned(
    checkpoint: Checkpoint, options: ConvertOptions, to: OutputFormat, *, is_alone: bool
) -> ConversionPlan:
    """Return what is to be written, once no option is found to be in vain."""
    own, parts = own_format(checkpoint), parts_to_convert(checkpoint, options.key, to)
    if is_alone:  # Among several files, an option may have an effect on another.
        is_made = FORMATS[to].is_program and own != to
        not_run = "" if options.verify or is_made else NOTHING_IS_RUN
        check_used(options, (checkpoint, parts[0]), not_run=not_run)
    if own and options.verify and not options.dry_run:
        _prepare(checkpoint, to)  # Beside the plan too, since it takes seconds.
    plan = plan_conversion(checkpoint, parts, options, to=to)
    if to == "checkpoint":
        from frozenbn_cli.conversion.training import plan_training

        return replace(plan, edited=plan_training(checkpoint, plan.models, plan.options))
    return plan


def _prepare(checkpoint: Checkpoint, to: OutputFormat) -> None:
    """Start the process that runs code of the file."""
    from frozenbn_cli.foreign_code import apart

    apart.prepare(for_programs="pt2" in (to, own_format(checkpoint)))


def _is_prepared() -> bool:
    from frozenbn_cli.foreign_code import apart

    return apart.is_prepared()


def _added(made: Made | None) -> frozenset[str]:
    """Return the buffers that an output has beside the entries of the input."""
    return made.added if made else frozenset()


def _summaries(plan: Plan) -> dict[str, Summary]:
    from frozenbn_cli.batch_norms.summaries import summaries_of

    return summaries_of(plan)


@dataclass(frozen=True, slots=True)
class _Written:
    """An output that is on the disk, whole but for what verifying it finds.

    Attributes:
        writer: Writes its record once more.
        made: What came of making an archive for it; None where no live model was needed.
        kept: The entries that it is to have.
        record: Its record, without claims.
        records: Those of the archive that it is, if it was read back before.
    """

    writer: Output
    made: Made | None
    kept: Mapping[str, StoredTensor]
    record: ConversionRecord
    records: Mapping[str, Record]


@dataclass(frozen=True, slots=True)
class _Conversion:
    """One run, from its plan on.

    Attributes:
        plan: What is to be written.
        output: Where to.
        stages: The time of each stage.
        date: When it was begun.
        sha256: Of the input, which is read meanwhile.
    """

    plan: ConversionPlan
    output: AtomicOutput
    stages: Stages
    date: str
    sha256: Fingerprint

    def run(self) -> ConversionResult:
        planned, models = self._result(), self.plan.models
        for model in (self.plan.main, *(model for model in models if model.plan.broken)):
            one = replace(planned, plan=model.plan, key=model.key, retargeting=model.retargeting)
            refuse_plan(one, self.plan.checkpoint, self.plan.options)
        self._check_target()
        if self.plan.options.dry_run:
            return planned
        with self.output:
            return self._convert(planned)

    def _result(self) -> ConversionResult:
        """Return the result as far as the plan goes."""
        plan, checkpoint, options = self.plan, self.plan.checkpoint, self.plan.options
        main, part = plan.main, plan.part
        return ConversionResult(
            outcome="planned",
            input_path=checkpoint.path,
            kind=checkpoint.kind,
            container=checkpoint.container,
            input_bytes=checkpoint.size_bytes,
            output_path=self.output.target,
            output_format=plan.to,
            key=part.key,
            prefix=part.prefix,
            renamed=part.renaming.others,
            entries=tuple(part.entries),
            left_out={} if plan.is_whole else {**part.left_out, **part.unsupported},
            absent=() if plan.is_whole else tuple(part.unsupported),
            beside={} if plan.edited else checkpoint.beside,
            foreign_names=checkpoint.foreign_names,
            plan=main.plan,
            retargeting=main.retargeting,
            others={model.key: model.plan for model in plan.models if model is not main},
            optimizers=plan.edited.optimizers if plan.edited else (),
            is_taken=self.output.is_taken,
            builder=getattr(options.model, "python", ("", "")),
            model="" if own_format(checkpoint) else name_of_model(options.model),
            summaries=_summaries(main.plan) if options.summarize else {},
            seconds=self.stages.seconds,
        )

    def _check_target(self) -> None:
        target, sources = self.output.target, self.plan.checkpoint.sources
        self.output.check_target(may_exist=True)
        if target.exists() and any(target.samefile(item.path) for item in sources):
            raise UsageError(
                "is the input, which is never changed",
                where=(str(target),),
                advice="Name another output with -o.",
            )
        self.output.check_target(may_exist=self.plan.options.dry_run)

    def _convert(self, planned: ConversionResult) -> ConversionResult:
        """Write, read back, verify and commit."""
        plan, checkpoint, output = self.plan, self.plan.checkpoint, self.output
        options, part = plan.options, plan.part
        if options.verify and options.runs_code_of(checkpoint, part):
            _prepare(checkpoint, plan.to)
        written = self._write()
        with self.stages.timed("verify"):
            claims = self._verify(written)
        checkpoint.check_unchanged()
        digest, made = self.sha256.result(), str(written.made or "")
        result = replace(planned, claims=claims, input_sha256=digest, made=made)
        refuse_claims(result)
        record = written.record.found(
            RecordedClaim.cut(claim.name, claim.status, claim.detail) for claim in claims
        )
        with output.writing():
            written.writer.finish(record)
        if written.records:
            with located(str(output.target)):
                check_record(output.path, record, written.records)
        else:
            self._read_back(written.kept, written.made, record)
        checkpoint.check_unchanged()
        sha256 = self._hashed() if options.hash_output else None
        begin("syncing")
        output.commit()
        size_bytes = output.target.stat().st_size
        return replace(result, outcome="converted", output_bytes=size_bytes, output_sha256=sha256)

    def _write(self) -> _Written:
        """Write the whole file, to the disk, but for the claims.

        What nobody verifies is read back meanwhile.
        """
        plan, stages, output = self.plan, self.stages, self.output
        pool = ThreadPoolExecutor(1)
        try:
            kept = plan.kept()
            longest = longest_record(plan, sha256="0" * 64, date=self.date)
            total = sum(tensor.size_bytes for tensor in kept.values())
            with (
                stages.timed("write"),
                output.writing() as file,
                located(str(plan.checkpoint.path)),
                begun_output(plan, file, kept, longest=longest) as (writer, made),
                output.flushing(),
            ):
                writer.write_tensors(begin("writing", total))
                writer.finish(longest)
            syncing = pool.submit(output.sync)
            if made:
                kept = {name: kept[name] for name in kept if name not in made.beside}
            records: Mapping[str, Record] = {}
            if plan.options.verify and not (plan.rewriting and _is_prepared()):
                with stages.timed("verify"):  # Any earlier, importing torch slows writing.
                    import_torch_for("frozenbn_cli.verification.layer_runs")
            with stages.timed("write"):
                begin("syncing")
                syncing.result()
                if not plan.options.verify:
                    records = self._read_back(kept, made, longest)
                begin("hashing the input")
                record = longest_record(plan, sha256=self.sha256.result(), date=self.date)
                with output.writing():
                    writer.finish(record.found(()))
        finally:
            pool.shutdown(wait=False)
        return _Written(writer, made, kept, record, records)

    def _read_back(
        self, kept: Mapping[str, StoredTensor], made: Made | None, record: ConversionRecord
    ) -> Mapping[str, Record]:
        """Read back the output, which is to have entries and a record; return an archive's."""
        names = None if self.plan.edited else kept.keys() | _added(made)
        key = self.plan.part.key if self.plan.rewriting else None
        with located(str(self.output.target)):
            return check_written(self.output.path, record, names, key)

    def _verify(self, written: _Written) -> tuple[Claim, ...]:
        """Return the claims on the output."""
        plan, options = self.plan, self.plan.options
        if not options.verify:
            return tuple(Claim(name, "not verified", _SKIPPED) for name in CLAIMS)
        verification = import_quietly("frozenbn_cli.verification.output")
        claims: tuple[Claim, ...]
        with located(str(plan.checkpoint.path)):
            claims = verification.verify_output(
                plan.checkpoint,
                plan.part,
                verification.Written(
                    path=self.output.path,
                    output_format=plan.to,
                    kept=written.kept,
                    layers={item.layer.name: item.layer for item in plan.main.frozen},
                    may_have=_added(written.made),
                    retargeting=plan.main.retargeting,
                    rewriting=plan.rewriting,
                    edited=plan.edited,
                ),
                options,
                Tolerance(options.atol, options.rtol),
            )
        return with_required(claims, options.require)

    def _hashed(self) -> str:
        """Return the sha256 of the output, which is known when its last byte is: its record."""
        begin("hashing the output")
        with self.stages.timed("write"), closing(ByteSource(self.output.path)) as file:
            return fingerprint([file])
