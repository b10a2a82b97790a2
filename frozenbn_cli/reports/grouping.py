"""Findings as reports state them: added up over layers, or as a few words on one layer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from frozenbn_cli.batch_norms.findings import ADVICE, LABELS, Finding, Severity
from frozenbn_cli.batch_norms.plan import Plan
from frozenbn_cli.reports.console import printable
from frozenbn_cli.reports.words import named
from frozenbn_cli.wording import counted

__all__ = ["FindingGroup", "finding_groups", "finding_labels", "foreign_groups"]

_NAMED = 3


@dataclass(frozen=True, slots=True)
class FindingGroup:
    """One kind of finding, added up over the layers.

    Attributes:
        severity: Of the gravest.
        message: What was found, where it is worst, in plain words without a full stop.
        where: How many channels of which layers, or how many layers.
        advice: What it means beyond, and what to do, in sentences; may be empty.
    """

    severity: Severity
    message: str
    where: str
    advice: str


def finding_groups(plan: Plan) -> list[FindingGroup]:
    """Return a group for each kind of finding, the gravest first."""
    by_code: dict[str, dict[str, Finding]] = {}
    for item in plan.layers:
        for finding in item.findings:
            by_code.setdefault(finding.code, {})[item.layer.name] = finding
    return [
        _group(code, by_code)
        for severity in ("error", "warning", "note")
        for code, by_layer in by_code.items()
        if next(iter(by_layer.values())).severity == severity
        and not (code == "variance_below_eps" and "eps_matters" in by_code)
    ]


def _group(code: str, by_code: Mapping[str, Mapping[str, Finding]]) -> FindingGroup:
    findings = list(by_code[code].values())
    names = [name for name in by_code[code] if name]
    channels = sum(finding.channels or 0 for finding in findings)
    where = f"{counted(channels, 'channel')} of " if channels else ""
    where += named(names) if 0 < len(names) <= _NAMED else counted(len(findings), "layer")
    layer, worst = max(by_code[code].items(), key=lambda item: item[1].factor or 0)
    if worst.worst_channel is not None and channels > 1:
        where += f"; worst: channel {worst.worst_channel}"
        where += f" of {printable(layer)}" if len(names) > 1 else ""
    advice = []
    below = sum(finding.channels or 0 for finding in by_code.get("variance_below_eps", {}).values())
    if code == "eps_matters" and below:
        advice.append(f"{counted(below, 'channel')} have variance below eps.")
    if code in ADVICE:
        advice.append(ADVICE[code])
    return FindingGroup(worst.severity, worst.message, where, " ".join(advice))


def foreign_groups(names: Mapping[str, bool]) -> list[FindingGroup]:
    """Return what loading the file without care would call and import."""
    groups = []
    severities: tuple[tuple[Severity, str, bool], ...] = (
        ("error", "call", True),
        ("warning", "import", False),
    )
    for severity, verb, called in severities:
        if found := [name for name, is_called in names.items() if is_called == called]:
            groups.append(
                FindingGroup(
                    severity,
                    f"torch.load(weights_only=False) would {verb} {named(found, 5)}, which a model "
                    "has no need of",
                    "",
                    "It was not done here, and none of it is in the output.",
                )
            )
    return groups


def finding_labels(findings: Iterable[Finding]) -> list[tuple[str, Severity]]:
    """Return a few words on each finding of one layer, with its severity."""
    findings = list(findings)
    implied = {"variance_below_eps"} if any(item.code == "eps_matters" for item in findings) else ()
    labels = []
    for finding in findings:
        if finding.code in implied:
            continue
        label = LABELS[finding.code]
        if finding.factor:
            label += f" ×{finding.factor:.3g}"
        elif finding.channels:
            label += f" ({finding.channels:,} ch.)"
        labels.append((label, finding.severity))
    return labels
