"""Statistics as they are defined, computed without the package: in float64, layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["assert_close", "reference"]


@torch.no_grad()
def reference(model: nn.Module, batches: Sequence[Tensor]) -> nn.Module:
    """Return a copy in float64 whose layers have the statistics of their inputs, in order of use.

    All inputs of a layer are kept at once, and the whole model is run for each layer.
    """
    model = copy.deepcopy(model).eval().double()
    order: list[nn.Module] = []
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            layer.register_forward_pre_hook(lambda layer, _: order.append(layer))
    model(batches[0].double())
    for layer in list(dict.fromkeys(order)):
        given: list[Tensor] = []
        hook = layer.register_forward_pre_hook(
            lambda _, inputs, given=given: given.append(inputs[0].transpose(0, 1).flatten(1))
        )
        for batch in batches:
            model(batch.double())
        hook.remove()
        everything = torch.cat(given, 1)
        layer.running_mean.copy_(everything.mean(1))
        layer.running_var.copy_(everything.var(1))
    return model


def assert_close(model: nn.Module, expected: nn.Module, tolerance: float = 1e-5) -> None:
    """Compare statistics: means in standard deviations, variances relative to themselves."""
    layers = dict(expected.named_modules())
    compared = 0
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm):
            other = layers[name]
            variance = other.running_var.double() + layer.eps
            apart = (layer.running_mean.double() - other.running_mean).abs() / variance.sqrt()
            change = (layer.running_var.double() - other.running_var).abs() / variance
            assert apart.max() < tolerance, name
            assert change.max() < tolerance, name
            compared += 1
    assert compared
