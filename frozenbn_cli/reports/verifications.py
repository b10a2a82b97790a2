"""What a report says of a verification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from frozenbn_cli.batch_norms.plan import LayerPlan
from frozenbn_cli.reports.console import printable
from frozenbn_cli.reports.description import FileFacts, Part, Section, Tone, Verdict
from frozenbn_cli.reports.facts import VERDICT_TONES, file_facts, is_equal
from frozenbn_cli.reports.grouping import finding_groups
from frozenbn_cli.reports.layer_rows import frozen_part, layer_facts, layer_rows
from frozenbn_cli.reports.words import (
    by_reason,
    named,
    sentence,
    size_text,
    took_text,
    verdict_words,
)
from frozenbn_cli.verification.terms import Recorded, VerificationResult

__all__ = ["describe_verification"]


def describe_verification(result: VerificationResult) -> Section:
    """Return what a report says of a verification."""
    differing = {
        item.place: item.tolerated
        for claim in result.claims
        if claim.name == "layers"
        for item in claim.differences
    }
    proven = is_equal(result.claims, "layers")
    layers = layer_rows(
        result.plan,
        partial(_state, frozen=result.frozen, differing=differing, proven=proven),
        summaries=result.summaries,
        prominent=differing,
    )
    part = Part(
        facts=layer_facts(result.plan, len(result.frozen)),
        findings=tuple(finding_groups(result.plan)),
        notes=tuple(_notes(result)),
        layers=layers,
    )
    said = verdict_words(result.claims)
    # After the word itself comes what it is about.
    detail = f"{said.first}{said.what.removeprefix(': ')}{said.rest}" or said.word.lower()
    return Section(
        command="verify",
        title=printable(f"{result.original_path.name} and {result.converted_path.name}"),
        verdict=Verdict(
            VERDICT_TONES[result.verdict], sentence(result.verdict), f"{sentence(detail)}."
        ),
        files=_files(result),
        claims=result.claims,
        parts=(part,),
    )


def _notes(result: VerificationResult) -> list[str]:
    lines = by_reason("live", result.live)
    if result.frozen and any(item.deselected for item in result.plan.left):
        lines.insert(0, f"frozen: {frozen_part(result.plan, result.frozen)}")
    if said := recorded_words(result.recorded):
        lines.insert(0, f"from the record of the converted file: {'; '.join(said)}")
    if result.swapped:
        lines.append(
            "in the wrong order? The layers of the first file are frozen, those of the second live"
        )
    return lines


def recorded_words(recorded: Recorded) -> list[str]:
    """Return what was taken from a record, in words."""
    chosen = recorded.selection
    dims = " and ".join(f"{n}d" for n in recorded.dims or ())
    return [
        *([f"key {recorded.key!a}"] if recorded.key else []),
        *(f"eps {value:g}, given at conversion" for value in recorded.eps),
        *([f"included {_quoted(chosen.include)}"] if chosen.include else []),
        *([f"excluded {_quoted(chosen.exclude)}"] if chosen.exclude else []),
        *(f"{printable(name)} said to be {n}d" for name, n in chosen.dims_of),
        *([f"layers said to be {chosen.state}"] if chosen.state else []),
        *([f"layers of {dims} to be frozen"] if dims else []),
        *(_renamed_words(old, new) for old, new in recorded.renamed),
    ]


def _quoted(patterns: Sequence[str]) -> str:
    return named([repr(pattern) for pattern in patterns])


def _renamed_words(old: str, new: str) -> str:
    if not old:
        return f"{new!a} put in front of names"
    return f"{old!a} {f'replaced by {new!a}' if new else 'taken off names'}"


def _files(result: VerificationResult) -> tuple[FileFacts, ...]:
    original = file_facts(
        holds=result.original_kind,
        key=result.key,
        size=size_text(result.original_bytes),
        sha256=result.original_sha256 or "",
    )
    converted = file_facts(
        holds=result.converted_kind,
        size=size_text(result.converted_bytes),
        sha256=result.converted_sha256 or "",
        compared=str(result.tolerance),
        took=took_text(result.seconds),
    )
    return (
        FileFacts("original", printable(result.original_path), original),
        FileFacts("converted", printable(result.converted_path), converted),
    )


def _state(
    plan: LayerPlan, *, frozen: Mapping[str, object], differing: Mapping[str, bool], proven: bool
) -> tuple[str, Tone]:
    name = plan.layer.name
    tolerated = differing.get(name or "the layer")
    if tolerated is not None:
        return ("within tolerance", "warn") if tolerated else ("different", "bad")
    if name not in frozen:
        return ("before", "plain") if plan.layer.frozen_already else ("live", "warn")
    # Where the claim as a whole does not hold, a layer that it does not name may not have been run.
    return ("identical", "good") if proven else ("yes", "plain")
