"""How many dimensions tensors have after the operators of PyTorch that models use most."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

__all__ = ["Each", "Tensor", "apply_operator", "keeps_rank"]


class Tensor:
    """A tensor of which it may be found out, also later, how many dimensions it has.

    Args:
        rank: How many, if that is known.
        base: Another, of which one has so many more dimensions.
        more: How many more.
    """

    __slots__ = ("_base", "_more", "_ranks")

    def __init__(self, rank: int | None = None, base: Tensor | None = None, more: int = 0) -> None:
        self._ranks = set() if rank is None else {rank}
        # Chains would take long to go along, again and again.
        self._base: Tensor | None = base._base or base if base else None
        self._more: int = more + base._more if base else 0

    @property
    def rank(self) -> int | None:
        """How many dimensions it has; None where that is not known, or contradicts itself."""
        ranks = (self._base or self)._ranks
        return next(iter(ranks)) + self._more if len(ranks) == 1 else None

    def has(self, rank: int, *, certain: bool) -> Tensor:
        """Return itself, of which it is known now that it has so many, if it comes to that."""
        if certain:
            (self._base or self)._ranks.add(rank - self._more)
        return self


class Each:
    """Several values that are like one tensor.

    Args:
        tensor: The tensor.
        is_size: Whether they are its sizes.
    """

    __slots__ = ("is_size", "tensor")

    def __init__(self, tensor: Tensor, *, is_size: bool = False) -> None:
        self.tensor = tensor
        self.is_size = is_size


_KEEPING = {
    "abs", "alpha_dropout", "batch_norm", "celu", "channel_shuffle", "clamp", "clamp_max",
    "clamp_min", "clone", "constant_pad_nd", "contiguous", "cumsum", "detach", "dropout", "elu",
    "erf", "exp", "feature_alpha_dropout", "feature_dropout", "flip", "gather", "gelu", "glu",
    "group_norm", "hardsigmoid", "hardswish", "hardtanh", "instance_norm", "interpolate",
    "layer_norm", "leaky_relu", "linear", "log", "log_softmax", "logsigmoid", "mish", "narrow",
    "neg", "normalize", "pad", "pixel_shuffle", "pixel_unshuffle", "pow", "prelu", "reciprocal",
    "relu", "relu6", "roll", "rrelu", "rsqrt", "selu", "sigmoid", "silu", "slice", "softmax",
    "softplus", "softsign", "sqrt", "square", "tanh", "threshold", "to", "transpose", "type_as",
}  # fmt: skip
_OF_TWO = {"add", "sub", "mul", "div", "rsub", "maximum", "minimum", "floor_divide"}
_LISTS = {"chunk", "split", "tensor_split", "split_with_sizes", "unsafe_chunk", "unsafe_split"}
_REDUCING = {"mean", "sum", "amax", "amin", "nanmean", "logsumexp", "prod", "argmax", "argmin"}
_REDUCING_TO_PAIRS = {"max", "min", "median", "mode", "kthvalue"}
_RANKS = {"mm": 2, "addmm": 2, "bmm": 3, "baddbmm": 3}
_SPATIAL = re.compile(
    r"(?:conv|conv_transpose|(?:adaptive_)?(?:max|avg|lp)_pool|upsample_\w+|\w+_pad|dropout)([123])d"
    r"(?:_with_indices)?"
)


def keeps_rank(name: str) -> bool:
    """Return whether what an operator gives has as many dimensions as what it takes first."""
    return name.removesuffix("_") in _KEEPING


def apply_operator(name: str, arguments: Sequence[Any], *, certain: bool) -> Any:
    """Return what an operator gives, and learn of its arguments what it takes.

    Args:
        name: Of the operator in `torch`.
        arguments: Tensors, plain values, and tuples of these.
        certain: Whether it is certain that the operator is come to.
    """
    name = name.removesuffix("_")
    first = arguments[0] if arguments else None
    if isinstance(first, tuple):
        return _of_several(name, first)
    if isinstance(first, str) and name == "einsum":
        return _einsum(first, arguments[1:], certain=certain)
    if not isinstance(first, Tensor):
        return Tensor()
    second = arguments[1] if len(arguments) > 1 else None
    if name in _KEEPING:
        return first
    if (spatial := _SPATIAL.fullmatch(name)) or name in _RANKS:
        rank = int(spatial[1]) + 2 if spatial else _RANKS[name]
        first.has(rank, certain=certain)
        result = Tensor(rank)
        return (result, Tensor(rank)) if name.endswith("_with_indices") else result
    if name in ("_convolution", "convolution") and isinstance(second, Tensor) and second.rank:
        first.has(second.rank, certain=certain)
        return Tensor(second.rank)
    if name == "size":
        return Each(first, is_size=len(arguments) == 1)
    if name in _LISTS:
        return Each(first)
    if name == "embedding" and isinstance(second, Tensor):
        return Tensor(base=second, more=1)
    if name in _OF_TWO:
        return _of_two(first, second)
    return _reshaped(name, first, arguments[1:], certain=certain)


def _of_several(name: str, tensors: tuple[Any, ...]) -> Any:
    """Return what comes of a list of tensors, all of which have as many dimensions."""
    known = [one for one in tensors if isinstance(one, Tensor)]
    known.sort(key=lambda one: one.rank is None)
    if not known or name not in ("cat", "concat", "concatenate", "stack"):
        return Tensor()
    return Tensor(base=known[0], more=1) if name == "stack" else known[0]


def _of_two(first: Tensor, second: Any) -> Tensor:
    if not isinstance(second, Tensor) or second is first:
        return first
    if first.rank is None or second.rank is None:
        return Tensor()
    return first if first.rank >= second.rank else second


def _einsum(equation: str, arguments: Sequence[Any], *, certain: bool) -> Tensor:
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    operands = arguments[0] if arguments and isinstance(arguments[0], tuple) else ()
    if "." in equation or not arrow:
        return Tensor()
    for letters, operand in zip(inputs.split(","), operands, strict=False):
        if isinstance(operand, Tensor):
            operand.has(len(letters), certain=certain)
    return Tensor(len(output))


def _reshaped(name: str, first: Tensor, others: Sequence[Any], *, certain: bool) -> Any:
    """Return what comes of operators that give another number of dimensions."""
    by = others[0] if others else None
    if name in ("view", "reshape", "expand", "permute") and isinstance(by, tuple):
        return first.has(len(by), certain=certain) if name == "permute" else Tensor(len(by))
    if name == "unsqueeze":
        return Tensor(base=first, more=1)
    if (name == "squeeze" and type(by) is int) or name in ("select", "unbind"):
        result = Tensor(base=first, more=-1)
        return Each(result) if name == "unbind" else result
    if name == "flatten":
        return _flattened(first, *(*others, *(0, -1)[len(others) :])[:2])
    if name in _REDUCING or (name in _REDUCING_TO_PAIRS and type(by) is int):
        result = _reduced(first, by, keeps=len(others) > 1 and others[1] is True)
        return (result, result) if name in _REDUCING_TO_PAIRS else result
    return Tensor()


def _flattened(tensor: Tensor, start: Any, end: Any) -> Tensor:
    if type(start) is not int or type(end) is not int or start < 0:
        return Tensor()
    if end == -1:
        return Tensor(start + 1)
    return Tensor(base=tensor, more=start - end) if end >= start else Tensor()


def _reduced(tensor: Tensor, dims: Any, *, keeps: bool) -> Tensor:
    if keeps:
        return tensor
    if type(dims) is int:
        return Tensor(base=tensor, more=-1)
    return Tensor(base=tensor, more=-len(dims)) if isinstance(dims, tuple) else Tensor()
