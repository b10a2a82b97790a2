"""Freezing in the middle of training: the optimizer forgets the parameters that are gone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from frozenbn_cli.errors import UsageError
from frozenbn_cli.freezing.freeze import freeze_with_warnings

__all__ = ["freeze_batch_norms"]


def freeze_batch_norms(
    model: nn.Module,
    optimizers: Any,
    *,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    dims: Iterable[int] | None = None,
    trainable_affine: bool = False,
) -> nn.Module:
    """Freeze the BatchNorm layers of ``model`` in the middle of training, in place.

    As `convert_bn_to_frozen`. The parameters that are gone leave the optimizer's groups and its
    state; all others keep their momentum, and all groups keep their place, so that schedulers go
    on. To resume from a checkpoint that is saved afterwards, freeze the new model likewise before
    the optimizer's state is loaded.

    Args:
        model: Any module but a layer, not wrapped for several devices.
        optimizers: The optimizer, or several.
        include: As for `convert_bn_to_frozen`.
        exclude: As for `convert_bn_to_frozen`.
        dims: As for `convert_bn_to_frozen`.
        trainable_affine: As for `convert_bn_to_frozen`; then no parameter is gone.

    Returns:
        ``model``.

    Raises:
        UsageError: As for `convert_bn_to_frozen`; or ``model`` itself is a BatchNorm layer; or an
            optimizer keeps one state for all parameters (LBFGS). Nothing is changed.
    """
    each = [optimizers] if hasattr(optimizers, "param_groups") else list(optimizers)
    for optimizer in each:
        if isinstance(optimizer, torch.optim.LBFGS):
            raise UsageError(
                "LBFGS keeps one state for all parameters together",
                advice="Freeze with convert_bn_to_frozen, and make a new optimizer.",
            )
    if isinstance(model, nn.modules.batchnorm._BatchNorm):
        raise UsageError(
            "the model itself is a BatchNorm layer",
            advice="Freeze it with convert_bn_to_frozen, which returns another.",
        )
    before = list(model.parameters())
    freeze_with_warnings(
        model,
        include=include,
        exclude=exclude,
        dims=dims,
        trainable_affine=trainable_affine,
        stacklevel=3,
    )
    still_there = {id(parameter) for parameter in model.parameters()}
    gone = {id(parameter): parameter for parameter in before if id(parameter) not in still_there}
    for optimizer in each:
        _forget(optimizer, gone)
    return model


def _forget(optimizer: Any, gone: dict[int, nn.Parameter]) -> None:
    for group in optimizer.param_groups:
        kept = [id(parameter) not in gone for parameter in group["params"]]
        # Some optimizers and wrappers hold on to these very lists.
        for key in ("params", "param_names"):
            if key in group:
                values = group[key]
                values[:] = [value for value, stays in zip(values, kept, strict=True) if stays]
    for parameter in gone.values():
        optimizer.state.pop(parameter, None)
