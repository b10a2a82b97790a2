"""What a report says of statistics that were formed anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from frozenbn_cli.batch_norms.plan import LayerPlan
from frozenbn_cli.calibration.terms import CalibratedLayer, CalibrationResult
from frozenbn_cli.reports.console import printable
from frozenbn_cli.reports.description import FileFacts, LayerRow, Part, Section, Tone, Verdict
from frozenbn_cli.reports.facts import VERDICT_TONES, file_facts
from frozenbn_cli.reports.grouping import finding_groups
from frozenbn_cli.reports.layer_rows import layer_rows
from frozenbn_cli.reports.words import (
    by_reason,
    factor_text,
    mean_drift_text,
    named,
    size_text,
    took_text,
    verdict_words,
)
from frozenbn_cli.verification.claims import verdict
from frozenbn_cli.wording import counted

__all__ = ["describe_calibration"]

_PROMINENT = 12


def describe_calibration(result: CalibrationResult) -> Section:
    """Return what a report says of a file whose statistics were formed anew."""
    before = finding_groups(result.before)
    return Section(
        command="calibrate",
        title=printable(result.input_path.name),
        verdict=_verdict(result),
        files=_files(result),
        claims=result.claims,
        parts=(
            Part(
                heading="Before",
                findings=tuple(before),
                notes=() if before else ("nothing stood out",),
            ),
            Part(
                heading="Now",
                facts=_layer_facts(result),
                findings=tuple(finding_groups(result.after)),
                notes=tuple(_notes(result)),
                layers=_rows(result),
            ),
        ),
        steps=(
            "Freeze it:",
            f"import frozenbn_cli\nfrozenbn_cli.convert_file({str(result.output_path)!r})",
        ),
    )


def _verdict(result: CalibrationResult) -> Verdict:
    found = result.calibration
    tone: Tone = VERDICT_TONES[verdict(result.claims)]
    words = "Calibrated"
    if not found.settled:
        tone, words = "warn", "Calibrated, and not settled"
    return Verdict(tone, words, f"{verdict_words(result.claims)}.")


def _files(result: CalibrationResult) -> tuple[FileFacts, ...]:
    source = file_facts(
        holds=result.kind,
        stored_as=result.container,
        size=size_text(result.input_bytes),
        key=result.key,
        sha256=result.input_sha256,
        model=result.model,
    )
    output = file_facts(size=size_text(result.output_bytes), took=took_text(result.seconds))
    found = result.calibration
    data = file_facts(
        batches=counted(found.batches, "batch", "batches"),
        passes=counted(found.passes, "pass", "passes"),
    )
    return (
        FileFacts("input", printable(result.input_path), source),
        FileFacts("output", printable(result.output_path), output),
        FileFacts("data", printable(result.data), data),
    )


def _layer_facts(result: CalibrationResult) -> tuple[str, ...]:
    found = result.calibration
    done = sum(len(layer.names) for layer in found.layers)
    layers = counted(done + len(found.left), "BatchNorm layer")
    left = (f"{len(found.left):,} left alone",) if found.left else ()
    return (f"{done:,} of {layers} formed anew", *left)


def _notes(result: CalibrationResult) -> list[str]:
    """Return what settled, what was left alone, and what else is new, a line each."""
    found = result.calibration
    lines = [_on_passes(result), *by_reason("left alone", found.left)]
    if result.prefix:
        lines.append(f"in the file, every name begins with {printable(result.prefix)}")
    if any(layer.drift is None for layer in found.layers):
        broken = [layer.names[0] for layer in found.layers if layer.drift is None]
        lines.append(f"no drift, since the statistics were broken: {named(broken)}")
    if result.shared:
        lines.append(f"new too, being the same tensors: {named(result.shared)}")
    counts = {layer.uses for layer in found.layers}
    shown = f"{counts.pop():,}" if len(counts) == 1 else "how often a pass uses the layer"
    lines.append(f"num_batches_tracked is now {shown}")
    return [printable(line) for line in lines]


def _on_passes(result: CalibrationResult) -> str:
    found = result.calibration
    if found.apart is None:
        return "one pass: nothing tells how far the statistics are from those of the layers' inputs"
    if found.settled:
        return (
            "settled: a last pass measured in each layer the mean and the variance that it has now"
        )
    means, factor = found.apart
    words = (
        f"not settled: a last pass measured means up to {mean_drift_text(means)} and variances up "
        f"to {factor_text(factor)} from these"
    )
    if not found.steady:
        return f"{words}, since the data differ from one pass to the next"
    return words


def _rows(result: CalibrationResult) -> tuple[LayerRow, ...]:
    """Return a row for each layer, the worst drift first, and then those left alone."""
    layers = {name: layer for layer in result.calibration.worst_first for name in layer.names}
    rows = layer_rows(
        result.after,
        lambda plan: _state(plan, layers),
        summaries=result.summaries,
    )
    order = {name: place for place, name in enumerate(layers)}
    ordered = sorted(rows, key=lambda row: order.get(row.plan.layer.name, len(order)))
    return tuple(
        replace(
            row,
            prominent=place < _PROMINENT,
            drift=layers[row.plan.layer.name].drift if row.plan.layer.name in layers else None,
        )
        for place, row in enumerate(ordered)
    )


def _state(plan: LayerPlan, layers: Mapping[str, CalibratedLayer]) -> tuple[str, Tone]:
    layer = layers.get(plan.layer.name)
    if layer is None:
        return "left alone", "plain" if plan.layer.frozen_already else "warn"
    if layer.drift is None:
        return "broken before", "plain"
    means, factor = mean_drift_text(layer.drift.means), factor_text(layer.drift.variances)
    return f"{means}, {factor}", "plain"
