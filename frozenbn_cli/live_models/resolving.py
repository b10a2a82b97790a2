"""What builds the model of a file, where --model names one that a library builds by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from frozenbn_cli.checkpoints import StateDict
from frozenbn_cli.live_models.known_models import KnownModel
from frozenbn_cli.stages import import_torch_for

__all__ = ["fitted_to"]


def fitted_to(part: StateDict, model: Callable[[], Any] | None) -> Callable[[], Any] | None:
    """Return what builds the model of a state dict; what is no `KnownModel` does already.

    Raises:
        UsageError: There is no such model, or it does not fit the state dict, or several do and
            differ in eps.
    """
    if not isinstance(model, KnownModel):
        return model
    fitting = import_torch_for("frozenbn_cli.live_models.fitting")
    fitted: Callable[[], Any] = fitting.fitted(model, part)
    return fitted
