"""What the tests share: models built without the cost of initialisation, and exact comparison."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from frozenbn_cli.nn import FrozenBatchNorm2d

RANDOM_FILLS = {"uniform_", "normal_", "kaiming_uniform_", "kaiming_normal_", "orthogonal_"}
# A prime, so that the rows of a tiled matrix differ.
NOISE_ELEMENTS = 65_537


class _WithoutRandomFills(TorchFunctionMode):
    """Drawing random weights is most of the time that it takes to build a large model."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name not in RANDOM_FILLS:
            return func(*args, **kwargs)
        tensor: Tensor = args[0] if args else kwargs["tensor"]
        # `trunc_normal_` calls `normal_` again until all values are in range.
        return tensor.data.zero_() if name == "normal_" else tensor


def build(builder: Callable[..., nn.Module], *args: Any, seed: int = 0, **kwargs: Any) -> nn.Module:
    """Return the model in eval mode, with cheap seeded weights and statistics."""
    with _WithoutRandomFills():
        model = builder(*args, **kwargs)
    fill(model, seed=seed)
    return model.eval()


@torch.no_grad()
def fill(model: nn.Module, *, seed: int = 0) -> None:
    """Fill weights so that activations stay of order 1, and make the statistics uneven."""
    noise = torch.randn(NOISE_ELEMENTS, generator=torch.Generator().manual_seed(seed))
    for name, parameter in model.named_parameters():
        tiled = parameter.view(-1)
        for start in range(0, tiled.numel(), NOISE_ELEMENTS):
            piece = tiled[start : start + NOISE_ELEMENTS]
            piece.copy_(noise[: piece.numel()])
        if parameter.dim() > 1:
            parameter.mul_(max(parameter[0].numel(), 1) ** -0.5)
        else:
            parameter.mul_(0.1).add_(0.0 if name.endswith("bias") else 1.0)
    perturb(model, seed=seed)


@torch.no_grad()
def perturb(model: nn.Module, *, seed: int = 0) -> nn.Module:
    """Give every normalisation layer uneven statistics and affine; return ``model``."""
    generator = torch.Generator().manual_seed(seed)

    def random(like: Tensor, low: float, high: float) -> Tensor:
        values = torch.rand(like.shape, generator=generator, dtype=torch.float64)
        return values * (high - low) + low

    for layer in model.modules():
        if not isinstance(getattr(layer, "running_mean", None), Tensor):
            continue
        layer.running_mean.copy_(random(layer.running_mean, -0.3, 0.3))
        layer.running_var.copy_(random(layer.running_var, 0.5, 1.5))
        if layer.weight is not None:
            layer.weight.copy_(random(layer.weight, 0.5, 1.0))
        if layer.bias is not None:
            layer.bias.copy_(random(layer.bias, -0.3, 0.3))
        if getattr(layer, "num_batches_tracked", None) is not None:
            layer.num_batches_tracked.fill_(7)
    return model


def leaves(output: Any, path: str = "output") -> Iterator[tuple[str, Any]]:
    """Yield the path and value of everything in a nested output that is not a container."""
    if isinstance(output, dict):
        for key, value in output.items():
            yield from leaves(value, f"{path}[{key!r}]")
    elif isinstance(output, (list, tuple)):
        for index, value in enumerate(output):
            yield from leaves(value, f"{path}[{index}]")
    else:
        yield path, output


def assert_same_bits(actual: Any, expected: Any) -> None:
    """Compare nested outputs leaf by leaf: equal types, shapes, and every bit."""
    actual_leaves, expected_leaves = dict(leaves(actual)), dict(leaves(expected))
    assert list(actual_leaves) == list(expected_leaves)
    for path, leaf in expected_leaves.items():
        if not isinstance(leaf, Tensor):
            assert actual_leaves[path] == leaf, path
            continue
        found = actual_leaves[path]
        assert (found.dtype, found.shape) == (leaf.dtype, leaf.shape), path
        if not torch.equal(_bits(found), _bits(leaf)):
            torch.testing.assert_close(
                found, leaf, rtol=0, atol=0, msg=lambda text, path=path: f"{path}: {text}"
            )
            pytest.fail(f"{path}: equal values of different bits, such as 0.0 and -0.0")


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)


def small_cnn(normalisation: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    """Return two convolutions, each followed by a normalisation, and a linear head."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        normalisation(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, padding=1),
        normalisation(6),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    )


def train_one_rank(rank: int, world_size: int, directory: str) -> None:
    """Train for one step in one process of several, and save what became of it.

    Saved as ``rank<rank>.pt`` in ``directory``.
    """
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=world_size
    )
    torch.manual_seed(0)
    model = small_cnn(FrozenBatchNorm2d)
    perturb(model)
    buffers_before = [buffer.clone() for buffer in model.buffers()]
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(rank))
    parallel = nn.parallel.DistributedDataParallel(model)
    loss = parallel(images).square().sum()
    loss.backward()
    torch.save(
        {
            "loss": loss.detach(),
            "gradients": [parameter.grad for parameter in model.parameters()],
            "buffers_before": buffers_before,
            "buffers_after": list(model.buffers()),
        },
        f"{directory}/rank{rank}.pt",
    )
    torch.distributed.destroy_process_group()


class Detectron2FrozenBatchNorm2d(nn.Module):
    """What detectron2 0.6 defines as ``detectron2.layers.batch_norm.FrozenBatchNorm2d``."""

    _version = 3

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features) - eps)
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            scale = self.weight * (self.running_var + self.eps).rsqrt()
            bias = self.bias - self.running_mean * scale
            scale = scale.reshape(1, -1, 1, 1)
            bias = bias.reshape(1, -1, 1, 1)
            return x * scale.to(x.dtype) + bias.to(x.dtype)
        return F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training=False,
            eps=self.eps,
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        version = local_metadata.get("version")
        if version is None or version < 2:
            state_dict.setdefault(prefix + "running_mean", torch.zeros_like(self.running_mean))
            state_dict.setdefault(prefix + "running_var", torch.ones_like(self.running_var))
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def __repr__(self) -> str:
        return f"FrozenBatchNorm2d(num_features={self.num_features}, eps={self.eps})"


# As it would be after `from detectron2.layers import FrozenBatchNorm2d`.
Detectron2FrozenBatchNorm2d.__module__ = "detectron2.layers.batch_norm"
Detectron2FrozenBatchNorm2d.__qualname__ = "FrozenBatchNorm2d"
Detectron2FrozenBatchNorm2d.__name__ = "FrozenBatchNorm2d"
