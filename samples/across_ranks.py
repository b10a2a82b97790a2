"""Fine-tuning on several processes: whose running statistics are the same on all of them?"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TypeVar

import torch.distributed as dist
from backbone import Backbone
from fine_tuning import (
    Norm,
    Settings,
    prepared,
    running_statistics,
    statistics_drift,
    training_steps,
)
from make_samples import Digits, accuracy
from torch.nn.parallel import DistributedDataParallel

__all__ = ["RankedOutcome", "fine_tune_on_ranks"]

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class RankedOutcome:
    """One fine-tuning on several processes.

    Attributes:
        norm: How the normalisation was treated.
        broadcast_bytes: What rank 0 sends to all others before each forward; 0 for no broadcast.
        unequal: How many running statistics (tensors) differ from rank 0's in any element.
        count: How many running statistics there are.
        drift_of_means: Between rank 0 and the rank that is farthest from it, see `Drift`.
        accuracies: On the test images, by rank, from 0 to 1.
    """

    norm: Norm
    broadcast_bytes: int
    unequal: int
    count: int
    drift_of_means: float
    accuracies: tuple[float, ...]


def fine_tune_on_ranks(
    trained: Backbone,
    norm: Norm,
    domain: Digits,
    settings: Settings,
    *,
    broadcast_buffers: bool,
    seed: int,
) -> RankedOutcome:
    """Fine-tune with DistributedDataParallel, each rank on its share of ``domain``.

    Every rank of the default process group has to call this, and gets the same answer.

    Args:
        trained: The backbone of stage 1.
        norm: How the normalisation is treated.
        domain: The same on all ranks.
        settings: ``images`` are those of all ranks, ``batch_size`` those of one.
        broadcast_buffers: As for DistributedDataParallel.
        seed: Of the order of the images.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    share = Digits(
        domain.train_images[rank::ranks],
        domain.train_labels[rank::ranks],
        domain.test_images,
        domain.test_labels,
    )
    settings = replace(settings, images=settings.images // ranks)
    with warnings.catch_warnings():
        # PyTorch 2.14 has a new name for it, which older versions do not know.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        model = DistributedDataParallel(
            prepared(trained, norm, upper_only=settings.upper_only),
            broadcast_buffers=broadcast_buffers,
        )
    for _ in training_steps(model, norm, share, settings, seed=seed):
        pass
    model.eval()
    here = running_statistics(model.module)
    everywhere = _gathered(here)
    return RankedOutcome(
        norm=norm,
        broadcast_bytes=sum(buffer.nbytes for buffer in model.buffers()) * broadcast_buffers,
        unequal=sum(
            any(not entry.equal(there[name]) for there in everywhere)
            for name, entry in everywhere[0].items()
        ),
        count=len(here),
        drift_of_means=max(statistics_drift(everywhere[0], there).means for there in everywhere),
        accuracies=tuple(_gathered(accuracy(model.module, domain.test_images, domain.test_labels))),
    )


def _gathered(value: _Value) -> list[_Value]:
    """Return the values of all ranks, in their order."""
    values: list[_Value] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
