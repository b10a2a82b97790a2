"""Converts a checkpoint: open, plan, write beside the target, read back and verify, commit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Literal

import frozenbn_cli
from frozenbn_cli.batch_norm import find_batch_norms
from frozenbn_cli.checkpoints import Checkpoint, StoredTensor, open_checkpoint
from frozenbn_cli.claims import Claim, ClaimName
from frozenbn_cli.containers.atomic_output import AtomicOutput
from frozenbn_cli.containers.safetensors_file import SafetensorsWriter
from frozenbn_cli.errors import (
    NothingToFreezeError,
    RefusedError,
    UnhealthyStatisticsError,
    UnsupportedFileError,
    UsageError,
    VerificationError,
    located,
)
from frozenbn_cli.metadata import METADATA_KEY, ConversionRecord
from frozenbn_cli.plan import Plan, make_plan
from frozenbn_cli.selection import Selection

__all__ = ["ConversionResult", "ConvertOptions", "Progress", "convert_checkpoint"]

Progress = Callable[[str, int, int], None]
"""Is told the stage, the bytes or layers done, and the total."""

_CLAIMS: tuple[ClaimName, ...] = ("contents", "layers", "model")
_NO_MODEL = "a state dict holds no model that could be run"
_SKIPPED = "skipped by --no-verify"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions:
    """How to convert.

    Attributes:
        eps: Of every layer whose eps the file does not hold; None assumes PyTorch's 1e-5.
        selection: Which layers to freeze.
        force: Replace an output that exists.
        force_unhealthy: Freeze also statistics that are broken or were never formed.
        dry_run: Plan, and write nothing.
        verify: Check the written file before it gets its name.
    """

    eps: float | None = None
    selection: Selection = field(default_factory=Selection)
    force: bool = False
    force_unhealthy: bool = False
    dry_run: bool = False
    verify: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionResult:
    """What a conversion did, or would do.

    Attributes:
        outcome: ``converted``, ``planned`` in a dry run, ``unhealthy`` where statistics stopped
            it, ``nothing to freeze``, or ``different`` where the verification failed.
        input_path: The file that was read.
        kind: What it holds.
        container: How it is stored.
        input_bytes: Its size.
        input_sha256: None until all of it was read.
        output_path: Where the result is, or would be.
        output_bytes: Its size; None where nothing was written.
        entries: The names of all entries of the input.
        left_out: What else the input holds, which safetensors cannot hold: name and description.
        plan: Layers, findings and edits.
        claims: What was verified.
        seconds: The time of each stage.
    """

    outcome: Literal["converted", "planned", "unhealthy", "nothing to freeze", "different"]
    input_path: Path
    kind: str
    container: str
    input_bytes: int
    input_sha256: str | None = None
    output_path: Path
    output_bytes: int | None = None
    entries: tuple[str, ...]
    left_out: Mapping[str, str]
    plan: Plan
    claims: tuple[Claim, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)


def convert_checkpoint(
    path: str | Path,
    output: str | Path | None = None,
    *,
    options: ConvertOptions | None = None,
    progress: Progress | None = None,
) -> ConversionResult:
    """Freeze the BatchNorm2d layers of a checkpoint and write it as safetensors.

    The output is verified against the input before it gets its name: it is whole and right, or
    not there. The input is never changed, and nothing in it is executed.

    Args:
        path: The checkpoint.
        output: Where the result belongs; beside the input as ``NAME.frozen.safetensors`` if None.
        options: How to convert.
        progress: Is told how far the work has come.

    Returns:
        What was done, or would be done in a dry run.

    Raises:
        InputError: The input is damaged or of an unsupported kind.
        UsageError: The output exists, is the input, or a pattern matches no layer.
        OutputError: The output cannot be written.
        RefusedError: There is nothing to freeze, statistics are broken, or the verification
            failed; the error's ``result`` holds what was found until then.
    """
    path = Path(path)
    target = default_output(path) if output is None else Path(output)
    with open_checkpoint(path) as checkpoint:
        return _Conversion(checkpoint, target, options or ConvertOptions(), progress).run()


_SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl", ".model", ".safetensors", ".weights"}


def default_output(path: Path) -> Path:
    """Return where the result of converting ``path`` goes if the user does not say."""
    name = path.name
    while (suffix := Path(name).suffix) in _SUFFIXES:
        name = name.removesuffix(suffix)
    return path.with_name(f"{name}.frozen.safetensors")


class _Conversion:
    """One run: what is known so far, and the steps that find out more."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        target: Path,
        options: ConvertOptions,
        progress: Progress | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._target = target
        self._options = options
        self._report = progress or (lambda *_: None)
        self._seconds: dict[str, float] = {}
        self._place = str(checkpoint.path)

    def run(self) -> ConversionResult:
        output = AtomicOutput(self._target, replace=self._options.force)
        if not self._options.dry_run:
            self._check_target(output)
        with self._timed("plan"), located(self._place):
            plan = self._plan()
        planned = ConversionResult(
            outcome="planned",
            input_path=self._checkpoint.path,
            kind=self._checkpoint.kind,
            container=self._checkpoint.container,
            input_bytes=self._checkpoint.size_bytes,
            output_path=self._target,
            entries=tuple(self._checkpoint.entries),
            left_out=self._checkpoint.left_out,
            plan=plan,
            seconds=self._seconds,
        )
        self._refuse(planned)
        if self._options.dry_run:
            return planned
        with output:
            return self._convert(planned, output)

    def _check_target(self, output: AtomicOutput) -> None:
        output.check_target()
        if self._target.exists() and self._target.samefile(self._checkpoint.path):
            raise UsageError(
                "is the input, which is never changed",
                where=(str(self._target),),
                advice="Name another output with -o.",
            )

    def _plan(self) -> Plan:
        record = ConversionRecord.from_metadata(self._checkpoint.metadata)
        layers = find_batch_norms(
            self._checkpoint.entries,
            eps=self._options.eps,
            frozen=record.layers if record else None,
        )
        return make_plan(layers, self._options.selection)

    def _refuse(self, planned: ConversionResult) -> None:
        """Raise where the plan itself says that nothing should be written."""
        plan = planned.plan
        error: RefusedError
        if plan.broken and not self._options.force_unhealthy:
            count = len(plan.broken)
            error = UnhealthyStatisticsError(
                f"{count} of {len(plan.layers)} BatchNorm layers "
                f"{'has' if count == 1 else 'have'} broken or never formed statistics",
                where=(self._place,),
                advice="Freeze the others with --exclude, or all with --force-unhealthy.",
            )
            error.result = replace(planned, outcome="unhealthy")
            raise error
        if not plan.frozen:
            what = "no BatchNorm2d to freeze" if plan.layers else "no BatchNorm in it"
            error = NothingToFreezeError(what, where=(self._place,))
            error.result = replace(planned, outcome="nothing to freeze")
            raise error

    def _convert(self, planned: ConversionResult, output: AtomicOutput) -> ConversionResult:
        plan = planned.plan
        entries = self._checkpoint.entries
        kept = {name: entries[name] for name in plan.kept(entries)}
        with self._timed("write"):
            writer, record = self._write(output, kept, plan)
        with self._timed("verify"):
            claims = self._verify(output.path, kept, plan)
        digest = str(record.source["sha256"])
        result = replace(planned, claims=claims, input_sha256=digest)
        _refuse_difference(result)
        proven = tuple(claim.name for claim in claims if claim.status == "equal")
        record = replace(record, verified=proven)
        with output.writing():
            writer.finish(self._metadata(record))
        _check_header(output.path, kept, record)
        output.commit()
        return replace(result, outcome="converted", output_bytes=self._target.stat().st_size)

    def _write(
        self, output: AtomicOutput, kept: Mapping[str, StoredTensor], plan: Plan
    ) -> tuple[SafetensorsWriter, ConversionRecord]:
        """Write the whole file but for the claims; hash and check the input meanwhile."""
        hashing = ThreadPoolExecutor(1)
        try:
            sha256 = hashing.submit(self._checkpoint.fingerprint)
            record = self._record(plan, sha256="0" * 64)
            with output.writing() as file:
                writer = self._write_tensors(file, kept, self._metadata(record))
            record = self._record(plan, sha256=sha256.result())
        finally:
            hashing.shutdown(wait=False)
        with output.writing():
            writer.finish(self._metadata(replace(record, verified=())))
        return writer, record

    def _write_tensors(
        self, file: BinaryIO, kept: Mapping[str, StoredTensor], room_for: Mapping[str, str]
    ) -> SafetensorsWriter:
        # Without holes between them, tensors are aligned only if wider elements come first.
        ordered = sorted(kept.items(), key=lambda item: -item[1].dtype.item_bytes)
        with located(self._place):
            layout = {name: _layout(name, tensor) for name, tensor in ordered}
            writer = SafetensorsWriter(file, layout, room_for=room_for)
        count = self._counter("writing", sum(tensor.size_bytes for tensor in kept.values()))
        for name, tensor in ordered:
            with located(self._place), located(f"entry {name!a}"):
                for chunk in tensor.chunks():
                    writer.write(chunk)
                    count(len(chunk))
        return writer

    def _record(self, plan: Plan, *, sha256: str) -> ConversionRecord:
        """Return the record with every claim, which is as long as it can become."""
        source: dict[str, str | int] = {
            "file": self._checkpoint.path.name,
            "sha256": sha256,
            "size_bytes": self._checkpoint.size_bytes,
        }
        layers = {item.layer.name: item.layer.eps for item in plan.frozen}
        return ConversionRecord(frozenbn_cli.__version__, source, layers, _CLAIMS)

    def _metadata(self, record: ConversionRecord) -> dict[str, str]:
        earlier = self._checkpoint.metadata
        return {**earlier, "format": "pt", METADATA_KEY: record.to_text()}

    def _verify(
        self, written: Path, kept: Mapping[str, StoredTensor], plan: Plan
    ) -> tuple[Claim, ...]:
        model = Claim("model", "not verified", _NO_MODEL)
        if not self._options.verify:
            skipped = (Claim(name, "not verified", _SKIPPED) for name in _CLAIMS[:2])
            return (*skipped, model)
        # Imports torch, which takes seconds.
        from frozenbn_cli import verification  # noqa: PLC0415

        file = verification.FrozenFile(written)
        layers = {item.layer.name: item.layer for item in plan.frozen}
        total = sum(tensor.size_bytes for tensor in kept.values())
        with located(self._place):
            return (
                verification.verify_contents(file, kept, self._counter("comparing", total)),
                verification.verify_layers(file, layers, self._counter("running", len(layers))),
                model,
            )

    def _counter(self, stage: str, total: int) -> Callable[[int], None]:
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            self._report(stage, done, total)

        return count

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._seconds[stage] = time.perf_counter() - started


def _layout(name: str, tensor: StoredTensor) -> tuple[str, tuple[int, ...], int]:
    if tensor.dtype.code is None:
        raise UnsupportedFileError(
            f"safetensors cannot hold dtype {tensor.dtype}", where=(f"entry {name!a}",)
        )
    return tensor.dtype.code, tensor.shape, tensor.size_bytes


def _refuse_difference(result: ConversionResult) -> None:
    for claim in result.claims:
        if claim.status == "different":
            error = VerificationError(
                f"{claim.name}: {claim.detail}",
                where=(str(result.output_path),),
                advice="Nothing was written. Please report this as a bug of frozenbn.",
            )
            error.result = replace(result, outcome="different")
            raise error


def _check_header(path: Path, kept: Mapping[str, StoredTensor], record: ConversionRecord) -> None:
    """Read the final header back, which was written last."""
    with open_checkpoint(path) as written:
        if (
            ConversionRecord.from_metadata(written.metadata) != record
            or written.entries.keys() != kept.keys()
        ):
            raise VerificationError("the header was not written as it has to be")
