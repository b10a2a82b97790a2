"""Rewrites variances for loaders whose frozen layers have an eps of their own.

A layer's scale is a function of the one sum ``variance + eps``, as the CPU kernel of PyTorch rounds
it: in float64 for statistics of float64, in float32 for all others, eps rounded likewise before. So
a variance v with ``fl(v + target) == fl(variance + eps)`` gives the same scale to the last bit.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from frozenbn_cli.batch_norms.batch_norm import BatchNorm, Eps
from frozenbn_cli.batch_norms.plan import Edit, Plan
from frozenbn_cli.checkpoints import StoredTensor
from frozenbn_cli.checkpoints.tensors import DType
from frozenbn_cli.containers.source import BytesExtent
from frozenbn_cli.errors import RefusedError, UsageError
from frozenbn_cli.wording import counted, listed

__all__ = ["Retargeting", "RewrittenVariance", "nearest_variance", "retargeted"]

_NAMED = 4


@dataclass(frozen=True, slots=True)
class RewrittenVariance:
    """The variance of one layer, rewritten.

    Attributes:
        tensor: The new ``running_var``, shape (C,), of the dtype that it had.
        before: The eps that the layer had.
        inexact: The channels for which no value gives the same scale.
        off: By how much the scale of the worst of them is off, relative to what it was.
    """

    tensor: StoredTensor
    before: Eps
    inexact: tuple[int, ...]
    off: float


@dataclass(frozen=True, slots=True)
class Retargeting:
    """What a target eps takes.

    Attributes:
        eps: The target.
        layers: The rewritten layers, by name.
    """

    eps: float
    layers: Mapping[str, RewrittenVariance]

    @property
    def stated(self) -> Eps:
        """The eps that the output states for each of its layers."""
        return Eps(self.eps, "given")

    @property
    def before(self) -> dict[str, Eps]:
        """The eps that each layer had which had another."""
        return {
            name: rewritten.before
            for name, rewritten in self.layers.items()
            if rewritten.before.value != self.eps
        }

    def entries(self, plan: Plan) -> dict[str, StoredTensor]:
        """Return the new ``running_var`` of each layer that a plan freezes, by its name."""
        return {
            item.layer.entry_name("running_var"): self.layers[item.layer.name].tensor
            for item in plan.frozen
        }

    @property
    def inexact(self) -> dict[str, RewrittenVariance]:
        """The layers with channels for which no value gives the same scale."""
        return {name: found for name, found in self.layers.items() if found.inexact}

    @property
    def off(self) -> float:
        """By how much the worst scale is off, relative to what it was."""
        return max((found.off for found in self.layers.values()), default=0.0)

    @property
    def inexact_text(self) -> str:
        """Which layers and channels cannot have the same scale, in words; empty if all can."""
        if not self.inexact:
            return ""
        named = [
            f"{name or 'the layer'} ({counted(len(found.inexact), 'channel')}: "
            f"{listed([str(channel) for channel in found.inexact], _NAMED)})"
            for name, found in self.inexact.items()
        ]
        count = sum(len(found.inexact) for found in self.inexact.values())
        return (
            f"no variance of 0 or more gives the same scale with eps {self.eps:g} in "
            f"{counted(count, 'channel')} of {counted(len(named), 'layer')}, which would be off by "
            f"up to {self.off:.3g} of it: {listed(named, _NAMED)}"
        )


def retargeted(plan: Plan, target: float) -> tuple[Plan, Retargeting]:
    """Return a plan with the variances of the layers that it freezes rewritten for another eps.

    Raises:
        UsageError: The eps of a layer is not known, so that it would be a guess for good.
        RefusedError: The file has layers that are frozen already, for another eps.
    """
    others = [
        item.layer
        for item in plan.layers
        if item.layer.frozen_already and item.layer.eps.value != target
    ]
    if others:
        shown = ", ".join(sorted({f"{layer.eps.value:g}" for layer in others}))
        raise RefusedError(
            f"{counted(len(others), 'layer')} frozen already, with eps {shown}: "
            f"{listed([layer.name or 'the layer' for layer in others], _NAMED)}",
            advice="Convert the original, in which they are live, for another target.",
        )
    unknown = [item.layer.name for item in plan.frozen if item.layer.eps.source == "assumed"]
    if unknown:
        raise UsageError(
            "a target eps is given, and the file does not hold the eps that its layers have: "
            f"{listed(unknown, _NAMED)}",
            advice="Give it with --eps, or name the model with --model.",
        )
    layers, made = {}, _Made({})
    for item in plan.frozen:
        layers[item.layer.name] = made.of(item.layer, target)
    edits = tuple(
        Edit(
            "rewrite",
            item.layer.entry_name("running_var"),
            f"eps {target!r} gives the scale that {item.layer.eps.value!r} gave",
        )
        for item in plan.frozen
        if item.layer.eps.value != target
    )
    return replace(plan, edits=(*plan.edits, *edits)), Retargeting(target, layers)


@dataclass(frozen=True, slots=True)
class _Made:
    """Rewritten variances; layers that share one, and their eps, share what it becomes."""

    known: dict[tuple[object, ...], RewrittenVariance]

    def of(self, layer: BatchNorm, target: float) -> RewrittenVariance:
        tensor = layer.tensors["running_var"]
        shared = (id(tensor.storage), tensor.offset, tensor.shape, tensor.strides, layer.eps)
        if shared not in self.known:
            self.known[shared] = _rewritten(tensor, layer.eps, target)
        return self.known[shared]


def _rewritten(tensor: StoredTensor, eps: Eps, target: float) -> RewrittenVariance:
    if eps.value == target:
        return RewrittenVariance(tensor, eps, (), 0.0)
    grid = _Grid(tensor.dtype)
    values, inexact, off = [], [], 0.0
    for channel, variance in enumerate(tensor.values()):
        value, error = _nearest(variance, eps.value, target, grid)
        values.append(value)
        if error:
            inexact.append(channel)
            off = max(off, error)
    extent = BytesExtent(grid.encoded(values))
    rewritten = StoredTensor.contiguous(tensor.dtype, tensor.shape, extent)
    return RewrittenVariance(rewritten, eps, tuple(inexact), off)


def nearest_variance(
    variance: float, eps: float, target: float, dtype: DType
) -> tuple[float, float]:
    """Return the variance with which ``target`` gives the scale that ``eps`` gives.

    Args:
        variance: As it is stored in ``dtype``.
        eps: Added to it.
        target: Added to what is returned.
        dtype: Floating point, of 16 bits or more.

    Returns:
        Of the values of ``dtype`` that give the same sum, the one nearest to the difference; and 0.
        Where there is none, or only negative ones: the value of 0 or more with the nearest sum; and
        by how much the scale is off, relative to what it was.
    """
    return _nearest(variance, eps, target, _Grid(dtype))


def _nearest(variance: float, eps: float, target: float, grid: _Grid) -> tuple[float, float]:
    if not math.isfinite(variance):
        return variance, 0.0
    eps, target = grid.rounded_sum(eps, 0.0), grid.rounded_sum(target, 0.0)
    wanted = grid.rounded_sum(variance, eps)
    difference = math.fsum((variance, eps, -target))
    # A variance that is negative already is broken, and stays what it is.
    least = 0.0 if variance >= 0 else -math.inf
    near = [value for value in grid.around(difference) if value >= least] or [0.0]
    near.sort(key=lambda value: abs(math.fsum((value, -variance, -eps, target))))
    for value in near:
        if grid.rounded_sum(value, target) == wanted:
            return value, 0.0
    value = min(near, key=lambda value: abs(grid.rounded_sum(value, target) - wanted))
    return value, _off(wanted, grid.rounded_sum(value, target))


def _off(wanted: float, found: float) -> float:
    """Return by how much a scale is off, relative to what it was."""
    return abs(math.sqrt(wanted / found) - 1) if wanted > 0 and found > 0 else math.inf


class _Grid:
    """The values of a dtype, and the sums that the kernel forms of them."""

    def __init__(self, dtype: DType) -> None:
        self._is_bfloat16 = dtype.name == "bfloat16"
        self._is_wide = dtype.item_bytes == 8
        self._letter = {8: "d", 4: "f", 2: "e"}[dtype.item_bytes]
        self._bits = {8: "q", 4: "i", 2: "h"}[dtype.item_bytes]

    def rounded_sum(self, first: float, second: float) -> float:
        """Return the sum in the kernel's arithmetic."""
        # Rounding twice, to float64 and on to float32, is as good as once for a sum of two.
        return first + second if self._is_wide else _as_float32(first + second)

    def around(self, value: float) -> list[float]:
        """Return the values of the dtype nearest to ``value``, two on each side."""
        bits = struct.unpack(f"<{self._bits}", self._encoded(abs(value)))[0]
        near = (self._decoded(bits + step) for step in (-2, -1, 0, 1, 2) if bits + step >= 0)
        # No zero is negative: it would be another value to whoever compares bits.
        return [math.copysign(item, value) + 0.0 for item in near if math.isfinite(item)]

    def encoded(self, values: Sequence[float]) -> bytes:
        """Return values of the dtype as they are stored."""
        return b"".join(map(self._encoded, values))

    def _encoded(self, value: float) -> bytes:
        if self._is_bfloat16:
            return _as_bfloat16(value)
        try:
            return struct.pack(f"<{self._letter}", value)
        except OverflowError:
            return struct.pack(f"<{self._letter}", math.copysign(math.inf, value))

    def _decoded(self, bits: int) -> float:
        stored = struct.pack(f"<{self._bits}", bits)
        if self._is_bfloat16:
            stored, letter = b"\0\0" + stored, "f"
        else:
            letter = self._letter
        value: float = struct.unpack(f"<{letter}", stored)[0]
        return value


def _as_float32(value: float) -> float:
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return math.copysign(math.inf, value)
    return rounded


def _as_bfloat16(value: float) -> bytes:
    """Return the upper half of a float32, rounded to the nearest, ties to even."""
    stored = struct.pack("<f", _as_float32(value))
    bits = struct.unpack("<I", stored)[0]
    if math.isfinite(value):
        bits += 0x7FFF + (bits >> 16 & 1)
    return struct.pack("<H", bits >> 16 & 0xFFFF)
