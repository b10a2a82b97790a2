"""Whether the running statistics of a layer mean anything, judged before they are frozen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from frozenbn_cli.batch_norms.batch_norm import BatchNorm, Role

__all__ = [
    "ADVICE",
    "LABELS",
    "STRUCTURAL",
    "Finding",
    "Severity",
    "eps_matters_together",
    "examine",
]

_OTHER_EPS = 1e-3  # Of models that come from TensorFlow (timm's `tf_*`); 1e-5 is PyTorch's.
_DEFAULT_MOMENTUM = 0.1
_HARDLY_FORMED = 0.01
_LARGE_SCALE = 1e3
_NOTICEABLE = 1.1
_ROUNDING = 1e-3  # In half precision.
# Of a layer, and of all layers, that are off together.
_SMALL_PART, _FACTOR_TOGETHER = 1.01, 2.0
_MAX_CHANNELS = 1 << 20


Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something worth knowing about one layer's statistics.

    Attributes:
        code: A stable name, such as ``never_formed``.
        severity: An ``error`` stops a conversion, a ``warning`` and a ``note`` do not.
        message: What was found, in plain words.
        channels: How many channels it concerns; None where it concerns the layer as a whole.
        factor: By how much scales could be off, where that is the point.
        worst_channel: The index of the channel that it concerns most.
    """

    code: str
    severity: Severity
    message: str
    channels: int | None = None
    factor: float | None = None
    worst_channel: int | None = None


LABELS = {
    "no_statistics": "no running statistics",
    "traced_in_training": "traced in training mode",
    "exported_in_training": "exported in training mode",
    "revived": "live again",
    "incomplete": "incomplete",
    "not_floating": "not floating point",
    "lengths_differ": "lengths differ",
    "not_finite": "NaN or Inf",
    "negative_variance": "negative variance",
    "never_formed": "never formed",
    "folded": "folded statistics",
    "hardly_formed": "hardly formed",
    "eps_unsettled": "eps unknown",
    "eps_matters": "eps matters",
    "eps_ambiguous": "eps ambiguous",
    "eps_contradicts": "eps is another there",
    "class_ambiguous": "class ambiguous",
    "variance_below_eps": "variance below eps",
    "dead_channels": "dead channels",
    "large_scale": "large scale",
    "stays_live": "stays live",
    "dims_assumed": "2d assumed",
    "dims_unknown": "dims unknown",
}
"""A few words for each code."""

ADVICE = {
    "traced_in_training": "Call eval() on the model before tracing it.",
    "exported_in_training": "Its outputs change where they depended on the batch, as in eval.",
    "revived": "Freeze last, when nothing switches modes any more.",
    "incomplete": "The file lost entries; save the state dict again.",
    "not_floating": "The file was converted to another dtype; start from the original.",
    "lengths_differ": "The file mixes entries of different models; save the state dict again.",
    "not_finite": "Training diverged; use an earlier checkpoint.",
    "negative_variance": "Something rewrote the variances; use the original checkpoint.",
    "never_formed": "Train with BatchNorm first, load pretrained weights, or form them from data "
    "with frozenbn calibrate.",
    "hardly_formed": "Train longer with BatchNorm before freezing, or form them anew with frozenbn "
    "calibrate.",
    "eps_unsettled": "Pass it with --eps, or keep the archive's own code with --to torchscript.",
    "eps_matters": "Pass the model's own value with --eps.",
    "eps_ambiguous": "Their layers have the same names and sizes; pass your model's with --eps.",
    "dims_assumed": "Settle it with --dims-of NAME=1d, 2d or 3d, or with --model.",
    "dims_unknown": "Settle it with --dims-of NAME=1d, 2d or 3d, or with --model.",
    "stays_live": "In train() they go on updating their statistics; if they are to stay live, put "
    "them in eval() yourself.",
}
"""What to do about errors and warnings, by code."""

STRUCTURAL = {"incomplete", "not_floating", "lengths_differ", "traced_in_training"}
"""Codes of the findings with which a layer is no BatchNorm at all and cannot be frozen."""


def examine(layer: BatchNorm) -> tuple[Finding, ...]:
    """Return the findings on a layer's statistics and affine; reads these and nothing else."""
    if layer.facts.live:
        return ()
    if not layer.has_statistics:
        return (Finding("no_statistics", "note", "no running statistics"),)
    if layer.facts.always_batch_statistics:
        return (
            Finding(
                "traced_in_training",
                "error",
                "traced in training mode, so that freezing would change the outputs",
            ),
        )
    broken = tuple(_structure(layer))
    if broken:
        return broken
    values = {role: layer.tensors[role].values() for role in _NUMERIC if role in layer.tensors}
    broken = tuple(_numbers(values))
    if broken:
        return broken
    return (*_formation(layer, values), *_scales(layer, values))


_NUMERIC: tuple[Role, ...] = ("weight", "bias", "running_mean", "running_var")
_FLOATS = ("float64", "float32", "float16", "bfloat16")


def _structure(layer: BatchNorm) -> Iterator[Finding]:
    present = [role for role in _NUMERIC if role in layer.tensors]
    if layer.channels > _MAX_CHANNELS:
        yield Finding("lengths_differ", "error", f"{layer.channels:,} channels are no layer's")
    for role, other in (("running_mean", "running_var"), ("weight", "bias")):
        for missing, there in ((role, other), (other, role)):
            if there in present and missing not in present:
                yield Finding("incomplete", "error", f"{there} without {missing}")
    for role in present:
        tensor = layer.tensors[role]
        if tensor.dtype.name not in _FLOATS:
            yield Finding("not_floating", "error", f"{role} has dtype {tensor.dtype}")
        if tensor.shape != (layer.channels,):
            yield Finding(
                "lengths_differ",
                "error",
                f"{role} has shape {list(tensor.shape)} where {layer.channels} channels are",
            )


def _numbers(values: dict[Role, tuple[float, ...]]) -> Iterator[Finding]:
    for role, numbers in values.items():
        if not all(map(math.isfinite, numbers)):
            broken = [float(not math.isfinite(number)) for number in numbers]
            yield from _on_channels("not_finite", "error", f"{role} holds NaN or Inf", broken)
    negated = [-variance for variance in values["running_var"]]
    yield from _on_channels("negative_variance", "error", "variance is negative", negated)


def _on_channels(
    code: str, severity: Severity, message: str, badness: list[float], factor: float | None = None
) -> Iterator[Finding]:
    """Yield a finding on the channels whose badness is above 0, if there are any."""
    concerned = [channel for channel, value in enumerate(badness) if value > 0]
    if concerned:
        worst = max(concerned, key=lambda channel: badness[channel])
        yield Finding(code, severity, message, len(concerned), factor, worst)


def _formation(layer: BatchNorm, values: dict[Role, tuple[float, ...]]) -> Iterator[Finding]:
    means, variances = values["running_mean"], values["running_var"]
    if means and not any(means) and all(variance == 1 for variance in variances):
        if not layer.batches_tracked and _is_trained(values):
            yield Finding(
                "folded",
                "note",
                "mean 0 and variance 1 beside a trained weight and bias: the statistics were "
                "folded into these, as Caffe2 and maskrcnn-benchmark keep them",
            )
            return
        yield Finding(
            "never_formed",
            "error",
            "statistics were never formed (mean 0, variance 1 throughout)",
        )
        return
    tracked = layer.batches_tracked
    if layer.type_name is not None and layer.momentum is None:
        return  # A cumulative average holds nothing of its initial value.
    momentum = _DEFAULT_MOMENTUM if layer.momentum is None else layer.momentum
    if not tracked or tracked < 0 or momentum == 0:
        return  # With momentum 0 the statistics came from elsewhere.
    left = (1 - momentum) ** tracked
    # Of a running average that began at 1, so much is in every variance. What is below was formed
    # otherwise: `update_bn` of PyTorch and `calibrate` count batches too.
    is_running = min(variances, default=0) >= left * (1 - _ROUNDING)
    if left > _HARDLY_FORMED and is_running:
        known = {"read": "", "recognised": "recognised "}
        source = known.get(layer.momentum_source or "", "assumed ")
        yield Finding(
            "hardly_formed",
            "warning",
            f"statistics of {tracked} batches: {left:.0%} of their initial value is left "
            f"(momentum {source}{momentum:g})",
        )


def _is_trained(values: dict[Role, tuple[float, ...]]) -> bool:
    """Return whether weight and bias are no longer as any initialisation makes them."""
    weight, bias = values.get("weight", ()), values.get("bias", ())
    return any(bias) and len(set(weight)) > 1


def _scales(layer: BatchNorm, values: dict[Role, tuple[float, ...]]) -> Iterator[Finding]:
    variances = values["running_var"]
    eps = layer.eps.value
    by_eps = layer.recognised.by_eps if layer.recognised else {}
    if layer.facts.eps_is_unsettled and layer.eps.source == "assumed":
        yield Finding(
            "eps_unsettled",
            "warning",
            f"eps is unknown: the code uses several, or computes it ({eps:g} is assumed)",
        )
    if layer.eps.source == "assumed" and len(by_eps) > 1:
        yield _ambiguous(eps, by_eps, variances)
    elif layer.eps.source == "assumed":
        factors = [_eps_factor(variance, eps, _OTHER_EPS) for variance in variances]
        largest = max(factors, default=1.0)
        yield from _on_channels(
            "eps_matters",
            "warning",
            f"eps is assumed {eps:g} and matters: with {_OTHER_EPS:g} scales would change by "
            f"over {_NOTICEABLE - 1:.0%}, by up to a factor of {largest:.3g}",
            [factor - _NOTICEABLE for factor in factors],
            largest,
        )
    elif layer.eps.source == "given" and by_eps and eps not in by_eps:
        yield Finding("eps_contradicts", "note", f"eps is given {eps:g}; it is {_having(by_eps)}")
    yield from _on_channels(
        "variance_below_eps",
        "note",
        f"variance is below eps ({eps:g})",
        [eps - variance for variance in variances],
    )
    weights = values.get("weight", (1.0,) * len(variances))
    yield from _on_channels(
        "dead_channels",
        "note",
        "weight is 0: the channel is constant",
        [float(weight == 0) for weight in weights],
    )
    yield from _on_channels(
        "large_scale",
        "note",
        f"scale is beyond {_LARGE_SCALE:g}",
        [
            abs(weight) - _LARGE_SCALE * math.sqrt(variance + eps)
            for weight, variance in zip(weights, variances, strict=True)
        ],
    )


def eps_matters_together(layers: Sequence[BatchNorm]) -> dict[str, Finding]:
    """Return a finding for each layer whose eps matters little alone, and much with the others.

    Args:
        layers: Those whose eps is assumed, or those whose eps is recognised, with sound statistics.
            Code that changed a recognised one would not show, so that is worth a note.
    """
    factors = {layer.name: _median_eps_factor(layer) for layer in layers}
    small = {name: factor for name, factor in factors.items() if factor > _SMALL_PART}
    together = math.exp(min(sum(map(math.log, small.values())), 700))
    if together < _FACTOR_TOGETHER:
        return {}
    eps = layers[0].eps
    finding = Finding(
        "eps_matters",
        "warning" if eps.source == "assumed" else "note",
        f"eps is {eps.value:g}, {eps.source}, and matters to the model: with {_OTHER_EPS:g} the "
        f"scales of {len(small)} layers would change by a factor of {together:.3g} together",
        factor=together,
    )
    return dict.fromkeys(small, finding)


def _median_eps_factor(layer: BatchNorm) -> float:
    variances = sorted(layer.tensors["running_var"].values())
    return (
        _eps_factor(variances[len(variances) // 2], layer.eps.value, _OTHER_EPS)
        if variances
        else 1.0
    )


def _ambiguous(eps: float, by_eps: Mapping[float, str], variances: Iterable[float]) -> Finding:
    """Return the finding on a layer of several architectures, which differ in its eps."""
    least, most = min(by_eps), max(by_eps)
    factor = max((_eps_factor(variance, least, most) for variance in variances), default=1.0)
    message = f"eps is assumed {eps:g}; it is {_having(by_eps)}"
    return Finding(
        "eps_ambiguous", "warning", message, factor=factor if factor > _NOTICEABLE else None
    )


def _having(by_eps: Mapping[float, str]) -> str:
    return ", ".join(f"{eps:g} in {architectures}" for eps, architectures in by_eps.items())


def _eps_factor(variance: float, eps: float, other: float) -> float:
    """Return by how much the scale differs between ``eps`` and a larger value."""
    return math.sqrt((variance + other) / (variance + eps)) if variance + eps else math.inf
