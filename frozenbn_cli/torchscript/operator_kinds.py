"""What operators do to the tensors that they are given, as far as it is known for certain.

PyTorch's schemas do not settle it: `native_batch_norm` and `instance_norm` write statistics that
their schemas call inputs, `dropout` and `type_as` return an input that theirs call a new tensor.
So this lists what has been looked at; an operator that is not here may do anything.
"""

from __future__ import annotations

import re

__all__ = ["IN_PLACE", "NORMALISERS", "PURE", "VIEWS", "normaliser_of", "operator_of"]

PURE = frozenset(
    """
    __and__ __contains__ __derive_index __is__ __isnot__ __not__ __or__ __range_length
    _convolution _shape_as_tensor abs acos add addcdiv addcmul addmm all amax amin aminmax any
    arange argmax argmin asin atan atan2 avg_pool2d bitwise_and bitwise_not bitwise_or bmm bool
    cat ceil clamp clamp_max clamp_min clone conv1d conv2d conv3d cos cosh cumprod cumsum
    degrees device dim div dot dtype empty_like eq equal erf exp expm1 eye fabs float floor
    floor_divide floordiv fmod format frobenius_norm full full_like gather ge gelu gt
    hardsigmoid hardswish hardtanh hypot index index_select int is_complex is_cuda
    is_floating_point isfinite isinf isnan item layer_norm le len lerp linalg_norm
    linalg_vector_norm linear linspace log log10 log1p log2 log_softmax logical_and logical_not
    logical_or logsumexp lt masked_fill matmul max max_pool2d maximum mean median min minimum
    mish mm mul multiply ndim ne neg nonzero norm numel ones ones_like outer pow prod reciprocal
    relu remainder repeat requires_grad rescale roll round rsqrt rsub scalar_tensor selu sigmoid
    sign silu sin sinh size softmax softplus sort sqrt square stack std std_mean str sub
    subtract sum take tan tanh tensor threshold topk tril triu trunc var var_mean where zeros
    zeros_like NumToTensor ScalarImplicit
    """.split()  # noqa: SIM905
)
"""They read what they are given, draw no random numbers, and return something of their own."""

VIEWS = frozenset(
    """
    __getitem__ alias as_strided broadcast_to chunk contiguous copy cpu data detach diagonal
    expand expand_as flatten get items keys list lift movedim narrow numpy_T permute positive
    ravel reshape reshape_as resolve_conj resolve_neg select slice split split_with_sizes
    squeeze swapaxes t to transpose type_as unbind unflatten unsqueeze values view view_as wait
    """.split()  # noqa: SIM905
)
"""They read, and what they return may be a part of what they were given, or be it."""

IN_PLACE = frozenset(
    """
    abs_ add_ addcdiv_ addcmul_ bernoulli_ clamp_ clamp_max_ clamp_min_ clip_ copy_ cos_ div_
    divide_ exp_ fill_ floor_ index_copy_ index_fill_ index_put_ lerp_ log_ masked_fill_
    masked_scatter_ mul_ multiply_ neg_ normal_ pow_ random_ reciprocal_ round_ rsqrt_ scatter_
    scatter_add_ sigmoid_ sqrt_ square_ sub_ subtract_ tanh_ uniform_ zero_
    """.split()  # noqa: SIM905
)
"""They write the first tensor, which they return, and read the others."""

NORMALISERS = {
    "batch_norm": (3, 4, 5, 6, 7),
    "native_batch_norm": (3, 4, 5, 6, 7),
}
"""The places of running mean and variance, flag, momentum and eps; they write while the flag is on.

`instance_norm` is none: it writes whatever its flag is.
"""

_FUNCTIONAL = re.compile(r"__torch__\.torch\.nn\.functional(\.___torch_mangle_\d+)?\.batch_norm")
_FUNCTIONAL_PLACES = (1, 2, 5, 6, 7)
_NAMESPACES = {("torch",), ("ops", "aten"), ("ops", "prim")}


def operator_of(path: tuple[str, ...]) -> str | None:
    """Return the name of a built-in operator that a path stands for; None for other functions."""
    return path[-1] if path[:-1] in _NAMESPACES else None


def normaliser_of(path: tuple[str, ...]) -> tuple[int, int, int, int, int] | None:
    """Return the places of a normaliser's arguments, as in `NORMALISERS`; None for the rest."""
    if _FUNCTIONAL.fullmatch(".".join(path)):
        return _FUNCTIONAL_PLACES
    return NORMALISERS.get(operator_of(path) or "")
