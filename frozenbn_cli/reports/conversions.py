"""What a report says of a conversion."""

from __future__ import annotations

from functools import partial

from frozenbn_cli.batch_norms.plan import LayerPlan
from frozenbn_cli.conversion.terms import ConversionResult
from frozenbn_cli.errors import FrozenBNError
from frozenbn_cli.reports.console import printable
from frozenbn_cli.reports.description import (
    UNKNOWN,
    FileFacts,
    Glance,
    Part,
    Section,
    Tone,
    Verdict,
)
from frozenbn_cli.reports.facts import VERDICT_TONES, eps_briefly, file_facts, is_equal
from frozenbn_cli.reports.grouping import finding_groups, foreign_groups
from frozenbn_cli.reports.layer_rows import frozen_part, layer_facts, layer_rows, left_alone
from frozenbn_cli.reports.recognition import recognised_lines
from frozenbn_cli.reports.words import named, sentence, size_text, took_text, verdict_words
from frozenbn_cli.verification.claims import verdict
from frozenbn_cli.wording import counted

__all__ = ["describe_conversion"]

_OUTCOMES: dict[str, tuple[str, Tone]] = {
    "converted": ("converted", "good"),
    "planned": ("dry run, nothing was written", "plain"),
    "unhealthy": ("not converted: unhealthy statistics", "bad"),
    "nothing to freeze": ("not converted: nothing to freeze", "warn"),
    "inexact": ("not converted: no variance gives the same scales", "bad"),
    "different": ("not converted: verification failed", "bad"),
    "not verified": ("not converted: not verified what is required to be", "warn"),
}


def describe_conversion(result: ConversionResult, error: FrozenBNError | None = None) -> Section:
    """Return what a report says of a conversion.

    Args:
        result: What was done.
        error: Why nothing was written, if so.
    """
    proven = is_equal(result.claims, "layers")
    layers = layer_rows(
        result.plan,
        partial(_state, outcome=result.outcome, proven=proven),
        summaries=result.summaries,
    )
    part = Part(
        facts=_layer_facts(result),
        findings=tuple(finding_groups(result.plan)),
        notes=tuple(_notes(result)),
        layers=layers,
    )
    return Section(
        command="convert",
        title=printable(result.input_path.name),
        verdict=_verdict(result, error),
        files=_files(result),
        claims=result.claims,
        findings=tuple(foreign_groups(result.foreign_names)),
        parts=(part,),
        glance=_glance(result),
        steps=_next_steps(result) if result.outcome == "converted" else None,
    )


def _glance(result: ConversionResult) -> Glance:
    plan = result.plan
    is_done = result.outcome in ("converted", "planned")
    return Glance(
        holds=result.kind,
        layers=f"{len(plan.frozen) if is_done else 0:,} of {len(plan.layers):,}",
        eps=eps_briefly(plan),
        then=printable(result.output_path) if is_done else UNKNOWN,
    )


def _verdict(result: ConversionResult, error: FrozenBNError | None) -> Verdict:
    words, tone = _OUTCOMES[result.outcome]
    detail = []
    if result.claims:
        tone = VERDICT_TONES[verdict(result.claims)]
        detail.append(f"{sentence(str(verdict_words(result.claims)))}.")
    if error:
        detail.append(printable(f"{error.problem}. {error.advice}".rstrip()))
    if tone == "good" and any(claim.inputs_were_given for claim in result.claims):
        tone, words = "warn", f"{words}, but not run on the inputs that were given"
    elif tone == "good" and any(
        finding.severity == "warning" for item in result.plan.frozen for finding in item.findings
    ):
        tone, words = "warn", f"{words}, with warnings"
    return Verdict(tone, sentence(words), " ".join(detail))


def _files(result: ConversionResult) -> tuple[FileFacts, ...]:
    source = file_facts(
        holds=result.kind,
        stored_as=result.container,
        size=size_text(result.input_bytes),
        key=result.key,
        sha256=result.input_sha256 or "",
        model=result.model,
    )
    output = file_facts(
        format=result.output_format,
        size="not written" if result.output_bytes is None else size_text(result.output_bytes),
        eps=_target_eps(result),
        sha256=result.output_sha256 or "",
        made=result.made,
        took=took_text(result.seconds),
    )
    return (
        FileFacts("input", printable(result.input_path), source),
        FileFacts("output", printable(result.output_path), output),
    )


def _target_eps(result: ConversionResult) -> str:
    """Return the eps that the output is for, in words; empty if it is for each layer's own."""
    found = result.retargeting
    if found is None:
        return ""
    return (
        f"{found.eps:g} for all frozen layers; {len(found.before):,} running_var rewritten for it"
    )


def _layer_facts(result: ConversionResult) -> tuple[str, ...]:
    words = {"converted": "frozen", "planned": "would be frozen"}.get(result.outcome)
    if words is None:
        return layer_facts(result.plan) if result.plan.layers else ()
    return layer_facts(result.plan, len(result.plan.frozen), words)


def _state(plan: LayerPlan, *, outcome: str, proven: bool) -> tuple[str, Tone]:
    if plan.layer.frozen_already:
        return "already", "plain"
    if plan.action == "leave":
        return "left alone", "warn"
    if proven:
        return "identical", "good"
    return {"converted": "yes", "planned": "planned"}.get(outcome, "no"), "plain"


def _notes(result: ConversionResult) -> list[str]:
    """Return what was left alone, and what was not written, a line each."""
    lines = recognised_lines(result.plan)
    if result.is_taken and result.outcome == "planned":
        lines.append(f"{printable(result.output_path)} exists already; --force replaces it")
    words = {"converted": "frozen", "planned": "would be frozen"}.get(result.outcome)
    if words and any(item.deselected for item in result.plan.left):
        names = [item.layer.name for item in result.plan.frozen]
        lines.append(f"{words}: {frozen_part(result.plan, names)}")
    lines += left_alone(result.plan, result.prefix, result.renamed)
    if result.retargeting and result.retargeting.inexact and result.outcome != "inexact":
        lines.append(result.retargeting.inexact_text)
    lines += _training_notes(result)
    if result.left_out:
        left_out = [f"{name} ({what})" for name, what in result.left_out.items()]
        lines.append(f"not written: {named(left_out, 5)}")
    if result.beside:
        lines.append(f"not written, since beside the weights: {named(result.beside, 8)}")
    return lines


def _training_notes(result: ConversionResult) -> list[str]:
    """Return what became of the rest of a training checkpoint, a line each."""
    lines = []
    for key, plan in result.others.items():
        frozen = counted(len(plan.frozen), "layer")
        lines.append(f"frozen alike in {printable(key)}: {frozen}")
    for each in result.optimizers:
        key = printable(each.optimizer.key)
        if not each.places:
            lines.append(f"{key}: left as it is, none of its parameters goes")
            continue
        sizes = ", ".join(f"{before:,} → {after:,}" for before, after in each.group_sizes)
        names = f" ({named(each.names, 4)})" if each.names else ""
        lines.append(
            f"{key}: {counted(len(each.places), 'parameter')} left it{names}, all others keep "
            f"their moments; by group {sizes}; known by {each.proof}"
        )
    return lines


def _next_steps(result: ConversionResult) -> tuple[str, str]:
    """Return how to load the result: a sentence, and lines of Python."""
    path = repr(str(result.output_path))
    if result.output_format == "torchscript":
        return (
            "Load it with PyTorch alone, here or in C++:",
            f"import torch\nmodel = torch.jit.load({path})",
        )
    if result.output_format == "pt2":
        return (
            "Load it with PyTorch alone:",
            f"import torch\nmodel = torch.export.load({path}).module()",
        )
    imported, built = result.builder
    imports = "\n".join(filter(None, ("from frozenbn_cli import load_frozen", imported)))
    loading = f"{imports}\nmodel = load_frozen({built or 'model'}, {path}"
    if result.output_format == "checkpoint":
        key = f", key={result.key!r}" if result.key else ""
        return (
            "Load the model, and make its optimizer, before the rest of the checkpoint is loaded:",
            f"{loading}{key})",
        )
    whose = "the model" if built else "your model"
    if result.absent:
        return (
            f"Load it into {whose}, which keeps what was not written, and whose layers are frozen "
            "on the way; make the optimizer after this:",
            f"{loading}, skip={list(result.absent)})",
        )
    return (
        f"Load it into {whose}, whose layers are frozen on the way; make the optimizer after this:",
        f"{loading})",
    )
