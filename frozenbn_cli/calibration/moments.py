"""Mean and variance of each channel over any number of batches, in float64. Imports torch."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Moments"]

_PIECE_ELEMENTS = 1 << 20  # Of a batch, so much is held in float64 at a time.


class Moments:
    """Mean and variance of each channel of all that was added, whatever the batches' sizes.

    Batches are merged by the formula of Chan, Golub and LeVeque (*Updating Formulae and a Pairwise
    Algorithm for Computing Sample Variances*, 1979), which weighs each by its elements and does
    not subtract large numbers of nearly equal size.

    Attributes:
        count: How many elements each channel has had.
        mean: Of each channel, shape (C,), float64; None before the first element.
    """

    __slots__ = ("_squares", "count", "mean")

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, batch: Tensor) -> None:
        """Take in a batch of shape (N, C, …)."""
        if batch.device.type == "mps":  # It has no float64.
            batch = batch.cpu()
        flat = batch.detach().flatten(2) if batch.dim() > 2 else batch.detach().unsqueeze(2)
        per_row = max(flat[:1].numel(), 1)
        for piece in torch.split(flat, max(_PIECE_ELEMENTS // per_row, 1)):
            if count := piece.shape[0] * piece.shape[2]:
                self._merge(piece.to(torch.float64, copy=True), count)

    def _merge(self, piece: Tensor, count: int) -> None:
        mean = piece.sum((0, 2)).div_(count)
        piece -= mean.view(1, -1, 1)
        squares = piece.square_().sum((0, 2))
        if self.mean is None or self._squares is None:
            self.count, self.mean, self._squares = count, mean, squares
            return
        together = self.count + count
        apart = mean - self.mean
        self._squares += squares + apart.square() * (self.count * count / together)
        self.mean += apart * (count / together)
        self.count = together

    @property
    def variance(self) -> Tensor | None:
        """The unbiased variance of each channel, as BatchNorm keeps it; None below two elements."""
        if self._squares is None or self.count < 2:
            return None
        return self._squares / (self.count - 1)
