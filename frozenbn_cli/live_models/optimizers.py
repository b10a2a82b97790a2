"""Which parameters the optimizers of a model have, as the user's own code builds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from frozenbn_cli.errors import FrozenBNError, UsageError
from frozenbn_cli.live_models.guarding import first_line, foreign_code
from frozenbn_cli.live_models.target import name_of_model

__all__ = ["parameter_names"]


def parameter_names(model: nn.Module, optimizer: Callable[[Any], Any]) -> list[list[list[str]]]:
    """Return the names of the parameters in each group of each optimizer.

    Args:
        model: The model that the optimizers are of.
        optimizer: Takes it, and returns its optimizer, or a list of several.

    Raises:
        UsageError: It fails, returns something else, or has parameters that are not the model's.
    """
    where = (f"optimizer {name_of_model(optimizer)}",)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    try:
        with foreign_code():
            built = optimizer(model)
            each = built if isinstance(built, (list, tuple)) else [built]
            groups = [[list(group["params"]) for group in one.param_groups] for one in each]
    except FrozenBNError:
        raise
    except Exception as error:  # The code is the user's.
        raise UsageError(
            f"building it failed ({type(error).__name__}: {first_line(error)})", where=where
        ) from error
    for parameter in (parameter for one in groups for group in one for parameter in group):
        if id(parameter) not in names:
            raise UsageError("has a parameter that is not one of the model's", where=where)
    return [[[names[id(item)] for item in group] for group in one] for one in groups]
