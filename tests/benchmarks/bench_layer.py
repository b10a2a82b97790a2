"""The layer beside BatchNorm2d in eval and the frozen layers of others, on ResNet-50's shapes.

    python -m tests.benchmarks.bench_layer [--batch 8] [--threads N] [--quick]

The layers take turns in one run; a ratio is the median over the rounds, above 1 where ours
is faster. The bars are those of the design. One thread unless told otherwise: on a busy machine
several wait for each other after each operation, and the scheduler's time slice is what counts.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch
from timm.layers import FrozenBatchNormAct2d as TimmFrozenBatchNormAct2d
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from frozenbn_cli.nn import FrozenBatchNorm2d
from tests.builders.models import Detectron2FrozenBatchNorm2d

LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "ours": FrozenBatchNorm2d,
    "torchvision": TorchvisionFrozenBatchNorm2d,
    "batch norm": nn.BatchNorm2d,
    "timm": partial(TimmFrozenBatchNormAct2d, apply_act=False),
    "detectron2": Detectron2FrozenBatchNorm2d,
}
OTHERS = ("torchvision", "batch norm", "timm", "detectron2")
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SMALL = Counter({(8, 2, 2): 1})
# Least ratios, for each mode in the order of OTHERS; None where there is no bar.
MODES: dict[str, tuple[float | None, ...]] = {
    "forward": (None, 0.95, None, None),
    "forward + backward": (1.2, 1.1, None, None),
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Times of all layers on one shape.

    Attributes:
        milliseconds: Median of one pass of each layer, in the order of LAYERS.
        ratios: Time of each of OTHERS to that of ours, median over the rounds.
    """

    milliseconds: tuple[float, ...]
    ratios: tuple[float, ...]


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next allocation.

    Otherwise it returns large blocks to the system, at moments that depend on which layer ran
    before, and the page faults that follow can take several times as long as a layer.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4  # malloc.h
        mallopt(m_trim_threshold, 2**31 - 1)
        mallopt(m_mmap_max, 0)


def batch_norm_shapes() -> Counter[tuple[int, int, int]]:
    """Return (C, H, W) of the input of each BatchNorm2d in ResNet-50 at 224x224, counted."""
    shapes: Counter[tuple[int, int, int]] = Counter()

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        channels, height, width = inputs[0].shape[1:]
        shapes[channels, height, width] += 1

    with torch.device("meta"):
        model = resnet50()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_pre_hook(count)
        model.eval()(torch.empty(1, 3, 224, 224))
    return shapes


def one_pass(layer: nn.Module, input: Tensor, mode: str) -> Callable[[], object]:
    """Return what is measured; backward goes to the input and to the parameters, if any."""
    if mode == "forward":
        return torch.no_grad()(lambda: layer(input))
    wanted = [input.requires_grad_(), *layer.parameters()]
    gradient = torch.randn_like(input)
    return lambda: torch.autograd.grad(layer(input), wanted, gradient)


def compare(
    shape: Sequence[int], memory_format: torch.memory_format, mode: str, *, rounds: int
) -> Comparison:
    images = torch.randn(*shape).to(memory_format=memory_format)
    passes = [one_pass(make(shape[1]).eval(), images, mode) for make in LAYERS.values()]
    for warm_up in passes * 3:
        warm_up()
    # Small shapes are repeated, so that a time is well above the clock's and the scheduler's grain.
    repeats = max(1, round(0.004 / seconds(passes[0], 3)))
    times = [[seconds(measured, repeats) for measured in passes] for _ in range(rounds)]
    return Comparison(
        tuple(1e3 * statistics.median(column) for column in zip(*times, strict=True)),
        tuple(
            statistics.median(row[other] / row[0] for row in times)
            for other in range(1, len(LAYERS))
        ),
    )


def seconds(measured: Callable[[], object], repeats: int) -> float:
    """Return the mean time of one call."""
    start = perf_counter()
    for _ in range(repeats):
        measured()
    return (perf_counter() - start) / repeats


def print_table(title: str, shapes: Counter[tuple[int, int, int]], rows: list[Comparison]) -> None:
    print(f"\n{title}\n{'':>6} {'shape':<15}", *(f"{name + ' ms':>14}" for name in LAYERS), end="")
    print(*(f"{'/ ' + name:>14}" for name in OTHERS))
    for ((channels, height, width), count), row in zip(shapes.items(), rows, strict=True):
        print(f"{count:>4} x {f'{channels}x{height}x{width}':<15}", end=" ")
        print(*(f"{time:>14.3f}" for time in row.milliseconds), end="")
        print(*(f"{ratio:>14.2f}" for ratio in row.ratios))
    print(
        f"{'geometric mean':<{24 + 15 * len(LAYERS) - 2}}",
        *(f"{mean:>14.2f}" for mean in mean_ratios(rows)),
        sep="",
    )


def mean_ratios(rows: Sequence[Comparison]) -> list[float]:
    return [
        statistics.geometric_mean(column)
        for column in zip(*(row.ratios for row in rows), strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="few rounds: rough figures")
    options = parser.parse_args()

    keep_freed_memory()
    torch.set_num_threads(options.threads)
    shapes = batch_norm_shapes()
    print(f"PyTorch {torch.__version__}, {options.threads} threads, batch {options.batch}")
    rounds = 5 if options.quick else 25
    results: dict[str, list[Comparison]] = {mode: [] for mode in MODES}
    for mode, (name, memory_format) in itertools.product(MODES, FORMATS.items()):
        rows = [
            compare((options.batch, *shape), memory_format, mode, rounds=rounds) for shape in shapes
        ]
        print_table(f"{mode}, {name}", shapes, rows)
        results[mode] += rows
    for mode in MODES:
        rows = [
            compare((options.batch, *shape), torch.contiguous_format, mode, rounds=rounds)
            for shape in SMALL
        ]
        print_table(f"{mode}, where Python is all that counts", SMALL, rows)

    print("\nBoth memory formats, geometric mean")
    for mode, bars in MODES.items():
        for other, ratio, bar in zip(OTHERS, mean_ratios(results[mode]), bars, strict=True):
            verdict = "" if bar is None else f"bar {bar}: {'met' if ratio >= bar else 'MISSED'}"
            print(f"  {mode:<20}{'/ ' + other:<16}{ratio:>6.2f}  {verdict}".rstrip())


if __name__ == "__main__":
    main()
