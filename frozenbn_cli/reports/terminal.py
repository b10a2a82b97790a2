"""The report of a conversion, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from frozenbn_cli.claims import Claim
from frozenbn_cli.conversion import ConversionResult
from frozenbn_cli.findings import ADVICE, LABELS, Finding
from frozenbn_cli.plan import LayerPlan
from frozenbn_cli.reports.console import symbol

__all__ = ["conversion_report"]

_FOLD_ABOVE = 12
_EXCEPTIONS_SHOWN = 8
_EXAMPLES_SHOWN = 3
_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_OUTCOMES = {
    "converted": ("converted", "bold green"),
    "planned": ("dry run, nothing was written", "bold"),
    "unhealthy": ("not converted: unhealthy statistics", "bold red"),
    "nothing to freeze": ("not converted: nothing to freeze", "bold yellow"),
    "different": ("not converted: verification failed", "bold red"),
}


def conversion_report(
    result: ConversionResult, console: Console, *, all_layers: bool = False
) -> RenderableType:
    """Return the report of a conversion.

    Args:
        result: What was done.
        console: Where it will be printed, for its width and encoding.
        all_layers: Show every layer; a long table is folded otherwise.
    """
    parts: list[RenderableType] = [_header(result, console)]
    if result.plan.layers:
        parts += [Text(), *_layers(result, console, all_layers)]
    parts += _findings(result)
    if result.claims:
        parts += [Text(), _claims(result.claims, console)]
    parts += _left_alone(result)
    if result.outcome == "converted":
        parts += [Text(), _next_steps(result)]
    return Group(*parts)


def size_text(count: int) -> str:
    """Return a number of bytes in the unit that suits it."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{count:,} bytes" if unit == "bytes" else f"{value:,.1f} {unit}"


def _header(result: ConversionResult, console: Console) -> Text:
    arrow, dot = symbol(console, "→"), symbol(console, "·")
    words, style = _OUTCOMES[result.outcome]
    header = Text()
    header.append(str(result.input_path), "bold")
    if result.outcome in ("converted", "planned"):
        header.append(f" {arrow} ")
        header.append(str(result.output_path), "bold")
    header.append("\n")
    header.append(words, style)
    sizes = size_text(result.input_bytes)
    if result.output_bytes is not None:
        sizes += f" {arrow} {size_text(result.output_bytes)}"
    facts = [f"{result.kind} ({result.container})", sizes, f"{sum(result.seconds.values()):.1f} s"]
    header.append("".join(f" {dot} {fact}" for fact in facts))
    return header


# Layers


def _layers(
    result: ConversionResult, console: Console, all_layers: bool
) -> Iterable[RenderableType]:
    plans = result.plan.layers
    if all_layers or len(plans) <= _FOLD_ABOVE:
        shown = plans
    else:
        shown = _exceptional(plans) or plans[:_EXAMPLES_SHOWN]
    proven = any(claim.name == "layers" and claim.status == "equal" for claim in result.claims)
    yield _layer_table(shown, console, result.outcome, proven)
    if rest := [plan for plan in plans if plan not in shown]:
        yield Padding(_summary(rest, console), (0, 0, 0, 2))


def _exceptional(plans: tuple[LayerPlan, ...]) -> tuple[LayerPlan, ...]:
    """Return the layers that a reader has to see even if there are many, in the file's order."""
    gravest = sorted((plan for plan in plans if _gravity(plan) > 0), key=_gravity, reverse=True)
    return tuple(plan for plan in plans if plan in gravest[:_EXCEPTIONS_SHOWN])


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


def _layer_table(plans: Iterable[LayerPlan], console: Console, outcome: str, proven: bool) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD if console.is_terminal else None,
        header_style="bold",
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0) if console.is_terminal else (0, 2, 0, 0),
    )
    table.add_column("Layer", overflow="fold")
    table.add_column("Channels", justify="right")
    table.add_column("eps", no_wrap=True)
    table.add_column("Findings", overflow="fold")
    table.add_column("Frozen", no_wrap=True)
    for plan in plans:
        table.add_row(
            Text(plan.layer.name or "(the file itself)"),
            f"{plan.layer.channels:,}",
            _eps(plan),
            _layer_findings(plan.findings, console),
            _state(plan, console, outcome, proven),
        )
    return table


def _eps(plan: LayerPlan) -> Text:
    eps = plan.layer.eps
    style = "yellow" if eps.source == "assumed" else ""
    return Text(f"{eps.value:g} {eps.source}", style)


def _layer_findings(findings: tuple[Finding, ...], console: Console) -> Text:
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


def _state(plan: LayerPlan, console: Console, outcome: str, proven: bool) -> Text:
    if plan.layer.frozen_already:
        return Text("already")
    if plan.action == "leave":
        return Text("left alone", "yellow")
    if proven:
        return Text(f"{symbol(console, '✓')} identical", "green")
    return Text("frozen" if outcome == "converted" else "planned" if outcome == "planned" else "no")


def _summary(rest: list[LayerPlan], console: Console) -> Text:
    channels = [plan.layer.channels for plan in rest]
    eps = Counter(f"{plan.layer.eps.value:g} {plan.layer.eps.source}" for plan in rest)
    found = sum(bool(plan.findings) for plan in rest)
    facts = [
        f"{len(rest)} more layers",
        f"{min(channels):,}{symbol(console, '–')}{max(channels):,} channels",
        "eps " + ", ".join(eps),
        f"{found} with findings" if found else "no findings",
        "--all shows each",
    ]
    return Text(f" {symbol(console, '·')} ".join(facts), "dim")


# Findings, added up


def _findings(result: ConversionResult) -> list[RenderableType]:
    by_code: dict[str, list[Finding]] = {}
    for plan in result.plan.layers:
        for finding in plan.findings:
            by_code.setdefault(finding.code, []).append(finding)
    parts: list[RenderableType] = []
    for severity in ("error", "warning", "note"):
        for code, findings in by_code.items():
            if findings[0].severity == severity and not (
                code == "variance_below_eps" and "eps_matters" in by_code
            ):
                parts.append(_finding_line(code, by_code))
    return [Text(), *parts] if parts else []


def _finding_line(code: str, by_code: dict[str, list[Finding]]) -> Text:
    findings = by_code[code]
    channels = sum(finding.channels or 0 for finding in findings)
    where = f"{channels:,} channels of " if channels else ""
    where += f"{len(findings)} layer" + ("s" if len(findings) > 1 else "")
    worst = max(findings, key=lambda finding: finding.factor or 0)
    line = Text()
    line.append(f"{worst.severity}: ", _STYLES[worst.severity])
    line.append(f"{worst.message} ({where}).")
    below = sum(finding.channels or 0 for finding in by_code.get("variance_below_eps", ()))
    if code == "eps_matters" and below:
        line.append(f" {below:,} channels have variance below eps.")
    if code in ADVICE:
        line.append(f" {ADVICE[code]}")
    return line


# Claims, what was left, what comes next


def _claims(claims: Iterable[Claim], console: Console) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    looks = {
        "equal": ("✓", "green"),
        "different": ("✗", "bold red"),
        "not verified": ("–", "yellow"),
    }
    for claim in claims:
        mark, style = looks[claim.status]
        table.add_row(
            Text(claim.name, "bold"),
            Text(f"{symbol(console, mark)} {claim.status}", style),
            Text(claim.detail),
        )
    return table


def _left_alone(result: ConversionResult) -> list[RenderableType]:
    reasons = Counter(plan.reason or "" for plan in result.plan.left)
    lines: list[RenderableType] = []
    for reason, count in reasons.items():
        names = [plan.layer.name for plan in result.plan.left if plan.reason == reason]
        named = ", ".join(names[:3]) + (f" and {count - 3} more" if count > 3 else "")
        lines.append(Text(f"left alone: {named}: {reason}"))
    if result.left_out:
        names = list(result.left_out)
        named = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        lines.append(Text(f"not written, since no tensor: {named}"))
    return [Text(), *lines] if lines else []


def _next_steps(result: ConversionResult) -> Text:
    steps = Text("Load it into your model, whose layers are frozen on the way:\n")
    steps.append("    from frozenbn_cli import load_frozen\n", "cyan")
    steps.append(f"    model = load_frozen(model, {str(result.output_path)!r})", "cyan")
    return steps
