"""Small runs in which freezing is the wrong thing to do, and what new statistics do for them."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from backbone import Backbone
from fine_tuning import Norm, Settings, fine_tune, inverted, pale, shifted
from freezing import frozenbn
from make_samples import Digits, accuracy, train
from torch import nn

from frozenbn_cli import calibrate_statistics
from frozenbn_cli.nn import FrozenBatchNorm2d
from frozenbn_cli.wording import counted

__all__ = [
    "CALIBRATE",
    "Trial",
    "another_contrast",
    "from_scratch",
    "never_formed",
    "too_different",
]

CALIBRATE = "frozenbn calibrate untrained.pt --model backbone.py:Backbone --data digits.pt"
"""The remedy for statistics that were never formed, as it is typed."""

_LARGER_BATCH = 32
_SOME_IMAGES = 256
_PALE_IMAGES = 64
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


def never_formed(folder: Path, digits: Digits) -> tuple[str, str, str]:
    """Return what `frozenbn` says about a model that was never trained.

    It is inspected, and refused by `convert`; with the statistics of `calibrate`, it converts.
    """
    torch.save(Backbone().state_dict(), folder / "untrained.pt")
    torch.save(digits.train_images[:_SOME_IMAGES].clone(), folder / "digits.pt")
    shutil.copy(Path(__file__).with_name("backbone.py"), folder)
    inspected = frozenbn("inspect", "untrained.pt", folder=folder)
    refused = frozenbn("convert", "untrained.pt", folder=folder)
    if refused.returncode != 1:
        raise RuntimeError(f"statistics that were never formed were frozen: {refused.stderr}")
    run = CALIBRATE.split()[1:]
    calibrated = frozenbn(*run, folder=folder)
    converted = frozenbn("convert", "untrained.calibrated.pt", folder=folder)
    for each in (calibrated, converted):
        if each.returncode != 0:
            raise RuntimeError(f"new statistics were not formed, or not frozen: {each.stderr}")
    return inspected.stdout, refused.stderr, calibrated.stdout


def another_contrast(trained: Backbone, digits: Digits, *, seeds: Iterable[int]) -> list[Trial]:
    """Look at pale digits with the statistics of full contrast, and with new ones."""
    before: list[float] = []
    after: list[float] = []
    for seed in seeds:
        domain = shifted(digits, pale, images=_PALE_IMAGES, seed=seed)
        calibrated = copy.deepcopy(trained)
        calibrate_statistics(calibrated, [domain.train_images])
        for model, found in ((trained, before), (calibrated, after)):
            found.append(accuracy(model, domain.test_images, domain.test_labels))
    return [
        Trial("statistics of full contrast", tuple(before)),
        Trial(f"calibrated on {_PALE_IMAGES} pale digits", tuple(after)),
    ]


def too_different(
    trained: Backbone, digits: Digits, settings: Settings, *, seeds: Iterable[int]
) -> list[Trial]:
    """Fine-tune on inverted digits, with few steps of larger batches and with many of small ones.

    Among the few steps is what new statistics do, formed on the new images before freezing.
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
        calibrated = copy.deepcopy(trained)
        calibrate_statistics(calibrated, torch.split(domain.train_images, _LARGER_BATCH))
        alone = accuracy(calibrated, domain.test_images, domain.test_labels)
        runs.setdefault("calibrated, before fine-tuning", []).append(alone)
        for name, start, norm, each in (
            ("BatchNorm in train()", trained, Norm.TRAIN, few),
            ("FrozenBatchNorm2d", trained, Norm.FROZEN, few),
            ("calibrated, then frozen", calibrated, Norm.FROZEN, few),
            ("BatchNorm in train()", trained, Norm.TRAIN, settings),
            ("FrozenBatchNorm2d", trained, Norm.FROZEN, settings),
        ):
            outcome = fine_tune(start, norm, domain, each, seed=seed)
            full_name = f"{name}, {counted(each.steps, 'step')} of {each.batch_size}"
            runs.setdefault(full_name, []).append(outcome.accuracy)
    return [Trial(name, tuple(accuracies)) for name, accuracies in runs.items()]
