"""Runs frozen layers beside their BatchNorm in eval, and compares what comes out. Imports torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from frozenbn_cli.batch_norms.batch_norm import BatchNorm, Eps
from frozenbn_cli.live_models.stored_values import to_tensor
from frozenbn_cli.nn import (
    FrozenBatchNorm1d,
    FrozenBatchNorm2d,
    FrozenBatchNorm3d,
    FrozenBatchNormNd,
)
from frozenbn_cli.stages import begin
from frozenbn_cli.verification.claims import Claim, Difference, summary, tolerated_text
from frozenbn_cli.verification.differences import compare
from frozenbn_cli.verification.tolerance import Tolerance
from frozenbn_cli.verification.written import Entries
from frozenbn_cli.wording import counted

__all__ = ["run_layers"]


def run_layers(
    written: Entries,
    layers: Mapping[str, BatchNorm],
    stated: Mapping[str, Eps],
    rewritten: Collection[str],
    tolerance: Tolerance,
) -> Claim:
    """Return the claim on frozen layers, see `verify_layers`.

    Args:
        written: The tensors of the converted file.
        layers: The source layers, by their names in the file.
        stated: The eps of each frozen layer.
        rewritten: The layers whose variances were rewritten, so that they may have another eps.
        tolerance: Of the outputs.
    """
    terms = _Terms(stated, frozenset(rewritten), tolerance)
    with _one_thread():
        differences, unrunnable = _differences(written, layers, terms)
    dims = sorted({each for layer in layers.values() for each in _dims_of(layer)})
    named = ", ".join(f"BatchNorm{each}d" for each in dims)
    detail = f"{counted(len(layers), 'layer')} against {named} in eval, with gradients and without"
    if there := layers.keys() & terms.rewritten:
        detail += f"; {len(there):,} with a rewritten running_var and another eps, scales included"
    return _claim(differences, unrunnable, len(layers), detail, tolerance)


@dataclass(frozen=True, slots=True)
class _Terms:
    """How layers are compared.

    Attributes:
        stated: The eps of each frozen layer.
        rewritten: The layers that may have another eps than their source.
        tolerance: Of the outputs.
    """

    stated: Mapping[str, Eps]
    rewritten: frozenset[str]
    tolerance: Tolerance


class _BatchNormNd(nn.BatchNorm2d):
    """Takes inputs of any dimensions, as SyncBatchNorm does."""

    def _check_input_dim(self, input: Tensor) -> None:  # noqa: ARG002
        return


_PAIRS: Mapping[tuple[int, ...], tuple[type[nn.Module], type[nn.Module]]] = {
    (1,): (nn.BatchNorm1d, FrozenBatchNorm1d),
    (2,): (nn.BatchNorm2d, FrozenBatchNorm2d),
    (3,): (nn.BatchNorm3d, FrozenBatchNorm3d),
    (1, 2, 3): (_BatchNormNd, FrozenBatchNormNd),
}
"""The live and the frozen layer, by the spatial dimensions of the inputs that they take."""


def _dims_of(layer: BatchNorm) -> tuple[int, ...]:
    """Return for inputs of which spatial dimensions a layer is compared."""
    if layer.spatial_dims is None or layer.takes_any_dims:
        return (1, 2, 3)
    return (layer.spatial_dims,)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep PyTorch to one thread: on maps this small others only wait, and use up a core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _differences(
    written: Entries, layers: Mapping[str, BatchNorm], terms: _Terms
) -> tuple[list[Difference], str]:
    """Return the layers that differ, and why one could not be run."""
    differences, unrunnable = [], ""
    count = begin("running the layers", len(layers))
    for name, source in layers.items():
        shown = name or "the layer"
        count(1)
        if name not in terms.stated:
            differences.append(Difference(shown, "the file does not state its eps"))
            continue
        try:
            found = _layer_difference(written, name, source, terms)
        except RuntimeError as error:
            # PyTorch has no kernel for this dtype on this machine.
            unrunnable = unrunnable or f"{shown} cannot be run here: {str(error).splitlines()[0]}"
            continue
        if found:
            differences.append(found)
    return differences, unrunnable


def _claim(
    differences: list[Difference], unrunnable: str, count: int, detail: str, tolerance: Tolerance
) -> Claim:
    if not all(item.tolerated for item in differences):
        said = summary(differences, count, "layers")
        return Claim("layers", "different", said, count, tuple(differences))
    detail += tolerated_text(differences, tolerance, "layers")
    if unrunnable:
        return Claim("layers", "not verified", unrunnable)
    if not count:
        return Claim("layers", "not verified", "no layer was frozen")
    return Claim("layers", "equal", detail, count, tuple(differences))


def _layer_difference(
    written: Entries, name: str, source: BatchNorm, terms: _Terms
) -> Difference | None:
    shown, eps = name or "the layer", terms.stated[name]
    dims, is_affine = _dims_of(source), "weight" in source.tensors
    live_class, frozen_class = _PAIRS[dims]
    original: Any = live_class(source.channels, eps=source.eps.value, affine=is_affine)
    frozen: Any = frozen_class(source.channels, eps=eps.value, affine=is_affine)
    names = written.names()
    for role, stored in source.tensors.items():
        if role == "num_batches_tracked":
            continue
        entry = f"{name}.{role}" if name else role
        if entry not in names:
            return Difference(shown, f"its {role} is missing")
        tensor, found = to_tensor(stored), written.tensor(entry)
        if tensor.shape != found.shape:
            shapes = f"shape {list(found.shape)} instead of {list(tensor.shape)}"
            return Difference(shown, f"its {role} has {shapes}")
        is_parameter = role in ("weight", "bias")
        setattr(original, role, nn.Parameter(tensor) if is_parameter else tensor)
        setattr(frozen, role, found)
    outputs = _outputs(original.eval(), frozen, dims)
    if name not in terms.rewritten:
        return _output_difference(shown, outputs, terms.tolerance, _eps_differs(source, eps))
    scales = _scales(original), _scales(frozen)
    return _output_difference(shown, chain(outputs, [scales]), terms.tolerance, "")


def _scales(layer: Any) -> Tensor:
    """Return what the kernel multiplies each channel by, without a weight; shape (C,)."""
    variance = layer.running_var
    one = torch.ones_like(variance).view(1, -1, 1, 1)
    scaled = nn.functional.batch_norm(one, torch.zeros_like(variance), variance, eps=layer.eps)
    return scaled.reshape(-1)


def _eps_differs(source: BatchNorm, eps: Eps) -> str:
    if source.eps.value == eps.value:
        return ""
    guessed = f" ({eps.source})" if eps.source in ("assumed", "recognised") else ""
    return f"eps {eps.value!r}{guessed} instead of {source.eps.value!r}"


def _output_difference(
    shown: str, outputs: Iterable[tuple[Tensor, Tensor]], tolerance: Tolerance, problem: str
) -> Difference | None:
    worst = None
    for expected, found in outputs:
        difference = compare(shown, expected, found, tolerance=tolerance, any_nan=True)
        if difference and (worst is None or _size(difference) > _size(worst)):
            worst = difference
    if worst is None:
        # Another eps may hide behind this probe; it is never the same layer.
        return Difference(shown, problem, tolerated=not tolerance.exact) if problem else None
    problems = [text for text in (problem, worst.problem) if text]
    return Difference(
        shown, ", ".join([*problems, "outputs differ"]), worst.measure, worst.tolerated
    )


def _size(difference: Difference) -> float:
    return difference.measure.absolute if difference.measure else 0.0


def _outputs(original: Any, frozen: Any, dims: Iterable[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield what both layers give for the same inputs, with gradients and without."""
    probe = _probe(original)
    for shaped in (shaped for each in dims for shaped in _SHAPED[each](probe)):
        for training in (False, True):
            frozen.train(training)
            given = shaped.clone().requires_grad_() if training else shaped
            # Where the layer is narrower, what rounding does to the probe is not its fault.
            narrowed = given.to(frozen.running_mean.dtype)
            yield original(narrowed.to(given.dtype)), frozen(narrowed)


def _probe(layer: Any) -> Tensor:
    """Return an input of shape (4, C, 4, 4) that covers a layer's statistics."""
    generator = torch.Generator().manual_seed(0)
    mean = layer.running_mean.double().view(1, -1, 1, 1)
    deviation = layer.running_var.double().clamp(min=0).sqrt().view(1, -1, 1, 1)
    noise = torch.randn(4, mean.numel(), 4, 4, generator=generator, dtype=torch.float64)
    # One image each: near the mean, far out, exactly at it, and without regard to it.
    spread = torch.tensor([1.0, 30.0, 0.0, 1.0], dtype=torch.float64).view(4, 1, 1, 1)
    probe: Tensor = mean + deviation * noise * spread
    probe[3] = noise[3]
    return probe.to(layer.running_mean.dtype)


def _shaped_1d(probe: Tensor) -> Iterator[Tensor]:
    """Yield (4, C, 16), the same with the channels last in memory, and (64, C)."""
    flat = probe.flatten(2)
    last = flat.transpose(1, 2).contiguous()
    yield flat
    yield last.transpose(1, 2)
    yield last.flatten(0, 1)


def _shaped_2d(probe: Tensor) -> Iterator[Tensor]:
    """Yield (4, C, 4, 4) in both memory formats."""
    yield probe
    yield probe.contiguous(memory_format=torch.channels_last)


def _shaped_3d(probe: Tensor) -> Iterator[Tensor]:
    """Yield (4, C, 4, 2, 2) in both memory formats."""
    deep = probe.view(*probe.shape[:3], 2, 2)
    yield deep
    yield deep.contiguous(memory_format=torch.channels_last_3d)


_SHAPED: Mapping[int, Callable[[Tensor], Iterator[Tensor]]] = {
    1: _shaped_1d,
    2: _shaped_2d,
    3: _shaped_3d,
}
