"""What the reports on layers have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from frozenbn_cli.findings import ADVICE, LABELS, Finding
from frozenbn_cli.plan import LayerPlan, Plan
from frozenbn_cli.reports.console import printable, symbol
from frozenbn_cli.wording import counted

__all__ = [
    "by_reason_lines",
    "eps_cell",
    "finding_lines",
    "findings_cell",
    "folded",
    "foreign_lines",
    "layer_table",
    "left_alone_lines",
    "name_cell",
    "named",
    "separated",
    "size_text",
    "with_rest",
]

_FOLD_ABOVE = 12
_EXCEPTIONS_SHOWN = 8
_EXAMPLES_SHOWN = 3
_NAMED = 3
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


def layer_table(console: Console, plans: Iterable[LayerPlan]) -> Table:
    """Return a table as reports have it, lean on a terminal, plain in a pipe, for ``plans``.

    Its first column is there, for their names: these fold where they are too long, but never
    into slivers.
    """
    table = Table(
        box=box.SIMPLE_HEAD if console.is_terminal else None,
        header_style="bold",
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0) if console.is_terminal else (0, 2, 0, 0),
    )
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
    texts = []
    implied = {"variance_below_eps"} if any(item.code == "eps_matters" for item in findings) else ()
    for finding in findings:
        if finding.code in implied:
            continue
        label = LABELS[finding.code]
        if finding.factor:
            label += f" {symbol(console, '×')}{finding.factor:.3g}"
        elif finding.channels:
            label += f" ({finding.channels:,} ch.)"
        texts.append(Text(label, _STYLES[finding.severity]))
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
    by_code: dict[str, dict[str, Finding]] = {}
    for item in plan.layers:
        for finding in item.findings:
            by_code.setdefault(finding.code, {})[item.layer.name] = finding
    parts: list[RenderableType] = []
    for severity in ("error", "warning", "note"):
        for code, by_layer in by_code.items():
            if next(iter(by_layer.values())).severity == severity and not (
                code == "variance_below_eps" and "eps_matters" in by_code
            ):
                parts.append(_finding_line(code, by_code))
    return parts


def _finding_line(code: str, by_code: dict[str, dict[str, Finding]]) -> Text:
    findings = list(by_code[code].values())
    names = [name for name in by_code[code] if name]
    channels = sum(finding.channels or 0 for finding in findings)
    where = f"{counted(channels, 'channel')} of " if channels else ""
    where += named(names) if 0 < len(names) <= _NAMED else counted(len(findings), "layer")
    layer, worst = max(by_code[code].items(), key=lambda item: item[1].factor or 0)
    if worst.worst_channel is not None and channels > 1:
        where += f"; worst: channel {worst.worst_channel}"
        where += f" of {printable(layer)}" if len(names) > 1 else ""
    line = Text()
    line.append(f"{worst.severity}: ", _STYLES[worst.severity])
    line.append(f"{worst.message} ({where}).")
    below = sum(finding.channels or 0 for finding in by_code.get("variance_below_eps", {}).values())
    if code == "eps_matters" and below:
        line.append(f" {counted(below, 'channel')} have variance below eps.")
    if code in ADVICE:
        line.append(f" {ADVICE[code]}")
    return line


def left_alone_lines(plan: Plan, prefix: str) -> list[RenderableType]:
    """Return a line for each reason for which layers are left alone, and one on the prefix."""
    reasons = {item.layer.name: item.reason or "" for item in plan.left}
    lines = by_reason_lines("left alone", reasons)
    if prefix:
        lines.append(Text(f"taken off every name: {printable(prefix)} (--keep-prefix keeps it)"))
    return lines


def by_reason_lines(title: str, reasons: Mapping[str, str]) -> list[RenderableType]:
    """Return a line for each reason, with the layers that it concerns."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        by_reason.setdefault(reason, []).append(name)
    return [
        Text(f"{title}: {named(names)}: {printable(reason)}") for reason, names in by_reason.items()
    ]


def named(names: Iterable[str], at_most: int = 3) -> str:
    """Return the first names, and how many there are beyond."""
    names = list(names)
    more = f" and {len(names) - at_most} more" if len(names) > at_most else ""
    return ", ".join(printable(name) for name in names[:at_most]) + more


def foreign_lines(names: Mapping[str, bool]) -> list[RenderableType]:
    """Return what loading the file without care would import and call."""
    lines: list[RenderableType] = []
    for verb, called in (("call", True), ("import", False)):
        if found := [name for name, is_called in names.items() if is_called == called]:
            severity = "error" if called else "warning"
            line = Text()
            line.append(f"{severity}: ", _STYLES[severity])
            line.append(
                f"torch.load(weights_only=False) would {verb} {named(found, 5)}, which a model has "
                "no need of. It was not done here, and none of it is in the output."
            )
            lines.append(line)
    return lines


def separated(blocks: Iterable[list[RenderableType]]) -> RenderableType:
    """Return the blocks that hold anything, with an empty line between."""
    parts: list[RenderableType] = []
    for block in blocks:
        if block:
            parts += [Text(), *block] if parts else block
    return Group(*parts)
