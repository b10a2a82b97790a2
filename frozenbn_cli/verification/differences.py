"""Measures by how much tensors differ. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from frozenbn_cli.verification.claims import Difference, Measure
from frozenbn_cli.verification.tolerance import EXACT, Tolerance

__all__ = ["compare", "same_bits"]

_ORDERED = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
}

_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors hold the same bits, also of NaN and of the two zeros."""
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and torch.equal(_bits(first), _bits(second))
    )


def _bits(tensor: Tensor) -> Tensor:
    values = tensor.detach().resolve_conj().resolve_neg()
    # Wide words are compared several times as fast as bytes.
    word = _WORDS.get(values.element_size(), torch.uint8)
    return values.contiguous().reshape(-1).view(word)


def compare(
    place: str,
    before: Tensor,
    after: Tensor,
    *,
    tolerance: Tolerance = EXACT,
    any_nan: bool = False,
) -> Difference | None:
    """Return how two tensors differ, also where the tolerance allows it; None if they do not.

    Args:
        place: What to call it.
        before: The original.
        after: The converted; may have another dtype, which only a tolerance allows.
        tolerance: Of the values.
        any_nan: Whether NaN equals NaN whatever its bits are, as is right for what was computed.
    """
    if same_bits(before, after):
        return None
    if before.shape != after.shape:
        shapes = f"shape {list(after.shape)} instead of {list(before.shape)}"
        return Difference(place, shapes)
    other_dtype = ""
    if before.dtype != after.dtype:
        other_dtype = f"{_name(after.dtype)} instead of {_name(before.dtype)}"
    try:
        first, second = _wide(before), _wide(after)
    except NotImplementedError:  # PyTorch only stores some dtypes, such as float4.
        return Difference(place, other_dtype or f"other bits of {_name(before.dtype)}")
    same = _same(before, after, first, second)
    gap = (second - first).abs().masked_fill(same, 0.0).nan_to_num(nan=math.inf, posinf=math.inf)
    if any_nan and not other_dtype and same.all() and not _zeros_differ(first, second):
        return None
    allowed = tolerance.atol + tolerance.rtol * first.abs()
    # What is infinitely far is never within, not even of an infinite value.
    within = not tolerance.exact and bool((same | ((gap <= allowed) & gap.isfinite())).all())
    measure = _measure(before, after, first, second, gap=gap, same=same) if gap.numel() else None
    return Difference(place, other_dtype, measure, within)


def _same(before: Tensor, after: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return which elements are the same value; ``first`` and ``second`` are wide copies."""
    if before.dtype == after.dtype and not (before.is_floating_point() or before.is_complex()):
        # float64 does not tell large integers apart.
        return before.reshape(-1).to(torch.int64) == after.reshape(-1).to(torch.int64)
    return (first == second) | (first.isnan() & second.isnan())


def _zeros_differ(first: Tensor, second: Tensor) -> bool:
    if first.is_complex() or second.is_complex():
        return False
    return bool((first.signbit() != second.signbit())[first == 0].any())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _wide(tensor: Tensor) -> Tensor:
    dtype = torch.complex128 if tensor.is_complex() else torch.float64
    return tensor.detach().reshape(-1).to(dtype)


def _measure(
    before: Tensor, after: Tensor, first: Tensor, second: Tensor, *, gap: Tensor, same: Tensor
) -> Measure:
    size = first.abs()
    relative = torch.where(gap > 0, gap / size, 0.0).nan_to_num(nan=math.inf, posinf=math.inf)
    worst, worst_relative = int(gap.argmax()), int(relative.argmax())
    return Measure(
        elements=gap.numel(),
        differing=int((~same).sum()),
        absolute=float(gap[worst]),
        index=_index(worst, before.shape),
        before=first[worst].item(),
        after=second[worst].item(),
        relative=float(relative[worst_relative]),
        relative_index=_index(worst_relative, before.shape),
        ulps=_ulps(before, after, same),
        mean=float(gap.mean()),
        percentile_99=_percentile(gap, 0.99),
    )


def _percentile(gap: Tensor, part: float) -> float:
    place = max(math.ceil(part * gap.numel()), 1)
    zeros = gap.numel() - int(gap.count_nonzero())
    return 0.0 if place <= zeros else float(gap.kthvalue(place).values)


def _index(flat: int, shape: Iterable[int]) -> tuple[int, ...]:
    index: list[int] = []
    for size in reversed(list(shape)):
        flat, place = divmod(flat, size)
        index.insert(0, place)
    return tuple(index)


def _ulps(before: Tensor, after: Tensor, same: Tensor) -> int | None:
    """Return how many representable values lie between the two that are farthest apart."""
    if before.dtype != after.dtype or before.dtype not in _ORDERED:
        return None
    comparable = ~same & before.reshape(-1).isfinite() & after.reshape(-1).isfinite()
    if not comparable.any():
        return None
    first, second = (_ordered(tensor)[comparable] for tensor in (before, after))
    # The distance of two float64 may be beyond int64; it is only rounded there.
    if before.dtype == torch.float64:
        far = (first.double() - second.double()).abs() > 2.0**62
        if far.any():
            return int((first.double() - second.double()).abs().max())
    return int((first - second).abs().max())


def _ordered(tensor: Tensor) -> Tensor:
    """Return integers that count floats in their order, both zeros as 0."""
    bits = tensor.detach().contiguous().reshape(-1).view(_ORDERED[tensor.dtype])
    lowest = torch.iinfo(bits.dtype).min
    wide = bits.to(torch.int64)
    return torch.where(wide < 0, lowest - wide, wide)
