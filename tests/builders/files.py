"""Small checkpoints for tests, built readably from dicts."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

State = dict[str, Tensor]


def batch_norm(channels: int = 4, *, tracked: int | None = 500, seed: int = 0) -> State:
    """Return the entries of a BatchNorm whose statistics are well formed."""
    generator = torch.Generator().manual_seed(seed + channels)
    entries = {
        "weight": torch.rand(channels, generator=generator) + 0.5,
        "bias": torch.randn(channels, generator=generator),
        "running_mean": torch.randn(channels, generator=generator),
        "running_var": torch.rand(channels, generator=generator) + 0.5,
    }
    if tracked is not None:
        entries["num_batches_tracked"] = torch.tensor(tracked)
    return entries


def nested(**modules: State) -> State:
    """Return one state dict of several: ``nested(bn1=batch_norm(8))``."""
    return {
        f"{module}.{name}": tensor
        for module, state in modules.items()
        for name, tensor in state.items()
    }


def small_state() -> State:
    """Return the state dict of two convolutions with BatchNorm2d and a linear layer."""
    generator = torch.Generator().manual_seed(7)

    def weight(*shape: int) -> State:
        return {"weight": torch.randn(*shape, generator=generator)}

    return nested(
        conv1=weight(4, 3, 3, 3),
        bn1=batch_norm(4),
        conv2=weight(6, 4, 1, 1),
        bn2=batch_norm(6),
        fc=weight(2, 6),
    )


def save(path: Path, state: object, **options: object) -> Path:
    """Write ``state`` as the suffix says: .safetensors, .legacy or anything else for ZIP."""
    if path.suffix == ".safetensors":
        assert isinstance(state, dict)
        save_file(state, path)
    else:
        zipped = path.suffix != ".legacy"
        torch.save(state, path, _use_new_zipfile_serialization=zipped, **options)  # type: ignore[arg-type]
    return path


def layers_like(model: nn.Module) -> State:
    """Return well formed BatchNorm layers of the names and channels of a model's, and no more."""
    layers = {
        name: batch_norm(layer.running_var.numel())
        for name, layer in model.named_modules()
        if isinstance(getattr(layer, "running_var", None), Tensor)
    }
    return nested(**layers)
