"""The report of an inspection, for people."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from frozenbn_cli.batch_norms.plan import LayerPlan
from frozenbn_cli.inspection import InspectedStateDict, Inspection, Statistics
from frozenbn_cli.reports.console import printable, symbol
from frozenbn_cli.reports.pieces import (
    eps_cell,
    finding_lines,
    findings_cell,
    folded,
    foreign_lines,
    layer_table,
    left_alone_lines,
    name_cell,
    named,
    separated,
    size_text,
    with_rest,
)
from frozenbn_cli.wording import counted

__all__ = [
    "inspection_report",
    "part_facts",
    "part_notes",
    "range_text",
    "what_convert_would_do",
]


_ENDLESS = 10_000
_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = ".:-=+*%#"


def inspection_report(
    inspection: Inspection, console: Console, *, all_layers: bool = False
) -> RenderableType:
    """Return the report of an inspection.

    Args:
        inspection: What was found.
        console: Where it will be printed, for its width and encoding.
        all_layers: Show every layer; a long table is folded otherwise.
    """
    blocks: list[Sequence[RenderableType]] = [
        [_header(inspection, console)],
        foreign_lines(inspection.foreign_names),
    ]
    several = len(inspection.state_dicts) > 1
    for part in inspection.state_dicts:
        heading = [Text(f"key {printable(part.key)}", "bold")] if several else []
        blocks.append([*heading, _summary(part, console)])
        if part.plan.layers:
            blocks.append(_layers(part, console, all_layers))
        blocks += [finding_lines(part.plan), part_notes(part)]
    blocks.append(_outlook(inspection))
    return separated(blocks)


def _header(inspection: Inspection, console: Console) -> Text:
    dot = symbol(console, "·")
    header = Text()
    header.append(printable(inspection.path), "bold")
    facts = [printable(inspection.kind), inspection.container, size_text(inspection.size_bytes)]
    facts.append(f"{inspection.seconds:.2f} s")
    if inspection.model:
        facts.append(f"model {printable(inspection.model)}")
    header.append("\n" + f" {dot} ".join(facts))
    return header


def _summary(part: InspectedStateDict, console: Console) -> Text:
    return Text(f" {symbol(console, '·')} ".join(part_facts(part)))


def part_facts(part: InspectedStateDict) -> list[str]:
    """Return what a state dict consists of, in a few words each."""
    layers = part.plan.layers
    dims = Counter(
        f"{plan.layer.spatial_dims}d" if plan.layer.spatial_dims else "of unknown dimensions"
        for plan in layers
    )
    facts = [counted(part.entries, "entry", "entries")]
    facts.append(f"{_count_text(sum(part.elements.values()))} elements")
    if part.elements:
        facts.append(", ".join(part.elements))
    of_each = ", ".join(f"{count} {name}" for name, count in dims.items())
    facts.append(counted(len(layers), "BatchNorm layer") + (f" ({of_each})" if layers else ""))
    if frozen := sum(plan.layer.frozen_already for plan in layers):
        facts.append(f"{frozen} frozen already")
    return facts


def _count_text(count: int) -> str:
    for size, unit in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)


def _layers(part: InspectedStateDict, console: Console, all_layers: bool) -> list[RenderableType]:
    shown, rest = folded(part.plan, all_layers=all_layers)
    table = _table(part, shown, console, wide=True)
    if _natural_width(table, console) > console.width:
        table = _table(part, shown, console, wide=False)
    return with_rest(table, rest, console)


def _natural_width(table: Table, console: Console) -> int:
    """Return how wide a table is where nothing in it has to fold."""
    options = console.options.update(max_width=_ENDLESS)
    return Measurement.get(console, options, table).maximum


def _table(
    part: InspectedStateDict, shown: Sequence[LayerPlan], console: Console, *, wide: bool
) -> Table:
    table = layer_table(console, shown)
    table.add_column("Channels", justify="right")
    table.add_column("Dims", no_wrap=True)
    table.add_column("eps", no_wrap=True)
    if wide:
        table.add_column("Momentum", justify="right")
        table.add_column("Batches", justify="right")
        table.add_column("Mean", no_wrap=True)
    table.add_column("Variance", no_wrap=True)
    if wide:
        table.add_column("1e-5..10", no_wrap=True)
    table.add_column("Findings", overflow="fold")
    for plan in shown:
        table.add_row(*_cells(plan, part.statistics.get(plan.layer.name), console, wide))
    return table


def _cells(
    plan: LayerPlan, statistics: Statistics | None, console: Console, wide: bool
) -> list[Text | str]:
    layer = plan.layer
    unknown, dots = symbol(console, "–"), symbol(console, "…")
    cells: list[Text | str] = [
        name_cell(plan),
        f"{layer.channels:,}",
        _dims(plan, unknown, wide),
        eps_cell(plan),
    ]
    if wide:
        cells += [
            unknown if layer.momentum is None else f"{layer.momentum:g}",
            unknown if layer.batches_tracked is None else f"{layer.batches_tracked:,}",
            range_text(statistics.mean, dots) if statistics else unknown,
        ]
    cells.append(range_text(statistics.variance, dots) if statistics else unknown)
    if wide:
        cells.append(_bar(statistics.variance_decades, console) if statistics else "")
    findings = findings_cell(plan.findings, console)
    if plan.action == "leave" and not layer.frozen_already:
        findings = (
            Text.assemble(("left alone", "yellow"), ", ", findings)
            if plan.findings
            else Text("left alone", "yellow")
        )
    elif layer.frozen_already:
        findings = Text("frozen already")
    return [*cells, findings]


def _dims(plan: LayerPlan, unknown: str, wide: bool) -> str:
    layer = plan.layer
    if layer.spatial_dims is None:
        return unknown
    source = (" inferred" if layer.dims_source else " read") if wide else ""
    return f"{layer.spatial_dims}d{source}"


def range_text(values: tuple[float, float], dots: str) -> str:
    """Return the smallest and the largest value, with ``dots`` between."""
    low, high = values
    if math.isnan(low):
        return "NaN"
    return f"{_short(low)} {dots} {_short(high)}"


def _short(value: float) -> str:
    return f"{value:,.0f}" if 100 <= abs(value) < 1e5 else f"{value:.2g}"


def _bar(counts: tuple[int, ...], console: Console) -> str:
    """Return the distribution of variances by decades, from below 1e-5 to 10 and more."""
    bars = _BARS if symbol(console, "▁") == "▁" else _ASCII_BARS
    most = max(counts)
    return "".join(
        bars[round((len(bars) - 1) * count / most)] if count else " " for count in counts
    )


def part_notes(part: InspectedStateDict) -> list[Text]:
    """Return what is left alone, left out or does not fit, a line each."""
    lines = left_alone_lines(part.plan, part.prefix)
    lines += [Text(f"does not fit the model: {printable(text)}") for text in part.misfits]
    if part.left_out:
        lines.append(Text(f"no tensors: {named(_described(part.left_out), 5)}"))
    if part.unsupported:
        lines.append(Text(f"not supported: {named(_described(part.unsupported), 5)}"))
    return lines


def _outlook(inspection: Inspection) -> list[RenderableType]:
    lines: list[RenderableType] = []
    if inspection.beside:
        lines.append(Text(f"beside: {named(_described(inspection.beside), 8)}"))
    lines.append(Text(printable(what_convert_would_do(inspection))))
    return lines


def _described(items: Mapping[str, str]) -> list[str]:
    return [f"{name} ({text})" for name, text in items.items()]


def what_convert_would_do(inspection: Inspection) -> str:
    """Return what `convert` would do with the file, or why it would not."""
    candidates = [part for part in inspection.state_dicts if part.plan.layers]
    if not inspection.state_dicts:
        return f"convert: not possible. {inspection.advice}"
    if len(candidates) > 1:
        keys = " or ".join(f"--key {part.key}" for part in candidates)
        return f"convert: would ask which state dict is meant; pass {keys}."
    if not candidates or not candidates[0].plan.selected:
        return f"convert: would find nothing to freeze. {inspection.advice}".rstrip()
    plan = candidates[0].plan
    if candidates[0].misfits:
        return "convert: would refuse, since the file does not fit the model."
    if plan.broken:
        unhealthy = f"{len(plan.broken)} of {counted(len(plan.layers), 'layer')}"
        if plan.forceable:
            return f"convert: would refuse, since the statistics of {unhealthy} are unhealthy."
        return f"convert: would refuse, since {unhealthy} cannot be frozen."
    if part_cannot := candidates[0].unsupported:
        return f"convert: would refuse, since it cannot write {named(part_cannot)}."
    return f"convert: would freeze {len(plan.frozen)} of {counted(len(plan.layers), 'layer')}."
