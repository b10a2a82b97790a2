"""A training step of ResNet-50: BatchNorm in eval, torchvision's frozen layer, and ours.

    python -m tests.benchmarks.bench_training [--batch 8] [--quick]

Forward, backward and SGD on images of 224x224, the models in turns. Also the bytes that a forward
saves for backward, with the images, without parameters and buffers.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet50

from tests.benchmarks.bench_layer import LAYERS, keep_freed_memory

_SHOWN = ("batch norm", "torchvision", "ours")


def training_step(norm_layer: Callable[[int], nn.Module], batch: int) -> Callable[[], None]:
    """Return one step, which trains all parameters that the model has."""
    torch.manual_seed(0)
    model = resnet50(norm_layer=norm_layer).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    images, labels = torch.randn(batch, 3, 224, 224), torch.zeros(batch, dtype=torch.long)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def saved_bytes(norm_layer: Callable[[int], nn.Module], batch: int) -> int:
    """Return the bytes that a forward of ResNet-50 in eval saves for backward.

    Each storage counts once. The images are included, parameters and buffers are not.
    """
    model = resnet50(norm_layer=norm_layer).eval()
    kept_anyway = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in kept_anyway:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(torch.randn(batch, 3, 224, 224))
    del logits  # Kept until here: a storage that is freed could give its address to another one.
    return sum(saved.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="3 steps of 2 images")
    options = parser.parse_args()
    batch, rounds = (2, 3) if options.quick else (options.batch, 9)

    keep_freed_memory()
    steps = {name: training_step(LAYERS[name], batch) for name in _SHOWN}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = perf_counter()
            step()
            if number:
                seconds[name].append(perf_counter() - start)
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, batch {batch}")
    print(f"{'norm layer':<14}{'s/step':>10}{'/ ours':>10}{'saved MiB':>12}")
    for name, column in seconds.items():
        pairs = zip(column, seconds["ours"], strict=True)
        ratio = statistics.median(one / ours for one, ours in pairs)
        saved = saved_bytes(LAYERS[name], batch) / 2**20
        print(f"{name:<14}{statistics.median(column):>10.3f}{ratio:>10.2f}{saved:>12.1f}")


if __name__ == "__main__":
    main()
