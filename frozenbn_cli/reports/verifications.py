"""What a report says of a verification."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from frozenbn_cli.batch_norms.plan import LayerPlan
from frozenbn_cli.reports.console import printable
from frozenbn_cli.reports.description import FileFacts, Part, Section, Tone, Verdict
from frozenbn_cli.reports.facts import VERDICT_TONES, file_facts, is_equal
from frozenbn_cli.reports.grouping import finding_groups
from frozenbn_cli.reports.layer_rows import layer_facts, layer_rows
from frozenbn_cli.reports.words import by_reason, sentence, size_text, took_text, verdict_words

if TYPE_CHECKING:
    from frozenbn_cli.verification.files import VerificationResult

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
        notes=tuple(by_reason("live", result.live)),
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


def _files(result: VerificationResult) -> tuple[FileFacts, ...]:
    original = file_facts(
        holds=result.original_kind, key=result.key, size=size_text(result.original_bytes)
    )
    converted = file_facts(
        holds=result.converted_kind,
        size=size_text(result.converted_bytes),
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
