"""Models that must not be changed any more, and normalisation that is no layer of the tree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from frozenbn_cli.errors import UsageError

__all__ = ["live_calls", "refuse_wrapped"]

_WRAPPERS = {
    "DistributedDataParallel": "which keeps its parameters",
    "FullyShardedDataParallel": "which keeps its parameters",
    "DeepSpeedEngine": "which keeps its parameters",
    "FSDPModule": "whose parameters are sharded",
    "ReplicateModule": "which keeps its parameters",
}
# What accelerate and diffusers put on modules whose weights come and go.
_OFFLOADING = ("_hf_hook", "_diffusers_hook")


def refuse_wrapped(model: nn.Module) -> None:
    """Raise if something holds on to parameters that would be gone.

    Raises:
        UsageError: The model is wrapped for training on several devices, or offloaded.
    """
    for module in model.modules():
        for kind in type(module).__mro__:
            if kind.__name__ in _WRAPPERS:
                name = "fully_shard" if kind.__name__ == "FSDPModule" else kind.__name__
                raise UsageError(
                    f"the model is wrapped in {name}, {_WRAPPERS[kind.__name__]}",
                    advice="Convert first, then wrap.",
                )
        for hook in _OFFLOADING:
            if hook in vars(module):
                raise UsageError(
                    f"a module of the model ({type(module).__name__}) has a hook that moves its "
                    f"weights ({hook})",
                    advice="Convert first, then dispatch or offload; or take the hooks off "
                    "(accelerate.hooks.remove_hook_from_submodules) and put them on again.",
                )


def live_calls(model: nn.Module) -> Iterator[str]:
    """Yield where a traced or exported graph in the model computes batch statistics by itself."""
    for name, module in model.named_modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                if node.op == "call_function" and _is_live(node):
                    yield f"{name}.{node.name}" if name else node.name


# Where each function has its flag that says whether batch statistics are used.
_FLAGS: dict[Any, tuple[int, str]] = {
    nn.functional.batch_norm: (5, "training"),
    torch.batch_norm: (5, "training"),
    torch.ops.aten.batch_norm.default: (5, "training"),
    torch.ops.aten.native_batch_norm.default: (5, "training"),
    torch.ops.aten._native_batch_norm_legit.default: (5, "training"),
    torch.ops.aten._native_batch_norm_legit_functional.default: (5, "training"),
}


def _is_live(node: torch.fx.Node) -> bool:
    if node.target not in _FLAGS:
        return False
    index, keyword = _FLAGS[node.target]
    given = node.args[index] if len(node.args) > index else node.kwargs.get(keyword, False)
    return given is not False
