"""Results as sections of a report in a file."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import TYPE_CHECKING

from frozenbn_cli.batch_norms.plan import LayerPlan, Plan
from frozenbn_cli.batch_norms.summaries import Summary
from frozenbn_cli.conversion.convert import ConversionResult
from frozenbn_cli.errors import FrozenBNError
from frozenbn_cli.inspection import InspectedStateDict, Inspection, Statistics
from frozenbn_cli.reports.claims_text import verdict_line
from frozenbn_cli.reports.console import printable
from frozenbn_cli.reports.grouping import (
    finding_groups,
    finding_labels,
    foreign_groups,
)
from frozenbn_cli.reports.inspection_text import (
    part_facts,
    part_notes,
    range_text,
    what_convert_would_do,
)
from frozenbn_cli.reports.page import FileFacts, LayerRow, Part, Section, Tone, Verdict
from frozenbn_cli.reports.pieces import by_reason_lines, folded, size_text, took_text
from frozenbn_cli.reports.terminal import OUTCOMES, left_lines, next_steps
from frozenbn_cli.verification.claims import Claim, verdict
from frozenbn_cli.wording import counted

if TYPE_CHECKING:
    from frozenbn_cli.verification.files import VerificationResult

__all__ = ["conversion_section", "inspection_section", "verification_section"]

_TONES: dict[str, Tone] = {
    "converted": "good",
    "planned": "plain",
    "unhealthy": "bad",
    "nothing to freeze": "warn",
    "different": "bad",
}
_VERDICT_TONES: dict[str, Tone] = {"passed": "good", "failed": "bad", "not verified": "warn"}


# Conversions


def conversion_section(result: ConversionResult, error: FrozenBNError | None = None) -> Section:
    """Return the section on a conversion.

    Args:
        result: What was done.
        error: Why nothing was written, if so.
    """
    tone, detail = _TONES[result.outcome], []
    words = _sentence(OUTCOMES[result.outcome][0])
    if result.claims:
        tone = _VERDICT_TONES[verdict(result.claims)]
        detail.append(f"{verdict_line(result.claims).plain}.")
    if error:
        detail.append(printable(f"{error.problem}. {error.advice}".rstrip()))
    if tone == "good" and any(
        finding.severity == "warning" for item in result.plan.frozen for finding in item.findings
    ):
        tone, words = "warn", f"{words}, with warnings"
    proven = _status(result.claims, "layers") == "equal"
    layers = _layer_rows(
        result.plan,
        result.summaries,
        lambda plan: _conversion_state(plan, result.outcome, proven),
    )
    part = Part(
        facts=_layer_facts(result.plan),
        findings=tuple(finding_groups(result.plan)),
        notes=tuple(line.plain for line in left_lines(result)),
        layers=layers,
    )
    return Section(
        title=result.input_path.name,
        verdict=Verdict(tone, words, " ".join(detail)),
        files=_conversion_files(result),
        claims=result.claims,
        findings=tuple(foreign_groups(result.foreign_names)),
        parts=(part,),
        steps=next_steps(result) if result.outcome == "converted" else None,
    )


def _conversion_files(result: ConversionResult) -> tuple[FileFacts, ...]:
    source = _facts(
        holds=result.kind,
        stored_as=result.container,
        size=size_text(result.input_bytes),
        key=result.key,
        sha256=result.input_sha256 or "",
        model=result.model,
    )
    output = _facts(
        format=result.output_format,
        size="not written" if result.output_bytes is None else size_text(result.output_bytes),
        made=result.made,
        took=took_text(result.seconds),
    )
    return (
        FileFacts("input", printable(result.input_path), source),
        FileFacts("output", printable(result.output_path), output),
    )


def _conversion_state(plan: LayerPlan, outcome: str, proven: bool) -> tuple[str, Tone]:
    if plan.layer.frozen_already:
        return "frozen already", "plain"
    if plan.action == "leave":
        return "left alone", "warn"
    if proven:
        return "frozen, identical", "good"
    if outcome == "converted":
        return "frozen", "plain"
    return ("would be frozen" if outcome == "planned" else "not frozen"), "plain"


# Verifications


def verification_section(result: VerificationResult) -> Section:
    """Return the section on a verification."""
    differing = {
        item.place: item.tolerated
        for claim in result.claims
        if claim.name == "layers"
        for item in claim.differences
    }
    proven = _status(result.claims, "layers") == "equal"
    layers = _layer_rows(
        result.plan,
        result.summaries,
        lambda plan: _verified_state(plan, result.frozen, differing, proven),
        prominent=differing,
    )
    part = Part(
        facts=(*_layer_facts(result.plan), f"{counted(len(result.frozen), 'layer')} frozen"),
        findings=tuple(finding_groups(result.plan)),
        notes=tuple(line.plain for line in by_reason_lines("live", result.live)),
        layers=layers,
    )
    found = result.verdict
    return Section(
        title=f"{result.original_path.name} and {result.converted_path.name}",
        verdict=Verdict(
            _VERDICT_TONES[found],
            _sentence(found),
            # After the word itself comes what it is about.
            _sentence(f"{verdict_line(result.claims).plain.rpartition(': ')[2]}."),
        ),
        files=(
            FileFacts(
                "original",
                printable(result.original_path),
                _facts(
                    holds=result.original_kind,
                    size=size_text(result.original_bytes),
                    key=result.key,
                ),
            ),
            FileFacts(
                "converted",
                printable(result.converted_path),
                _facts(
                    holds=result.converted_kind,
                    size=size_text(result.converted_bytes),
                    compared=str(result.tolerance),
                    took=took_text(result.seconds),
                ),
            ),
        ),
        claims=result.claims,
        parts=(part,),
    )


def _verified_state(
    plan: LayerPlan, frozen: Mapping[str, object], differing: Mapping[str, bool], proven: bool
) -> tuple[str, Tone]:
    name = plan.layer.name
    tolerated = differing.get(name or "the layer")
    if tolerated is not None:
        return ("frozen, within tolerance", "warn") if tolerated else ("different", "bad")
    if name not in frozen:
        return ("frozen before", "plain") if plan.layer.frozen_already else ("live", "warn")
    # Where the claim as a whole does not hold, a layer that it does not name may not have been run.
    return ("frozen, equal", "good") if proven else ("frozen", "plain")


# Inspections


def inspection_section(inspection: Inspection | FrozenBNError) -> Section:
    """Return the section on an inspection, or on a file that could not be read."""
    if isinstance(inspection, FrozenBNError):
        return _error_section(inspection)
    several = len(inspection.state_dicts) > 1
    facts = _facts(
        holds=inspection.kind,
        stored_as=inspection.container,
        size=size_text(inspection.size_bytes),
        model=inspection.model,
    )
    beside = tuple(f"beside: {name} ({text})" for name, text in inspection.beside.items())
    return Section(
        title=inspection.path.name or str(inspection.path),
        verdict=_inspection_verdict(inspection),
        files=(FileFacts("file", printable(inspection.path), facts),),
        findings=tuple(foreign_groups(inspection.foreign_names)),
        parts=tuple(
            _inspected_part(part, f"key {printable(part.key)}" if several else "")
            for part in inspection.state_dicts
        ),
        notes=tuple(map(printable, beside)),
    )


def _inspection_verdict(inspection: Inspection) -> Verdict:
    detail = _sentence(printable(what_convert_would_do(inspection)).removeprefix("convert: "))
    detail = f"frozenbn convert {detail[0].lower()}{detail[1:]}"
    plans = [item for part in inspection.state_dicts for item in part.plan.layers]
    severities = {finding.severity for item in plans for finding in item.findings}
    if inspection.has_errors:
        return Verdict("bad", "Unhealthy", detail)
    if any(part.misfits for part in inspection.state_dicts):
        return Verdict("bad", "Does not fit the model", detail)
    if not any(item.selected for item in plans):
        return Verdict("plain", "Nothing to freeze", detail)
    if "warning" in severities or inspection.foreign_names:
        return Verdict("warn", "Sound, with warnings", detail)
    return Verdict("good", "Sound", detail)


def _inspected_part(part: InspectedStateDict, heading: str) -> Part:
    return Part(
        heading=heading,
        facts=tuple(part_facts(part)),
        findings=tuple(finding_groups(part.plan)),
        notes=tuple(line.plain for line in part_notes(part)),
        layers=_layer_rows(part.plan, part.summaries, _inspected_state, statistics=part.statistics),
    )


def _inspected_state(plan: LayerPlan) -> tuple[str, Tone]:
    if plan.layer.frozen_already:
        return "frozen already", "plain"
    if plan.action == "leave":
        return "left alone", "warn"
    return ("refused", "bad") if plan.broken else ("would be frozen", "plain")


def _error_section(error: FrozenBNError) -> Section:
    path = error.where[0] if error.where else ""
    return Section(
        title=printable(path.rpartition("/")[2] or "file"),
        verdict=Verdict("bad", "Cannot be read", printable(error)),
        files=(FileFacts("file", printable(path)),),
    )


# What all have in common


def _layer_rows(
    plan: Plan,
    summaries: Mapping[str, Summary],
    state: Callable[[LayerPlan], tuple[str, Tone]],
    *,
    prominent: Container[str] = (),
    statistics: Mapping[str, Statistics] | None = None,
) -> tuple[LayerRow, ...]:
    """Return a row for each layer; prominent are these names, and what a folded table shows."""
    shown = {id(item) for item in folded(plan, all_layers=False)[0]}
    statistics = statistics or {}
    return tuple(
        _layer_row(
            number,
            item,
            summary=summaries.get(item.layer.name),
            state=state(item),
            prominent=id(item) in shown or item.layer.name in prominent,
            statistics=statistics.get(item.layer.name),
        )
        for number, item in enumerate(plan.layers, 1)
    )


def _layer_row(
    number: int,
    plan: LayerPlan,
    *,
    summary: Summary | None,
    state: tuple[str, Tone],
    prominent: bool,
    statistics: Statistics | None,
) -> LayerRow:
    layer = plan.layer
    variance = statistics.variance if statistics else None
    if summary:
        variance = summary.variance.lowest, summary.variance.highest
    source = "inferred" if layer.dims_source else "read"
    words, tone = state
    return LayerRow(
        number=number,
        name=printable(layer.name) or "(the file itself)",
        channels=layer.channels,
        eps=layer.eps,
        dims=f"{layer.spatial_dims}d {source}" if layer.spatial_dims else "–",
        variance=range_text(variance, "…") if variance else "–",
        findings=tuple(finding_labels(plan.findings)),
        state=words,
        tone=tone,
        prominent=prominent,
        summary=summary,
    )


def _layer_facts(plan: Plan) -> tuple[str, ...]:
    channels = sum(item.layer.channels for item in plan.layers)
    facts = [counted(len(plan.layers), "BatchNorm layer"), counted(channels, "channel")]
    if left := len(plan.left):
        facts.append(f"{left:,} left alone")
    return tuple(facts)


def _facts(**facts: str) -> tuple[tuple[str, str], ...]:
    return tuple(
        (label.replace("_", " "), printable(value)) for label, value in facts.items() if value
    )


def _status(claims: tuple[Claim, ...], name: str) -> str:
    return next((claim.status for claim in claims if claim.name == name), "not verified")


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]
