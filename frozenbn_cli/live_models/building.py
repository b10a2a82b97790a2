"""Builds the models that are named, and asks them for their entries.

Imports torch. The code of a model is the user's, and may raise anything.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from frozenbn_cli import torch_jit
from frozenbn_cli.errors import FrozenBNError, UsageError
from frozenbn_cli.live_models.guarding import first_line, foreign_code
from frozenbn_cli.live_models.target import identity_of_model, is_recognised, name_of_model
from frozenbn_cli.stages import begin

__all__ = ["BuiltOnce", "build", "scripted", "state_of", "unwrapped"]


def build(model: Callable[[], Any]) -> nn.Module:
    """Return a new model, in eval, on the CPU, without what DataParallel or `torch.compile` add.

    Raises:
        UsageError: It cannot be built, is no module, or none whose layers can be told.
    """
    where = (f"model {name_of_model(model)}",)
    begin("building the model")
    try:
        with foreign_code():
            built = unwrapped(model())
    except FrozenBNError:
        raise
    except Exception as error:
        raise UsageError(
            f"building the model failed ({type(error).__name__}: {first_line(error)})",
            where=where,
            advice="Give its arguments with --model-arg.",
        ) from error
    if not isinstance(built, nn.Module) or torch_jit.is_script_module(built):
        found = "TorchScript" if isinstance(built, nn.Module) else type(built).__name__
        raise UsageError(where=where, expected="a torch.nn.Module", found=found)
    _check_formed(built, where)
    try:
        with foreign_code():
            built.cpu()
            built.eval()  # Models that overwrite it often return nothing.
    except Exception as error:
        raise UsageError(
            f"eval() of the model failed ({type(error).__name__}: {first_line(error)})", where=where
        ) from error
    return built


class BuiltOnce:
    """Builds a model at the first call, and copies it for each: drawing weights takes longer.

    Args:
        model: Returns a new model.
    """

    def __init__(self, model: Callable[[], Any]) -> None:
        self._model = model
        self.is_recognised = is_recognised(model)
        self._built: nn.Module | None = None

    def __call__(self) -> nn.Module:
        """Return a model of its own."""
        if self._built is None:
            self._built = build(self._model)
        try:
            with foreign_code():
                return copy.deepcopy(self._built)
        except Exception:  # Some models hold what cannot be copied.
            return build(self._model)

    def __reduce__(self) -> tuple[type[BuiltOnce], tuple[Callable[[], Any]]]:
        """Build it anew elsewhere, where the module of its class may not be known by its name."""
        return BuiltOnce, (self._model,)

    def __str__(self) -> str:
        return name_of_model(self._model)

    @property
    def identity(self) -> str | None:
        """That of the model."""
        return identity_of_model(self._model)


def unwrapped(model: Any) -> Any:
    """Return a model without what DataParallel or `torch.compile` put around it."""
    while type(model).__name__ in ("DataParallel", "OptimizedModule"):
        model = model.module if isinstance(model, nn.DataParallel) else model._orig_mod
    return model


def _check_formed(model: nn.Module, where: tuple[str, ...]) -> None:
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(value):
            raise UsageError(
                f"{name} has no shape yet",
                where=where,
                advice="Run the model once where it is built, so that lazy layers are formed.",
            )
        if value.is_meta:
            raise UsageError(
                f"{name} is on the meta device, without values",
                where=where,
                advice="Build the model on the CPU.",
            )


def state_of(model: nn.Module) -> Mapping[str, Any]:
    """Return the state dict of a model, parameters as they are.

    Raises:
        UsageError: Its own code for that fails.
    """
    try:
        with foreign_code():
            state: Mapping[str, Any] = model.state_dict(keep_vars=True)
    except Exception as error:
        raise UsageError(
            f"state_dict() of the model failed ({type(error).__name__}: {first_line(error)})"
        ) from error
    return state


def scripted(model: nn.Module) -> tuple[Any, str]:
    """Return a scripted model, or why there is none."""
    begin("scripting the model")
    try:
        with foreign_code():
            return torch_jit.script(model), ""
    except Exception as error:  # The compiler reads foreign code, which may be anything.
        return None, first_line(error)
