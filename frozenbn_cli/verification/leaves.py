"""What models give back, taken apart into values that can be compared. Imports torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from frozenbn_cli.verification.claims import Difference
from frozenbn_cli.verification.differences import compare
from frozenbn_cli.verification.tolerance import Tolerance

__all__ = [
    "Leaves",
    "count_values",
    "has_numbers",
    "have_same_form",
    "leaf_differences",
    "leaves_of",
]

Leaves = list[tuple[str, Any]]
"""The parts of an output, each with its place; containers are in it as `_Container`."""

_OPAQUE = (type(None), bool, str, bytes, torch.dtype, torch.device, type)


@dataclass(frozen=True, slots=True)
class _Container:
    """Where a container begins, so that an empty one is not the same as none."""

    shown: str

    def __repr__(self) -> str:
        return self.shown


def leaves_of(output: Any, place: str = "output") -> Leaves:
    """Return the parts of nested outputs; tensors are copies that no later run writes to.

    Taken apart are sequences, mappings, sets, dataclasses, other objects by their attributes, and
    tensors that are not plain ones (sparse, quantised, nested) by what they are made of.
    """
    return list(_leaves(output, place))


def _leaves(output: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(output, Tensor):
        yield from _tensors(output, place)
    elif isinstance(output, (list, tuple)):
        yield place, _Container(f"{len(output)} items")
        for index, part in enumerate(output):
            yield from _leaves(part, f"{place}[{index}]")
    elif isinstance(output, Mapping):
        yield place, _Container(f"keys {list(output)}")
        for key, part in output.items():
            yield from _leaves(part, f"{place}[{key!r}]")
    elif isinstance(output, Set):
        yield place, sorted(map(repr, output))
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for item in dataclasses.fields(output):
            yield from _leaves(getattr(output, item.name), f"{place}.{item.name}")
    elif type(output).__module__ == "numpy" and hasattr(output, "tolist"):
        yield from _array(output, place)
    elif _is_number(output) or isinstance(output, _OPAQUE) or not hasattr(output, "__dict__"):
        yield place, output
    else:
        for name, part in vars(output).items():
            yield from _leaves(part, f"{place}.{name}")


def _tensors(tensor: Tensor, place: str) -> Iterator[tuple[str, Any]]:
    """Yield a tensor, or the plain tensors and numbers that it is made of."""
    tensor = tensor.detach()
    if tensor.is_meta:
        yield place, f"{tensor.dtype} {list(tensor.shape)} without values"
    elif tensor.is_nested:
        yield from _leaves(tensor.unbind(), place)
    elif tensor.is_quantized:
        yield place, tensor.int_repr().clone()
        per_channel = tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric)
        names = ("per_channel_scales", "per_channel_zero_points") if per_channel else (
            "scale", "zero_point",
        )  # fmt: skip
        for name in names:
            yield from _leaves(getattr(tensor, f"q_{name}")(), f"{place}.{name}")
    elif tensor.layout == torch.sparse_coo:
        tensor = tensor.coalesce()
        yield place, _Container(f"sparse {list(tensor.shape)}")
        yield f"{place}.indices", tensor.indices().clone()
        yield f"{place}.values", tensor.values().clone()
    elif tensor.layout != torch.strided:
        yield place, tensor.to_dense().clone()
    else:
        yield place, tensor.clone()


def _array(array: Any, place: str) -> Iterator[tuple[str, Any]]:
    """Yield an array or a number of NumPy, without importing it."""
    try:
        yield place, torch.as_tensor(array).clone()
    except (TypeError, ValueError):  # Of text or objects, or in another byte order.
        yield from _leaves(array.tolist(), place)


def _is_number(value: Any) -> bool:
    return isinstance(value, (float, complex)) or type(value) is int


def count_values(leaves: Leaves) -> int:
    """Return how many parts there are, without the containers around them."""
    return sum(not isinstance(value, _Container) for _, value in leaves)


def has_numbers(leaves: Leaves) -> bool:
    """Return whether there is any number that is finite: all else is the same for any model."""
    return any(
        bool(value.isfinite().any()) if isinstance(value, Tensor) else math.isfinite(abs(value))
        for _, value in leaves
        if isinstance(value, Tensor) or _is_number(value)
    )


def have_same_form(first: Leaves, second: Leaves) -> bool:
    """Return whether two outputs have the same parts, whatever is in them."""
    return [place for place, _ in first] == [place for place, _ in second]


def leaf_differences(before: Leaves, after: Leaves, tolerance: Tolerance) -> list[Difference]:
    """Return where two outputs differ; NaN equals NaN in the same place."""
    if not have_same_form(before, after):
        return [_form_difference(before, after)]
    found = (
        _difference(place, first, second, tolerance)
        for (place, first), (_, second) in zip(before, after, strict=True)
    )
    return [difference for difference in found if difference]


def _form_difference(before: Leaves, after: Leaves) -> Difference:
    """Return the first place that is in one output and not in the other."""
    places = dict(before), dict(after)
    for problem, own, other in (("missing", *places), ("added", *reversed(places))):
        if alone := [place for place in own if place not in other]:
            return Difference(alone[0], f"{problem}, so that outputs are of another form")
    return Difference("output", "its parts are in another order")


def _difference(place: str, first: Any, second: Any, tolerance: Tolerance) -> Difference | None:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return compare(place, first, second, tolerance=tolerance, any_nan=True)
    if _is_number(first) and _is_number(second) and type(first) is type(second):
        numbers = list(_as_tensors((first, second)))
        if len(numbers) == 2:
            return compare(place, *numbers, tolerance=tolerance, any_nan=True)
    if repr(first) != repr(second):
        return Difference(place, f"{second!r:.80} instead of {first!r:.80}")
    return None


def _as_tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, int):
            if abs(value) < 1 << 63:
                yield torch.tensor(value, dtype=torch.int64)
        else:
            is_real = isinstance(value, float)
            yield torch.tensor(value, dtype=torch.float64 if is_real else torch.complex128)
