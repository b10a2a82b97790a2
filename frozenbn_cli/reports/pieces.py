"""What the reports on layers have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from frozenbn_cli.batch_norms.findings import Finding
from frozenbn_cli.batch_norms.plan import LayerPlan, Plan
from frozenbn_cli.reports.console import printable, symbol
from frozenbn_cli.reports.grouping import (
    FindingGroup,
    finding_groups,
    finding_labels,
    foreign_groups,
    named,
)
from frozenbn_cli.wording import counted

__all__ = [
    "by_reason_lines",
    "eps_cell",
    "finding_lines",
    "findings_cell",
    "folded",
    "foreign_lines",
    "layer_table",
    "lean_table",
    "left_alone_lines",
    "name_cell",
    "named",
    "separated",
    "size_text",
    "took_text",
    "with_rest",
]

_FOLD_ABOVE = 12
_EXCEPTIONS_SHOWN = 8
_EXAMPLES_SHOWN = 3
_NAME_WIDTH = 12
_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def size_text(count: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{count:,} bytes" if unit == "bytes" else f"{value:,.1f} {unit}"


def took_text(seconds: Mapping[str, float]) -> str:
    """Return the time that all stages took."""
    return f"{sum(seconds.values()):.1f} s"


def folded(plan: Plan, *, all_layers: bool) -> tuple[list[LayerPlan], list[LayerPlan]]:
    """Return the layers that a table shows, in the file's order, and those that it leaves out.

    Shown are all if they are few or asked for, otherwise those that a reader has to see, or a few
    as examples.
    """
    layers = list(plan.layers)
    if all_layers or len(layers) <= _FOLD_ABOVE:
        return layers, []
    places = sorted(range(len(layers)), key=lambda place: _gravity(layers[place]), reverse=True)
    grave = [place for place in places[:_EXCEPTIONS_SHOWN] if _gravity(layers[place]) > 0]
    shown = set(grave or range(_EXAMPLES_SHOWN))
    return (
        [layer for place, layer in enumerate(layers) if place in shown],
        [layer for place, layer in enumerate(layers) if place not in shown],
    )


def _gravity(plan: LayerPlan) -> float:
    """Return how much a reader has to see this layer; 0 for not at all."""
    severities = {finding.severity for finding in plan.findings}
    if "error" in severities:
        return 1e6
    if plan.action == "leave" and not plan.layer.frozen_already:
        return 1e3
    if "warning" in severities:
        return max(finding.factor or 1.0 for finding in plan.findings)
    return 0


def lean_table(console: Console, *, header: bool = True) -> Table:
    """Return an empty table as reports have it, lean on a terminal, plain in a pipe."""
    return Table(
        box=box.SIMPLE_HEAD if header and console.is_terminal else None,
        show_header=header,
        header_style="bold",
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0) if console.is_terminal else (0, 2, 0, 0),
    )


def layer_table(console: Console, plans: Iterable[LayerPlan]) -> Table:
    """Return a table for ``plans``.

    Its first column is there, for their names: these fold where they are too long, but never
    into slivers.
    """
    table = lean_table(console)
    longest = max((len(plan.layer.name) for plan in plans), default=0)
    table.add_column("Layer", overflow="fold", min_width=min(longest, _NAME_WIDTH))
    return table


def name_cell(plan: LayerPlan) -> Text:
    """Return a layer's name."""
    return Text(printable(plan.layer.name) or "(the file itself)")


def eps_cell(plan: LayerPlan) -> Text:
    """Return a layer's eps and where it is known from."""
    eps = plan.layer.eps
    style = "yellow" if eps.source == "assumed" else ""
    return Text(f"{eps.value:g} {eps.source}", style)


def findings_cell(findings: tuple[Finding, ...], console: Console) -> Text:
    """Return a few words on each finding."""
    texts = [
        Text(label, _STYLES[severity])
        for label, severity in finding_labels(findings, times=symbol(console, "×"))
    ]
    return Text(", ").join(texts) if texts else Text(symbol(console, "–"), "dim")


def with_rest(table: Table, rest: list[LayerPlan], console: Console) -> list[RenderableType]:
    """Return a table, and one line on the layers that it leaves out."""
    if not rest:
        return [table]
    channels = [plan.layer.channels for plan in rest]
    eps = Counter(f"{plan.layer.eps.value:g} {plan.layer.eps.source}" for plan in rest)
    found = sum(bool(plan.findings) for plan in rest)
    facts = [
        counted(len(rest), "more layer"),
        symbol(console, "–").join(f"{n:,}" for n in sorted({min(channels), max(channels)}))
        + " channels",
        "eps " + ", ".join(eps),
        f"{found} with findings" if found else "no findings",
        "--all shows each",
    ]
    line = Text(f" {symbol(console, '·')} ".join(facts), "dim")
    return [table, Padding(line, (0, 0, 0, 2))]


def finding_lines(plan: Plan) -> list[RenderableType]:
    """Return a line for each kind of finding, added up over the layers, the gravest first."""
    return [_finding_line(group) for group in finding_groups(plan)]


def _finding_line(group: FindingGroup) -> Text:
    line = Text()
    line.append(f"{group.severity}: ", _STYLES[group.severity])
    where = f" ({group.where})" if group.where else ""
    line.append(f"{group.message}{where}. {group.advice}".rstrip())
    return line


def left_alone_lines(plan: Plan, prefix: str) -> list[Text]:
    """Return a line for each reason for which layers are left alone, and one on the prefix."""
    reasons = {item.layer.name: item.reason or "" for item in plan.left}
    lines = by_reason_lines("left alone", reasons)
    if prefix:
        lines.append(Text(f"taken off every name: {printable(prefix)} (--keep-prefix keeps it)"))
    return lines


def by_reason_lines(title: str, reasons: Mapping[str, str]) -> list[Text]:
    """Return a line for each reason, with the layers that it concerns."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    return [
        Text(f"{title}: {named(names)}: {printable(reason)}") for reason, names in by_reason.items()
    ]


def foreign_lines(names: Mapping[str, bool]) -> list[RenderableType]:
    """Return what loading the file without care would import and call."""
    return [_finding_line(group) for group in foreign_groups(names)]


def separated(blocks: Iterable[Sequence[RenderableType]]) -> RenderableType:
    """Return the blocks that hold anything, with an empty line between."""
    parts: list[RenderableType] = []
    for block in blocks:
        if block:
            parts += [Text(), *block] if parts else [*block]
    return Group(*parts)
