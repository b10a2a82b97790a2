"""Putting other layers in the place of those of a live model."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from frozenbn_cli.freezing.held import replace_held

__all__ = ["Copies", "continuing", "put_in_place", "replaced"]

_Layer = TypeVar("_Layer", bound=nn.Module)


class Copies:
    """Copies of tensors, one for each original: what was tied stays tied."""

    def __init__(self) -> None:
        # An original is kept beside its copy, so that no other tensor can take over its id.
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self._parameters: dict[int, tuple[Tensor, nn.Parameter]] = {}

    def of(self, tensor: Tensor | None) -> Tensor | None:
        """Return the copy of ``tensor`` that is no parameter."""
        if tensor is None:
            return None
        if id(tensor) not in self._buffers:
            self._buffers[id(tensor)] = (tensor, _copy(tensor))
        return self._buffers[id(tensor)][1]

    def parameter_of(
        self, tensor: Tensor | None, *, requires_grad: bool = True
    ) -> nn.Parameter | None:
        """Return the copy of ``tensor`` that is a parameter."""
        if tensor is None:
            return None
        if id(tensor) not in self._parameters:
            parameter = nn.Parameter(_copy(tensor), requires_grad)
            self._parameters[id(tensor)] = (tensor, parameter)
        return self._parameters[id(tensor)][1]


def _copy(tensor: Tensor) -> Tensor:
    # A tensor that is made in inference mode could never be trained with.
    with torch.inference_mode(False):
        return tensor.detach().clone()


def replaced(
    model: nn.Module, replacements: Mapping[nn.Module, nn.Module]
) -> tuple[nn.Module, tuple[str, ...]]:
    """Put new layers in the place of old ones, in the tree and where they are held outside it.

    Returns:
        ``model``, or the new layer if ``model`` itself is replaced; and the places outside the
        tree that go on using an old layer.
    """
    model = put_in_place(model, replacements)
    return model, replace_held(model, replacements)


def put_in_place(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put new layers in the place of old ones in the tree alone, and return the model."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in replacements:
                setattr(parent, name, replacements[child])
    return replacements.get(model, model)


def continuing(old: nn.Module, new: _Layer) -> _Layer:
    """Return ``new`` with the training flag and the hooks of ``old``, whose handles still work."""
    new.training = old.training
    kept = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called", "_full_backward_hook")
    for name, value in vars(old).items():
        if name.endswith(kept):
            object.__setattr__(new, name, value)
    hook: Any
    for hook in new._load_state_dict_pre_hooks.values():
        if getattr(hook, "with_module", False):
            # The hook is called with a layer that it knows by a weak reference.
            hook.module = weakref.ref(new)
    return new
