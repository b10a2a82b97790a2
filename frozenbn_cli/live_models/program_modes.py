"""Puts layers of a program in eval that was exported in training mode. Imports torch.

Such a program has no mode: that a layer takes statistics of the batch is a literal of its graph.
What is edited here is the graph that PyTorch made of it, by PyTorch's own means, so that it can be
the reference for what the rewriting of its file comes to.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import fx, nn

__all__ = ["put_in_eval"]

_COUNT, _MEAN, _VARIANCE = "num_batches_tracked", "running_mean", "running_var"


def put_in_eval(program: nn.Module, layers: Collection[str]) -> None:
    """Have layers take their running statistics, and update neither these nor their counts.

    Args:
        program: The module of a program, which is changed.
        layers: The names of the layers.
    """
    for graph_module, names in _graphs(program, {}):
        for node in list(graph_module.graph.nodes):
            if node.op == "call_function" and (edit := _EDITS.get(str(node.target))):
                edit(node, names, layers)
        graph_module.graph.lint()
        graph_module.recompile()


def _graphs(
    module: Any, given: Mapping[str, str]
) -> Iterator[tuple[fx.GraphModule, Mapping[fx.Node, str]]]:
    """Yield a graph and those that it calls, with the names of the tensors that nodes stand for.

    Args:
        module: Of the graph.
        given: The names of the tensors that it is called with, by the name of its placeholder.
    """
    names: dict[fx.Node, str] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            names[node] = str(node.target)
        elif node.op == "placeholder" and node.name in given:
            names[node] = given[node.name]
        elif node.op == "call_function":
            for place, part in enumerate(node.args):
                inner = getattr(module, names.get(part, ""), None) if _is_node(part) else None
                if isinstance(inner, fx.GraphModule):
                    taken = [item for item in inner.graph.nodes if item.op == "placeholder"]
                    passed = zip(taken, node.args[place + 1 :], strict=False)
                    yield from _graphs(
                        inner,
                        {to.name: names[it] for to, it in passed if _is_node(it) and it in names},
                    )
    yield module, names


def _is_node(value: Any) -> bool:
    return isinstance(value, fx.Node)


def _layer(node: Any, role: str, names: Mapping[fx.Node, str]) -> str | None:
    """Return the layer that a node stands for the tensor of, if it is that."""
    layer, _, found = names.get(node, "").rpartition(".")
    return layer if node in names and found == role else None


def _batch_norm(node: fx.Node, names: Mapping[fx.Node, str], layers: Collection[str]) -> None:
    if _layer(node.args[3], _MEAN, names) in layers:
        node.update_arg(5, False)


def _functional(node: fx.Node, names: Mapping[fx.Node, str], layers: Collection[str]) -> None:
    """Normalise with the running statistics, and return these where new ones were."""
    value, weight, bias, mean, variance, _, momentum, eps = node.args
    if _layer(mean, _MEAN, names) not in layers:
        return
    with node.graph.inserting_before(node):
        new = node.graph.call_function(
            torch.ops.aten._native_batch_norm_legit_no_training.default,
            (value, weight, bias, mean, variance, momentum, eps),
        )
    for user in list(node.users):
        index = user.args[1]
        if index in (3, 4):
            user.replace_all_uses_with(mean if index == 3 else variance)  # type: ignore[arg-type]
            node.graph.erase_node(user)
        else:
            user.update_arg(0, new)
    node.graph.erase_node(node)


def _count(node: fx.Node, names: Mapping[fx.Node, str], layers: Collection[str]) -> None:
    """Leave out that a count goes up, be it in place or by a new value that is written to it."""
    if _layer(node.args[0], _COUNT, names) in layers and _goes_up(node, names):
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        node.graph.erase_node(node)


def _goes_up(node: fx.Node, names: Mapping[fx.Node, str]) -> bool:
    if node.args[1] != 1:
        return False
    return str(node.target) == "aten.add_.Tensor" or any(
        (user.args[1] is node and _layer(user.args[0], _COUNT, names) is not None)
        if str(user.target) == "aten.copy_.default"
        else str(user.target) == "aten.add.Tensor" and _goes_up(user, names)
        for user in node.users
    )


_EDITS = {
    "aten.batch_norm.default": _batch_norm,
    "aten._native_batch_norm_legit_functional.default": _functional,
    "aten.add_.Tensor": _count,
    "aten.add.Tensor": _count,
}
