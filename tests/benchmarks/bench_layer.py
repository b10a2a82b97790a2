"""The layers beside BatchNorm in eval and the frozen layers of others, on the shapes of networks.

BatchNorm2d's on those of ResNet-50, BatchNorm3d's on those of a video ResNet-18, BatchNorm1d's on
those of PointNet; of the latter two nobody else has a frozen layer.

    python -m tests.benchmarks.bench_layer [--batch 8] [--threads N] [--quick]

The layers take turns in one run; a ratio is the median over the rounds, above 1 where ours
is faster. The bars are those of the design. One thread unless told otherwise: on a busy machine
several wait for each other after each operation, and the scheduler's time slice is what counts.
"""

from __future__ import annotations

import argparse
import ctypes
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
from torchvision.models.video import r3d_18
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from frozenbn_cli.nn import FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d
from tests.builders.models import Detectron2FrozenBatchNorm2d

Layers = dict[str, Callable[[int], nn.Module]]
Shape = tuple[int, ...]
Shapes = Counter[Shape]
"""The shapes of one input, without the batch, and of how many layers each is."""

LAYERS: Layers = {
    "ours": FrozenBatchNorm2d,
    "torchvision": TorchvisionFrozenBatchNorm2d,
    "batch norm": nn.BatchNorm2d,
    "timm": partial(TimmFrozenBatchNormAct2d, apply_act=False),
    "detectron2": Detectron2FrozenBatchNorm2d,
}
LAYERS_1D: Layers = {"ours": FrozenBatchNorm1d, "batch norm": nn.BatchNorm1d}
LAYERS_3D: Layers = {"ours": FrozenBatchNorm3d, "batch norm": nn.BatchNorm3d}
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
FORMATS_1D = {"contiguous": torch.contiguous_format}
FORMATS_3D = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}
# Of PointNet, on 1,024 points: its layers on points, and those behind its pooling.
POINTS: Shapes = Counter({(64, 1024): 3, (128, 1024): 1, (1024, 1024): 1})
FEATURES: Shapes = Counter({(512,): 1, (256,): 1})
SMALL: Shapes = Counter({(8, 2, 2): 1})


@dataclass(frozen=True, slots=True)
class Topic:
    """Layers on the shapes of a network.

    Attributes:
        name: Of it all.
        layers: Ours first.
        shapes: Of their inputs.
        batch: Of the inputs.
        formats: Memory formats, by name.
        bars: Least ratios of the others' times to ours, by mode and layer.
    """

    name: str
    layers: Layers
    shapes: Shapes
    batch: int
    formats: dict[str, torch.memory_format]
    bars: dict[str, dict[str, float]]


MODES = ("forward", "forward + backward")


def topics(batch: int) -> list[Topic]:
    """Return what is measured."""
    # Without gradients, the kernel is the same: what differs beside is noise.
    not_slower = {"forward": {"batch norm": 0.95}, "forward + backward": {"batch norm": 1.0}}
    images = {
        "forward": {"batch norm": 0.95},
        "forward + backward": {"torchvision": 1.25, "batch norm": 1.5},
    }
    # Python is all that counts on so little, and a backward of our own is called.
    little = {"forward": {"batch norm": 1.2}, "forward + backward": {"batch norm": 0.85}}
    clips = batch_norm_shapes(r3d_18, torch.empty(1, 3, 8, 112, 112, device="meta"))
    pictures = batch_norm_shapes(resnet50, torch.empty(1, 3, 224, 224, device="meta"))
    return [
        Topic("2d, ResNet-50", LAYERS, pictures, batch, FORMATS, images),
        Topic("2d, little maps", LAYERS, SMALL, batch, FORMATS_1D, little),
        Topic(
            "3d, a video ResNet-18", LAYERS_3D, clips, max(batch // 4, 1), FORMATS_3D, not_slower
        ),
        Topic("1d, PointNet's points", LAYERS_1D, POINTS, batch, FORMATS_1D, not_slower),
        Topic("1d, PointNet's features", LAYERS_1D, FEATURES, 4 * batch, FORMATS_1D, little),
    ]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Times of all layers on one shape.

    Attributes:
        milliseconds: Median of one pass of each layer, ours first.
        ratios: Time of each of the others to that of ours, median over the rounds.
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


def batch_norm_shapes(build: Callable[[], nn.Module], image: Tensor) -> Shapes:
    """Return the shape of the input of each BatchNorm of a network, counted."""
    shapes: Shapes = Counter()

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[tuple(inputs[0].shape[1:])] += 1

    with torch.device("meta"):
        model = build()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.register_forward_pre_hook(count)
        model.eval()(image)
    return shapes


def one_pass(layer: nn.Module, input: Tensor, mode: str) -> Callable[[], object]:
    """Return what is measured; backward goes to the input and to the parameters, if any."""
    if mode == "forward":
        return torch.no_grad()(lambda: layer(input))
    wanted = [input.requires_grad_(), *layer.parameters()]
    gradient = torch.randn_like(input)
    return lambda: torch.autograd.grad(layer(input), wanted, gradient)


def compare(
    layers: Layers,
    shape: Sequence[int],
    memory_format: torch.memory_format,
    mode: str,
    *,
    rounds: int,
) -> Comparison:
    images = torch.randn(*shape).to(memory_format=memory_format)
    passes = [one_pass(make(shape[1]).eval(), images, mode) for make in layers.values()]
    for warm_up in passes * 3:
        warm_up()
    # Small shapes are repeated, so that a time is well above the clock's and the scheduler's grain.
    repeats = max(1, round(0.004 / seconds(passes[0], 3)))
    times = [[seconds(measured, repeats) for measured in passes] for _ in range(rounds)]
    return Comparison(
        tuple(1e3 * statistics.median(column) for column in zip(*times, strict=True)),
        tuple(
            statistics.median(row[other] / row[0] for row in times)
            for other in range(1, len(layers))
        ),
    )


def seconds(measured: Callable[[], object], repeats: int) -> float:
    """Return the mean time of one call."""
    start = perf_counter()
    for _ in range(repeats):
        measured()
    return (perf_counter() - start) / repeats


def print_table(title: str, topic: Topic, rows: list[Comparison]) -> None:
    ours, *others = topic.layers
    print(f"\n{title}\n{'':>6} {'shape':<15}", end=" ")
    print(*(f"{name + ' ms':>14}" for name in (ours, *others)), end="")
    print(*(f"{'/ ' + name:>14}" for name in others))
    for (shape, count), row in zip(topic.shapes.items(), rows, strict=True):
        print(f"{count:>4} x {'x'.join(map(str, shape)):<15}", end=" ")
        print(*(f"{time:>14.3f}" for time in row.milliseconds), end="")
        print(*(f"{ratio:>14.2f}" for ratio in row.ratios))
    print(
        f"{'geometric mean':<{24 + 15 * len(topic.layers) - 2}}",
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
    print(f"PyTorch {torch.__version__}, {options.threads} threads")
    rounds = 5 if options.quick else 25
    found = {
        (topic.name, mode): (topic, mode, measured(topic, mode, rounds=rounds))
        for topic in topics(options.batch)
        for mode in MODES
    }
    print("\nAll memory formats, geometric mean")
    for topic, mode, rows in found.values():
        for other, ratio in zip(list(topic.layers)[1:], mean_ratios(rows), strict=True):
            bar = topic.bars[mode].get(other)
            verdict = "" if bar is None else f"bar {bar}: {'met' if ratio >= bar else 'MISSED'}"
            said = f"  {topic.name:<25}{mode:<20}{'/ ' + other:<16}{ratio:>6.2f}  {verdict}"
            print(said.rstrip())


def measured(topic: Topic, mode: str, *, rounds: int) -> list[Comparison]:
    """Compare the layers of a topic on all of its shapes, and show that."""
    found: list[Comparison] = []
    for name, memory_format in topic.formats.items():
        rows = [
            compare(topic.layers, (topic.batch, *shape), memory_format, mode, rounds=rounds)
            for shape in topic.shapes
        ]
        print_table(f"{topic.name}, batch {topic.batch}, {mode}, {name}", topic, rows)
        found += rows
    return found


if __name__ == "__main__":
    main()
