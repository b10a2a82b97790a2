"""Small runs in which freezing is the wrong thing to do."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from backbone import Backbone
from fine_tuning import Norm, Settings, fine_tune, inverted, shifted
from freezing import frozenbn
from make_samples import Digits, accuracy, train
from torch import Tensor, nn

from frozenbn_cli.nn import FrozenBatchNorm2d
from frozenbn_cli.wording import counted

__all__ = ["Trial", "from_scratch", "never_formed", "too_different"]

_LARGER_BATCH = 32
# Larger batches take fewer steps, and can take longer ones.
_LARGER_BATCH_RATE = 4.0


@dataclass(frozen=True, slots=True)
class Trial:
    """One way of training, and the accuracy on the test images, from 0 to 1, for each seed."""

    name: str
    accuracies: tuple[float, ...]


def from_scratch(digits: Digits, *, epochs: int, seeds: Iterable[int]) -> list[Trial]:
    """Train without pretrained weights: BatchNorm beside layers that are frozen from the start."""
    norm_layers = {
        "BatchNorm2d": nn.BatchNorm2d,
        "FrozenBatchNorm2d, statistics 0 and 1": FrozenBatchNorm2d,
    }
    seeds = tuple(seeds)
    return [
        Trial(
            name,
            tuple(
                accuracy(
                    train(digits, epochs, seed=seed, norm_layer=norm_layer),
                    digits.test_images,
                    digits.test_labels,
                )
                for seed in seeds
            ),
        )
        for name, norm_layer in norm_layers.items()
    ]


def never_formed(folder: Path) -> tuple[str, str]:
    """Return what `frozenbn` says about a model that was never trained: inspected, converted."""
    path = folder / "untrained.pt"
    torch.save(Backbone().state_dict(), path)
    inspected = frozenbn("inspect", path.name, folder=folder)
    converted = frozenbn("convert", path.name, folder=folder)
    if converted.returncode != 1:
        raise RuntimeError(f"statistics that were never formed were frozen: {converted.stderr}")
    return inspected.stdout, converted.stderr


def too_different(
    trained: Backbone, digits: Digits, settings: Settings, *, seeds: Iterable[int]
) -> list[Trial]:
    """Fine-tune on inverted digits, with few steps of larger batches and with many of small ones.

    Among the few steps is the remedy: form the statistics again on the new images, then freeze.
    """
    few = replace(
        settings,
        batch_size=_LARGER_BATCH,
        learning_rate=settings.learning_rate * _LARGER_BATCH_RATE,
    )
    runs: dict[str, list[float]] = {}
    for seed in seeds:
        domain = shifted(digits, inverted, images=settings.images, seed=seed)
        before = accuracy(trained, domain.test_images, domain.test_labels)
        runs.setdefault("before fine-tuning", []).append(before)
        formed_anew = with_new_statistics(trained, domain.train_images)
        for name, start, norm, each in (
            ("BatchNorm in train()", trained, Norm.TRAIN, few),
            ("FrozenBatchNorm2d", trained, Norm.FROZEN, few),
            ("statistics formed anew, then frozen", formed_anew, Norm.FROZEN, few),
            ("BatchNorm in train()", trained, Norm.TRAIN, settings),
            ("FrozenBatchNorm2d", trained, Norm.FROZEN, settings),
        ):
            outcome = fine_tune(start, norm, domain, each, seed=seed)
            full_name = f"{name}, {counted(each.steps, 'step')} of {each.batch_size}"
            runs.setdefault(full_name, []).append(outcome.accuracy)
    return [Trial(name, tuple(accuracies)) for name, accuracies in runs.items()]


@torch.no_grad()
def with_new_statistics(trained: Backbone, images: Tensor) -> Backbone:
    """Return a copy whose running statistics are the averages over batches of ``images``.

    No labels are needed, and no weight changes.
    """
    model = copy.deepcopy(trained).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    for batch in torch.split(images, _LARGER_BATCH):
        model(batch)
    return model.eval()
