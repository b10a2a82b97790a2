"""Thawing frozen layers that `torch.fx` traced through: calls in a graph, no layers any more."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from frozenbn_cli.freezing.replacing import Copies
from frozenbn_cli.nn import frozen_batch_norm

__all__ = ["FrozenCall", "frozen_calls", "thaw_calls"]

_LIVE = {(4, 4): nn.BatchNorm2d, (2, 3): nn.BatchNorm1d, (5, 5): nn.BatchNorm3d}


@dataclass(frozen=True, slots=True)
class FrozenCall:
    """A call of `frozen_batch_norm` in a traced graph, on the tensors of what was a layer.

    Attributes:
        name: The qualified name of the layer in the whole model.
        module: The traced module.
        path: The name of the layer in it.
        node: The call.
    """

    name: str
    module: torch.fx.GraphModule
    path: str
    node: torch.fx.Node


def frozen_calls(model: nn.Module) -> list[FrozenCall]:
    """Return the calls that come of frozen layers, in all traced modules of a model."""
    return [
        FrozenCall(f"{prefix}.{path}" if prefix else path, module, path, node)
        for prefix, module in model.named_modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
        if (path := _layer_of(node)) is not None
    ]


def thaw_calls(calls: Iterable[FrozenCall], *, momentum: float | None) -> None:
    """Make live layers of frozen calls, in place."""
    copies = Copies()
    modules: dict[torch.fx.GraphModule, None] = {}
    for call in calls:
        _thaw(call, momentum, copies)
        modules[call.module] = None
    for module in modules:
        module.graph.eliminate_dead_code()
        module.recompile()


def _layer_of(node: torch.fx.Node) -> str | None:
    """Return the path of the layer that a call came from: where its statistics lie."""
    if node.op != "call_function" or node.target is not frozen_batch_norm:
        return None
    mean = node.args[1]
    if isinstance(mean, torch.fx.Node) and mean.op == "get_attr":
        path, _, role = str(mean.target).rpartition(".")
        return path if role == "running_mean" else None
    return None


def _thaw(call: FrozenCall, momentum: float | None, copies: Copies) -> None:
    module, node = call.module, call.node
    holder: Any = module.get_submodule(call.path)
    if not isinstance(holder, nn.modules.batchnorm._BatchNorm):
        new = _batch_norm(holder, node, momentum, copies)
        for name, child in holder.named_children():  # The dropout and activation behind it.
            new.add_module(name, child)
        new.training = module.training
        module.set_submodule(call.path, new)
    with module.graph.inserting_before(node):
        called = module.graph.call_module(call.path, (node.args[0],))
    node.replace_all_uses_with(called)
    module.graph.erase_node(node)


def _batch_norm(holder: Any, node: torch.fx.Node, momentum: float | None, copies: Copies) -> Any:
    dims: Any = tuple(node.args[6:8]) or (4, 4)
    kind = _LIVE.get(dims, nn.SyncBatchNorm)
    weight, bias = getattr(holder, "weight", None), getattr(holder, "bias", None)
    mean = holder.running_mean
    eps: Any = node.args[5]
    new: Any = kind(mean.numel(), eps, momentum, affine=weight is not None)
    new.register_parameter("weight", copies.parameter_of(weight))
    new.register_parameter("bias", copies.parameter_of(bias))
    new.register_buffer("running_mean", copies.of(mean))
    new.register_buffer("running_var", copies.of(holder.running_var))
    new.num_batches_tracked = torch.tensor(0, device=mean.device)
    return new
