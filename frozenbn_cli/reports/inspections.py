"""What a report says of an inspection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from frozenbn_cli.batch_norms.plan import LayerPlan
from frozenbn_cli.errors import FrozenBNError
from frozenbn_cli.inspection import InspectedStateDict, Inspection
from frozenbn_cli.reports.console import printable
from frozenbn_cli.reports.description import (
    FileFacts,
    Glance,
    Part,
    Section,
    Tone,
    Verdict,
)
from frozenbn_cli.reports.facts import eps_briefly, file_facts
from frozenbn_cli.reports.grouping import finding_groups, foreign_groups
from frozenbn_cli.reports.layer_rows import layer_rows, left_alone
from frozenbn_cli.reports.recognition import recognised_briefly, recognised_lines
from frozenbn_cli.reports.records import record_facts
from frozenbn_cli.reports.words import count_text, named, size_text
from frozenbn_cli.wording import counted

__all__ = ["describe_inspection"]

_NOT_HASHED = "not taken, since inspect reads no weights; convert and verify tell it"


def describe_inspection(inspection: Inspection | FrozenBNError) -> Section:
    """Return what a report says of an inspection, or of a file that could not be read."""
    if isinstance(inspection, FrozenBNError):
        return _unreadable(inspection)
    several = len(inspection.state_dicts) > 1
    facts = file_facts(
        holds=inspection.kind,
        stored_as=inspection.container,
        size=size_text(inspection.size_bytes),
        sha256=_NOT_HASHED,
        took=f"{inspection.seconds:.2f} s",
        model=inspection.model,
    )
    beside = named(_described(inspection.beside), 8)
    return Section(
        command="inspect",
        title=printable(inspection.path.name or inspection.path),
        verdict=_verdict(inspection),
        files=(FileFacts("file", printable(inspection.path), facts),),
        findings=tuple(foreign_groups(inspection.foreign_names)),
        parts=tuple(
            _part(part, f"key {printable(part.key)}" if several else "")
            for part in inspection.state_dicts
        ),
        glance=_glance(inspection),
        record=record_facts(inspection.record) if inspection.record else (),
        notes=(f"beside: {beside}",) if beside else (),
    )


def _unreadable(error: FrozenBNError) -> Section:
    path = error.where[0] if error.where else ""
    return Section(
        command="inspect",
        title=printable(path.rpartition("/")[2] or "file"),
        verdict=Verdict("bad", "Cannot be read", printable(error.shown)),
        files=(FileFacts("file", printable(path)),),
    )


def _verdict(inspection: Inspection) -> Verdict:
    detail = printable("frozenbn convert would " + "".join(_convert_would(inspection)))
    plans = [item for part in inspection.state_dicts for item in part.plan.layers]
    severities = {finding.severity for item in plans for finding in item.findings}
    if inspection.has_errors:
        words = "Unhealthy" if "error" in severities else "Calls foreign code"
        return Verdict("bad", words, detail)
    if any(part.misfits for part in inspection.state_dicts):
        return Verdict("bad", "Does not fit the model", detail)
    if not any(item.selected for item in plans):
        return Verdict("plain", "Nothing to freeze", detail)
    if "warning" in severities or inspection.foreign_names:
        return Verdict("warn", "Sound, with warnings", detail)
    return Verdict("good", "Sound", detail)


def _convert_would(inspection: Inspection) -> tuple[str, str]:
    """Return what `convert` would do in a few words, and how a sentence with them goes on."""
    candidates = [part for part in inspection.state_dicts if part.plan.layers]
    if not inspection.state_dicts:
        return "refuse it", f". {inspection.advice}"
    if len(candidates) > 1:
        keys = " or ".join(f"--key {part.key}" for part in candidates)
        return "ask which state dict is meant", f"; pass {keys}."
    if not candidates or not candidates[0].plan.selected:
        advice = (candidates[0].plan.advice if candidates else "") or inspection.advice
        return "find nothing to freeze", f". {advice}".rstrip()
    plan = candidates[0].plan
    if candidates[0].misfits:
        return "refuse", ", since the file does not fit the model."
    if plan.broken:
        unhealthy = f"{len(plan.broken)} of {counted(len(plan.layers), 'layer')}"
        if plan.forceable:
            return "refuse", f", since the statistics of {unhealthy} are unhealthy."
        return "refuse", f", since {unhealthy} cannot be frozen."
    frozen = f"freeze {len(plan.frozen)} of {counted(len(plan.layers), 'layer')}"
    if cannot := candidates[0].unsupported:
        return frozen, f", and leave out what it cannot write: {named(cannot)}."
    return frozen, "."


def _glance(inspection: Inspection) -> Glance:
    layers = [item.layer for part in inspection.state_dicts for item in part.plan.layers]
    dims = Counter(f"{layer.spatial_dims or '?'}d" for layer in layers)
    return Glance(
        holds=inspection.kind,
        layers=", ".join(f"{count:,} {name}" for name, count in dims.items()) or "none",
        eps=eps_briefly(*(part.plan for part in inspection.state_dicts)),
        then=_convert_would(inspection)[0],
    )


def _part(part: InspectedStateDict, heading: str) -> Part:
    return Part(
        heading=heading,
        facts=tuple(_facts(part)),
        findings=tuple(finding_groups(part.plan)),
        notes=tuple(_notes(part)),
        layers=layer_rows(part.plan, _state, summaries=part.summaries, statistics=part.statistics),
    )


def _facts(part: InspectedStateDict) -> list[str]:
    """Return what a state dict consists of, in a few words each."""
    layers = part.plan.layers
    dims = Counter(
        f"{plan.layer.spatial_dims}d" if plan.layer.spatial_dims else "of unknown dimensions"
        for plan in layers
    )
    facts = [counted(part.entries, "entry", "entries")]
    facts.append(f"{count_text(sum(part.elements.values()))} elements")
    if part.elements:
        facts.append(", ".join(part.elements))
    of_each = ", ".join(f"{count} {name}" for name, count in dims.items())
    facts.append(counted(len(layers), "BatchNorm layer") + (f" ({of_each})" if layers else ""))
    facts += recognised_briefly(part.plan)
    if frozen := sum(plan.layer.frozen_already for plan in layers):
        facts.append(f"{frozen} frozen already")
    return facts


def _notes(part: InspectedStateDict) -> list[str]:
    """Return what is left alone, left out or does not fit, a line each."""
    lines = recognised_lines(part.plan) + left_alone(part.plan, part.prefix, part.renamed)
    lines += [f"does not fit the model: {text}" for text in part.misfits]
    if part.left_out:
        lines.append(f"left out: {named(_described(part.left_out), 5)}")
    if part.unsupported:
        lines.append(f"cannot be written: {named(_described(part.unsupported), 5)}")
    return lines


def _described(items: Mapping[str, str]) -> list[str]:
    return [f"{name} ({text})" for name, text in items.items()]


def _state(plan: LayerPlan) -> tuple[str, Tone]:
    if plan.layer.frozen_already:
        return "frozen already", "plain"
    if plan.action == "leave":
        return "left alone", "warn"
    return ("refused", "bad") if plan.broken else ("would be frozen", "plain")
