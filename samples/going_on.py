"""Freezing in the middle of a run: with the optimizer that there is, and with a new one."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import AdamW, Optimizer

from frozenbn_cli import calibrate_statistics, convert_bn_to_frozen, freeze_batch_norms

if TYPE_CHECKING or not __package__:
    from backbone import Backbone
    from make_samples import Digits, accuracy, batches
else:
    from samples.backbone import Backbone
    from samples.make_samples import Digits, accuracy, batches

__all__ = ["GoneOn", "going_on"]

_RATE = 2e-3
_FIRST_STEPS = 10
_CALIBRATION_BATCH = 256
_Run = tuple[nn.Module, Optimizer]


@dataclass(frozen=True, slots=True)
class GoneOn:
    """One way to go on from the middle of a run; of each seed one value.

    Attributes:
        name: What was done.
        first_losses: The mean loss of the first steps after it.
        accuracies: On the test images at the end, from 0 to 1.
    """

    name: str
    first_losses: tuple[float, ...]
    accuracies: tuple[float, ...]


def going_on(digits: Digits, *, epochs: int, seeds: Iterable[int]) -> list[GoneOn]:
    """Train from scratch for so many epochs, and for as many more in each way.

    All ways go on from the same weights and moments, with the same images in the same order.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    for seed in seeds:
        torch.manual_seed(seed)
        model = Backbone()
        run: _Run = (model, AdamW(model.parameters(), _RATE, weight_decay=0.05))
        for _ in _losses(run, digits, epochs):
            pass
        for name, change in _WAYS.items():
            torch.manual_seed(seed)
            changed = change(copy.deepcopy(run), digits)
            losses = list(_losses(changed, digits, epochs))
            changed[0].eval()
            right = accuracy(changed[0], digits.test_images, digits.test_labels)
            first = statistics.mean(losses[:_FIRST_STEPS])
            found.setdefault(name, []).append((first, right))
    return [GoneOn(name, *zip(*values, strict=True)) for name, values in found.items()]


def _losses(run: _Run, digits: Digits, epochs: int) -> Iterator[float]:
    """Train in place, and yield the loss of each step."""
    model, optimizer = run
    model.train()
    for _ in range(epochs):
        for images, labels in batches(digits.train_images, digits.train_labels):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels, label_smoothing=0.1)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            yield loss.item()


def _as_it_is(run: _Run, _: Digits) -> _Run:
    return run


def _frozen(run: _Run, _: Digits) -> _Run:
    model, optimizer = run
    return freeze_batch_norms(model, optimizer), optimizer


def _calibrated_and_frozen(run: _Run, digits: Digits) -> _Run:
    calibrate_statistics(run[0], torch.split(digits.train_images, _CALIBRATION_BATCH))
    return _frozen(run, digits)


def _frozen_with_new_optimizer(run: _Run, _: Digits) -> _Run:
    model = convert_bn_to_frozen(run[0])
    return model, AdamW(model.parameters(), _RATE, weight_decay=0.05)


_WAYS: dict[str, Callable[[_Run, Digits], _Run]] = {
    "BatchNorm to the end": _as_it_is,
    "frozen, optimizer kept": _frozen,
    "calibrated and frozen, optimizer kept": _calibrated_and_frozen,
    "frozen, new optimizer": _frozen_with_new_optimizer,
}
