"""What became of each of many files: small enough to send from process to process."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from frozenbn_cli.batch_norms.plan import Plan
from frozenbn_cli.conversion.convert import ConversionResult
from frozenbn_cli.errors import INTERRUPTED, FrozenBNError
from frozenbn_cli.outputs import OutputFormat
from frozenbn_cli.verification.claims import Claim

__all__ = ["ConversionSummary", "FileResult", "FileState", "exit_code_of", "without_tensors"]

FileState = Literal["waiting", "running", "done", "skipped", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionSummary:
    """What a conversion did, without what takes space: safe to send from process to process.

    Attributes:
        outcome: As in `ConversionResult`.
        kind: What the input holds.
        container: How it is stored.
        input_bytes: Its size.
        input_sha256: None where not all of it was read.
        output_format: Of the result.
        output_bytes: Its size; None where nothing was written.
        output_sha256: None where nothing was written, or the options do not ask for it.
        key: Where in the file the state dict stands.
        prefix: What was taken off every name.
        layers: How many BatchNorm layers there are.
        frozen: How many of them are frozen in the output.
        findings: How many layers have findings, by severity.
        claims: What was verified, without the evidence.
    """

    outcome: str
    kind: str
    container: str
    input_bytes: int
    input_sha256: str | None
    output_format: OutputFormat
    output_bytes: int | None
    output_sha256: str | None = None
    key: str
    prefix: str
    layers: int
    frozen: int
    findings: Mapping[str, int]
    claims: tuple[Claim, ...]

    @classmethod
    def of(cls, result: ConversionResult) -> ConversionSummary:
        """Return the summary of a result."""
        findings: Counter[str] = Counter(
            severity
            for item in result.plan.layers
            for severity in {finding.severity for finding in item.findings}
        )
        return cls(
            outcome=result.outcome,
            kind=result.kind,
            container=result.container,
            input_bytes=result.input_bytes,
            input_sha256=result.input_sha256,
            output_format=result.output_format,
            output_bytes=result.output_bytes,
            output_sha256=result.output_sha256,
            key=result.key,
            prefix=result.prefix,
            layers=len(result.plan.layers),
            frozen=len(result.plan.frozen) if result.outcome in ("converted", "planned") else 0,
            findings=dict(findings),
            claims=tuple(replace(claim, differences=(), begins="") for claim in result.claims),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FileResult:
    """What became of one file.

    Attributes:
        path: The input, as it was named or found.
        state: ``done``; ``skipped``, since its output was there already; ``failed``; or, while
            the work goes on, ``waiting`` or ``running``.
        output: What was written, or was there already, or would be written in a dry run.
        summary: What was done; None where it failed before there was anything to say, or where it
            was skipped.
        conversion: All that was done, for a report; None where the options ask for no summaries of
            layers, or where there is none.
        error: Why it failed.
        seconds: The time that it took.
        traceback: Where in the code an unexpected error came up; empty for all others.
    """

    path: Path
    state: FileState
    output: Path | None = None
    summary: ConversionSummary | None = None
    conversion: ConversionResult | None = None
    error: FrozenBNError | None = None
    seconds: float = 0.0
    traceback: str = ""

    @property
    def exit_code(self) -> int:
        """What the command line makes of it: 0, or that of the error."""
        return self.error.exit_code if self.error else 0


def exit_code_of(results: Collection[FileResult], total: int | None = None) -> int:
    """Return the exit code of the worst, which is the largest; 130 if there are not ``total``."""
    if total is not None and len(results) < total:
        return INTERRUPTED
    return max((result.exit_code for result in results), default=0)


def without_tensors(result: ConversionResult) -> ConversionResult:
    """Return a result that holds no file open, and can be sent from process to process."""
    others = {key: _without_tensors(plan) for key, plan in result.others.items()}
    return replace(result, plan=_without_tensors(result.plan), others=others, entries=())


def _without_tensors(plan: Plan) -> Plan:
    layers = (replace(item, layer=replace(item.layer, tensors={})) for item in plan.layers)
    return replace(plan, layers=tuple(layers))
