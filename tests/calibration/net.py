"""A small network in a file of its own, and data for it, as a user has them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Takes (N, 1, 8, 8)."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3)
        self.bn2 = nn.BatchNorm2d(6, eps=1e-3)
        self.fc = nn.Linear(6, 5)
        self.bn3 = nn.BatchNorm1d(5)
        self.auxiliary = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        output: Tensor = self.bn3(self.fc(x.mean((2, 3))))
        return output


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs beside labels."""
    generator = torch.Generator().manual_seed(3)
    for size in (8, 3, 5):
        yield torch.randn(size, 1, 8, 8, generator=generator), torch.zeros(size)


def failing() -> Iterator[Tensor]:
    """Fail at the second batch."""
    yield torch.ones(2, 1, 8, 8)
    raise ValueError("no more")


def ending() -> Iterator[Tensor]:
    """Try to end the process."""
    raise SystemExit(0)
    yield


def interrupted() -> Iterator[Tensor]:
    """Be interrupted by the user."""
    raise KeyboardInterrupt
    yield


listed = [inputs for inputs, _ in batches()]
