"""Watches the layers of two models at work, to find where their outputs begin to differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from frozenbn_cli.verification.claims import Difference
from frozenbn_cli.verification.differences import compare
from frozenbn_cli.verification.tolerance import Tolerance

__all__ = ["Step", "step_difference", "submodule", "watched"]


@dataclass(frozen=True, slots=True)
class Step:
    """One layer at work: its name, its input and its output."""

    name: str
    input: Tensor
    output: Tensor


def watched(model: nn.Module, names: list[str], run: Callable[[], object]) -> list[Step]:
    """Return what goes through layers in a run, in the order in which they run.

    Args:
        model: The model.
        names: Of its layers.
        run: Runs it.
    """
    steps: list[Step] = []

    def watch(name: str) -> Any:
        inside: list[Tensor] = []

        def enter(_: nn.Module, arguments: Any, keywords: dict[str, Any]) -> None:
            value = arguments[0] if arguments else next(iter(keywords.values()))
            inside.append(value.detach().clone())

        def leave(_: nn.Module, __: Any, output: Tensor) -> None:
            # The next layer may work in place.
            steps.append(Step(name, inside.pop(), output.detach().clone()))

        layer = submodule(model, name)
        return (
            layer.register_forward_pre_hook(enter, with_kwargs=True),
            layer.register_forward_hook(leave),
        )

    handles = [handle for name in names for handle in watch(name)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return steps


def step_difference(first: Step, second: Step, which: str, tolerance: Tolerance) -> str | None:
    """Return whether a difference begins before a layer or in it, in words; None if neither."""
    if first.name != second.name:
        return f"{second.name} runs where {first.name} did ({which})"
    if found := _untolerated("its input", first.input, second.input, tolerance):
        return f"begins before {first.name} ({which}): {found}"
    if found := _untolerated("its output", first.output, second.output, tolerance):
        return f"begins in {first.name} ({which}), whose input is equal: {found}"
    return None


def _untolerated(
    place: str, before: Tensor, after: Tensor, tolerance: Tolerance
) -> Difference | None:
    found = compare(place, before, after, tolerance=tolerance, any_nan=True)
    return found if found and not found.tolerated else None


def submodule(model: Any, name: str) -> Any:
    """Return the module of this name; the model itself has none."""
    for part in filter(None, name.split(".")):
        model = getattr(model, part)
    return model
