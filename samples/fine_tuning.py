"""Fine-tuning the sample backbone on a shifted domain, and what is measured on the way."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.optim.lr_scheduler import LinearLR

from frozenbn_cli import convert_bn_to_frozen

if TYPE_CHECKING or not __package__:
    from backbone import Backbone
    from make_samples import Digits, accuracy
else:
    from samples.backbone import Backbone
    from samples.make_samples import Digits, accuracy

__all__ = [
    "Drift",
    "Measurements",
    "Norm",
    "Outcome",
    "Reading",
    "Settings",
    "Shift",
    "fine_tune",
    "inverted",
    "measure",
    "pale",
    "prepared",
    "rotated_and_noisy",
    "running_statistics",
    "saved_activation_bytes",
    "shifted",
    "statistics_drift",
    "training_steps",
]

_EPS = 1e-5
_TEST_SEED = 1_000_000
_ROTATION_DEGREES = 25.0
_NOISE = 0.2
_CONTRAST = 0.3
_TIMED_ROUNDS = 200


class Norm(Enum):
    """How the normalisation is treated while everything else is fine-tuned."""

    TRAIN = "BatchNorm in train()"
    EVAL = "BatchNorm in eval()"
    FROZEN = "FrozenBatchNorm2d"


def prepared(trained: Backbone, norm: Norm, *, upper_only: bool = False) -> nn.Module:
    """Return a copy of ``trained`` to be fine-tuned; ``trained`` is not modified.

    Args:
        trained: The backbone of stage 1.
        norm: Whether its BatchNorm layers are frozen.
        upper_only: Whether stem and stage 1 keep their weights, as is usual in detectors.
    """
    model = copy.deepcopy(trained)
    if upper_only:
        model.stem.requires_grad_(False)
        model.stage1.requires_grad_(False)
    return convert_bn_to_frozen(model) if norm is Norm.FROZEN else model


def _to_training(model: nn.Module, norm: Norm) -> None:
    """Switch ``model`` to training.

    Putting BatchNorm in eval by hand has to follow each `train()`, which undoes it; a frozen layer
    needs no such care.
    """
    model.train()
    if norm is Norm.EVAL:
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


# The shifted domain


Shift = Callable[[Tensor, Generator], Tensor]


def rotated_and_noisy(images: Tensor, generator: Generator) -> Tensor:
    """Return ``images`` of shape (N, 1, H, W), turned by 25 degrees, with Gaussian noise of 0.2."""
    angle = math.radians(_ROTATION_DEGREES)
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle), 0.0], [math.sin(angle), math.cos(angle), 0.0]]
    )
    grid = F.affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    turned = F.grid_sample(images, grid, align_corners=False)
    return turned + _NOISE * torch.randn(images.shape, generator=generator)


def inverted(images: Tensor, _generator: Generator) -> Tensor:
    """Return the negatives of ``images``: dark strokes on a bright ground."""
    return 1 - images


def pale(images: Tensor, _generator: Generator) -> Tensor:
    """Return ``images`` at three tenths of their contrast."""
    return _CONTRAST * images


def shifted(digits: Digits, shift: Shift, *, images: int, seed: int) -> Digits:
    """Return a domain: ``images`` images to train on, drawn by ``seed``, and all the test images.

    The test images are the same for every seed.
    """
    generator = Generator().manual_seed(seed)
    drawn = torch.randperm(len(digits.train_images), generator=generator)[:images]
    return Digits(
        shift(digits.train_images[drawn], generator),
        digits.train_labels[drawn],
        shift(digits.test_images, Generator().manual_seed(_TEST_SEED)),
        digits.test_labels,
    )


# What is measured


@dataclass(frozen=True, slots=True)
class Drift:
    """How far running statistics are from those of the trained backbone.

    Attributes:
        means: Mean distance of ``running_mean``, in the channel's standard deviations; 0 for equal.
        variances: Geometric mean of the factor between the variances; 1 for equal.
    """

    means: float
    variances: float


@dataclass(frozen=True, slots=True)
class Reading:
    """The state of a model after a number of steps; accuracy is from 0 to 1, in eval."""

    step: int
    accuracy: float
    drift: Drift


@dataclass(frozen=True, slots=True)
class Outcome:
    """One fine-tuning.

    Attributes:
        readings: In the order of their steps, from step 0 to the last one.
        saved_bytes: Activations that one step saves for backward.
    """

    readings: tuple[Reading, ...]
    saved_bytes: int

    @property
    def accuracy(self) -> float:
        """The accuracy on the test images at the end, from 0 to 1."""
        return self.readings[-1].accuracy

    @property
    def drift(self) -> Drift:
        """The drift of the running statistics at the end."""
        return self.readings[-1].drift


@dataclass(frozen=True, slots=True)
class Measurements:
    """What `measure` returns, for each way to treat the normalisation.

    Attributes:
        outcomes: A fine-tuning for each seed.
        step_seconds: The times of single steps: forward, backward and optimiser. The ways took
            turns, so that other work on the machine slowed all of them alike.
    """

    outcomes: dict[Norm, list[Outcome]]
    step_seconds: dict[Norm, list[float]]


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all running statistics; names are the same with frozen layers and live."""
    return {
        name: buffer.clone()
        for name, buffer in model.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    }


def statistics_drift(before: dict[str, Tensor], after: dict[str, Tensor]) -> Drift:
    """Return how far ``after`` is from ``before``, over all channels of all layers."""
    layers = [name.removesuffix("running_mean") for name in before if name.endswith("_mean")]
    means = [
        (after[f"{layer}running_mean"] - before[f"{layer}running_mean"]).abs()
        / (before[f"{layer}running_var"] + _EPS).sqrt()
        for layer in layers
    ]
    factors = [
        ((after[f"{layer}running_var"] + _EPS) / (before[f"{layer}running_var"] + _EPS)).log().abs()
        for layer in layers
    ]
    return Drift(float(torch.cat(means).mean()), float(torch.cat(factors).mean().exp()))


def saved_activation_bytes(model: nn.Module, images: Tensor) -> int:
    """Return how many bytes of activations a forward saves for backward; runs ``model`` once.

    Each storage counts once, however many operations save it, and parameters and buffers, which
    are there anyway, do not.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in _tensors(model)}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    # The output holds on to what was saved, so that no address is used twice.
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(images)
    del output
    return sum(saved.values())


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


# Training


@dataclass(frozen=True, slots=True)
class Settings:
    """The same for each `Norm`.

    Attributes:
        images: How many there are to train on.
        batch_size: Images in a step.
        epochs: How often each image is seen.
        learning_rate: Of the first step; it falls linearly to 0.
        upper_only: As for `prepared`.
        readings: How often the model is looked at on the way.
    """

    images: int = 240
    batch_size: int = 2
    epochs: int = 3
    learning_rate: float = 1e-3
    upper_only: bool = False
    readings: int = 6

    @property
    def steps(self) -> int:
        """How many steps there are in all."""
        return self.epochs * (self.images // self.batch_size)


def measure(
    trained: Backbone, digits: Digits, shift: Shift, settings: Settings, *, seeds: Iterable[int]
) -> Measurements:
    """Fine-tune copies of ``trained`` on shifted digits, in each way and with each seed."""
    outcomes: dict[Norm, list[Outcome]] = {norm: [] for norm in Norm}
    for seed in seeds:
        domain = shifted(digits, shift, images=settings.images, seed=seed)
        for norm in Norm:
            outcomes[norm].append(fine_tune(trained, norm, domain, settings, seed=seed))
    domain = shifted(digits, shift, images=settings.images, seed=0)
    return Measurements(outcomes, _step_seconds(trained, domain, settings))


def fine_tune(
    trained: Backbone, norm: Norm, domain: Digits, settings: Settings, *, seed: int
) -> Outcome:
    """Fine-tune a copy of ``trained`` on ``domain``; the seed decides on the order of images."""
    model = prepared(trained, norm, upper_only=settings.upper_only)
    probe = copy.deepcopy(model)
    _to_training(probe, norm)
    saved_bytes = saved_activation_bytes(probe, domain.train_images[: settings.batch_size])

    before = running_statistics(model)
    every = max(1, settings.steps // settings.readings)
    readings = [_reading(model, domain, before, 0)]
    steps = training_steps(model, norm, domain, settings, seed=seed)
    for step, _ in enumerate(steps, 1):
        if step % every == 0 or step == settings.steps:
            readings.append(_reading(model, domain, before, step))
    return Outcome(tuple(readings), saved_bytes)


def _step_seconds(trained: Backbone, domain: Digits, settings: Settings) -> dict[Norm, list[float]]:
    runs = [
        training_steps(
            prepared(trained, norm, upper_only=settings.upper_only), norm, domain, settings, seed=0
        )
        for norm in Norm
    ]
    rounds = islice(zip(*runs, strict=True), _TIMED_ROUNDS)
    return dict(zip(Norm, map(list, zip(*rounds, strict=True)), strict=True))


def _reading(model: nn.Module, domain: Digits, before: dict[str, Tensor], step: int) -> Reading:
    model.eval()
    return Reading(
        step,
        accuracy(model, domain.test_images, domain.test_labels),
        statistics_drift(before, running_statistics(model)),
    )


def training_steps(
    model: nn.Module, norm: Norm, domain: Digits, settings: Settings, *, seed: int
) -> Iterator[float]:
    """Train ``model`` in place and yield after each step the seconds that it took."""
    torch.manual_seed(seed)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, settings.learning_rate, momentum=0.9)
    schedule = LinearLR(optimizer, 1.0, 0.0, total_iters=settings.steps)
    for images, labels in _batches(domain, settings):
        # Whoever looks on between the steps may have left the model in eval.
        _to_training(model, norm)
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield time.perf_counter() - start
        schedule.step()


def _batches(domain: Digits, settings: Settings) -> Iterator[tuple[Tensor, Tensor]]:
    full = settings.images // settings.batch_size
    for _ in range(settings.epochs):
        order = torch.randperm(settings.images)[: full * settings.batch_size]
        for chosen in order.view(full, settings.batch_size):
            yield domain.train_images[chosen], domain.train_labels[chosen]
