"""The report of a conversion, for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.text import Text

from frozenbn_cli.batch_norms.plan import LayerPlan
from frozenbn_cli.conversion.convert import ConversionResult
from frozenbn_cli.reports.claims_text import claims_table, evidence, verdict_line
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
    took_text,
    with_rest,
)

__all__ = ["OUTCOMES", "conversion_report", "left_lines", "next_steps"]

OUTCOMES = {
    "converted": ("converted", "bold green"),
    "planned": ("dry run, nothing was written", "bold"),
    "unhealthy": ("not converted: unhealthy statistics", "bold red"),
    "nothing to freeze": ("not converted: nothing to freeze", "bold yellow"),
    "different": ("not converted: verification failed", "bold red"),
}
"""How reports call each outcome, and its style on a terminal."""


def conversion_report(
    result: ConversionResult, console: Console, *, all_layers: bool = False
) -> RenderableType:
    """Return the report of a conversion.

    Args:
        result: What was done.
        console: Where it will be printed, for its width and encoding.
        all_layers: Show every layer; a long table is folded otherwise.
    """
    blocks: list[Sequence[RenderableType]] = [[_header(result, console)]]
    if result.plan.layers:
        blocks.append(_layers(result, console, all_layers))
    blocks += [foreign_lines(result.foreign_names), finding_lines(result.plan)]
    if result.claims:
        blocks.append([claims_table(result.claims, console)])
        blocks.append(evidence(result.claims, console))
    blocks.append(left_lines(result))
    if result.outcome == "converted":
        blocks.append([_next_steps(result)])
    if result.claims:
        blocks.append([verdict_line(result.claims)])
    return separated(blocks)


def _header(result: ConversionResult, console: Console) -> Text:
    arrow, dot = symbol(console, "→"), symbol(console, "·")
    words, style = OUTCOMES[result.outcome]
    header = Text()
    header.append(printable(result.input_path), "bold")
    if result.outcome in ("converted", "planned"):
        header.append(f" {arrow} ")
        header.append(printable(result.output_path), "bold")
    header.append("\n")
    header.append(words, style)
    sizes = size_text(result.input_bytes)
    if result.output_bytes is not None:
        sizes += f" {arrow} {size_text(result.output_bytes)}"
    kind = f"{result.kind}, key {result.key}" if result.key else result.kind
    facts = [
        f"{printable(kind)} ({result.container})",
        sizes,
        took_text(result.seconds),
    ]
    if result.model:
        facts.append(f"model {printable(result.model)}")
    if result.made:
        facts.append(printable(result.made))
    header.append("".join(f" {dot} {fact}" for fact in facts))
    return header


# Layers


def _layers(result: ConversionResult, console: Console, all_layers: bool) -> list[RenderableType]:
    shown, rest = folded(result.plan, all_layers=all_layers)
    proven = any(claim.name == "layers" and claim.status == "equal" for claim in result.claims)
    table = layer_table(console, shown)
    table.add_column("Channels", justify="right")
    table.add_column("eps", no_wrap=True)
    table.add_column("Findings", overflow="fold")
    table.add_column("Frozen", no_wrap=True)
    for plan in shown:
        table.add_row(
            name_cell(plan),
            f"{plan.layer.channels:,}",
            eps_cell(plan),
            findings_cell(plan.findings, console),
            _state(plan, console, result.outcome, proven),
        )
    return with_rest(table, rest, console)


def _state(plan: LayerPlan, console: Console, outcome: str, proven: bool) -> Text:
    if plan.layer.frozen_already:
        return Text("already")
    if plan.action == "leave":
        return Text("left alone", "yellow")
    if proven:
        return Text(f"{symbol(console, '✓')} identical", "green")
    return Text("frozen" if outcome == "converted" else "planned" if outcome == "planned" else "no")


# What was left, what comes next


def left_lines(result: ConversionResult) -> list[Text]:
    """Return what was left alone, and what was not written, a line each."""
    lines = left_alone_lines(result.plan, result.prefix)
    if result.left_out:
        lines.append(Text(f"not written, since no tensor: {named(result.left_out, 5)}"))
    if result.beside:
        lines.append(Text(f"not written, since beside the weights: {named(result.beside, 8)}"))
    return lines


def next_steps(result: ConversionResult) -> tuple[str, str]:
    """Return how to load the result: a sentence, and two lines of Python."""
    path = repr(str(result.output_path))
    if result.output_format == "torchscript":
        return (
            "Load it with PyTorch alone, here or in C++:",
            f"import torch\nmodel = torch.jit.load({path})",
        )
    return (
        "Load it into your model, whose layers are frozen on the way:",
        f"from frozenbn_cli import load_frozen\nmodel = load_frozen(model, {path})",
    )


def _next_steps(result: ConversionResult) -> Text:
    sentence, lines = next_steps(result)
    steps = Text(f"{sentence}\n")
    steps.append("\n".join(f"    {line}" for line in lines.splitlines()), "cyan")
    return steps
