"""The BatchNorm layers of a plan as rows of a report, and which of them a folded table shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable, Mapping

from frozenbn_cli.batch_norms.plan import LayerPlan, Plan
from frozenbn_cli.batch_norms.summaries import Summary
from frozenbn_cli.inspection import Statistics
from frozenbn_cli.reports.description import LayerRow, Tone
from frozenbn_cli.reports.words import by_reason, named
from frozenbn_cli.wording import counted

__all__ = ["frozen_part", "layer_facts", "layer_rows", "left_alone"]

_FOLD_ABOVE = 12
_EXCEPTIONS_SHOWN = 8
_EXAMPLES_SHOWN = 3
_FROZEN_SHOWN = 20


def layer_rows(
    plan: Plan,
    state: Callable[[LayerPlan], tuple[str, Tone]],
    *,
    summaries: Mapping[str, Summary],
    statistics: Mapping[str, Statistics] | None = None,
    prominent: Container[str] = (),
) -> tuple[LayerRow, ...]:
    """Return a row for each layer, in the file's order.

    Args:
        plan: The layers.
        state: Says what was, or would be, done with one, and whether that is good news.
        summaries: The numbers of layers by name, for charts.
        statistics: The ranges of their statistics, by name.
        prominent: Names that a folded table shows in any case.
    """
    shown = _prominent(plan)
    statistics = statistics or {}
    rows = []
    for place, item in enumerate(plan.layers):
        words, tone = state(item)
        name = item.layer.name
        rows.append(
            LayerRow(
                number=place + 1,
                plan=item,
                state=words,
                tone=tone,
                prominent=place in shown or name in prominent,
                statistics=statistics.get(name),
                summary=summaries.get(name),
            )
        )
    return tuple(rows)


def _prominent(plan: Plan) -> set[int]:
    """Return the places of the layers that a reader has to see; of a few, or of none, examples."""
    layers = plan.layers
    if len(layers) <= _FOLD_ABOVE:
        return set(range(len(layers)))
    places = sorted(range(len(layers)), key=lambda place: _gravity(layers[place]), reverse=True)
    grave = [place for place in places[:_EXCEPTIONS_SHOWN] if _gravity(layers[place]) > 0]
    return set(grave or range(_EXAMPLES_SHOWN))


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


def layer_facts(plan: Plan, frozen: int | None = None, words: str = "frozen") -> tuple[str, ...]:
    """Return how many layers there are, in a few words each.

    Args:
        plan: The layers.
        frozen: How many of them are frozen; None where none could be.
        words: What they are, if not frozen.
    """
    layers = counted(len(plan.layers), "BatchNorm layer")
    if frozen is not None:
        layers = f"{frozen:,} of {layers} {words}"
    return (layers, f"{len(plan.left):,} left alone") if plan.left else (layers,)


def frozen_part(plan: Plan, frozen: Collection[str]) -> str:
    """Return which layers are frozen; a module stands for those in it where all of them are."""
    names = [item.layer.name for item in plan.layers if not item.layer.frozen_already]
    modules = Counter(part for name in names for part in _modules(name))
    whole = Counter(part for name in names if name in frozen for part in _modules(name))
    shown: dict[str, int] = {}
    for name in (name for name in names if name in frozen):
        full = [part for part in _modules(name) if modules[part] == whole[part] > 1]
        shown[full[0] if full else name] = whole[full[0]] if full else 1
    listed = [f"{name} ({count} layers)" if count > 1 else name for name, count in shown.items()]
    return named(listed, _FROZEN_SHOWN)


def _modules(name: str) -> list[str]:
    """Return the modules that a layer lies in, the outermost first."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def left_alone(plan: Plan, prefix: str, renamed: Iterable[tuple[str, str]] = ()) -> list[str]:
    """Return a line for each reason for which layers are left alone, and on what names became."""
    lines = by_reason(
        "left alone",
        {item.layer.name or "the file itself": item.reason or "" for item in plan.left},
    )
    if prefix:
        lines.append(f"taken off every name: {prefix} (--keep-prefix keeps it)")
    lines += [f"names: {old or 'all'} became {new}" for old, new in renamed]
    return lines
