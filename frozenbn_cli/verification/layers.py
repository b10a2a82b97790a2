"""The second claim: frozen layers compute what BatchNorm2d does in eval. Imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from frozenbn_cli.batch_norms.batch_norm import BatchNorm, Eps
from frozenbn_cli.live_models.stored_values import to_tensor
from frozenbn_cli.nn import FrozenBatchNorm2d
from frozenbn_cli.verification.claims import Claim, Difference
from frozenbn_cli.verification.contents import Progress
from frozenbn_cli.verification.differences import EXACT, Tolerance, compare, summary, tolerated_text
from frozenbn_cli.verification.written import WrittenFile
from frozenbn_cli.wording import counted

__all__ = ["verify_layers"]


def verify_layers(
    written: WrittenFile,
    layers: Mapping[str, BatchNorm],
    progress: Progress,
    *,
    stated: Mapping[str, Eps] | None = None,
    tolerance: Tolerance = EXACT,
) -> Claim:
    """Compare each frozen layer with its BatchNorm2d in eval, bit by bit, on a probe input.

    The probe lies around the layer's running statistics and beyond, in both memory formats, with
    gradients and without, with the frozen layer in eval and in training mode.

    Args:
        written: The file, opened anew.
        layers: The source layers, by their names in the file.
        progress: Is called for each layer that was compared.
        stated: The eps of each frozen layer; as the file states it if None.
        tolerance: Of the outputs.
    """
    stated = written.stated_eps() if stated is None else stated
    with _one_thread():
        differences, unrunnable = _differences(written, layers, progress, stated, tolerance)
    detail = (
        f"{counted(len(layers), 'layer')} against BatchNorm2d in eval, with gradients and without"
    )
    return _claim(differences, unrunnable, len(layers), detail, tolerance)


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
    written: WrittenFile,
    layers: Mapping[str, BatchNorm],
    progress: Progress,
    stated: Mapping[str, Eps],
    tolerance: Tolerance,
) -> tuple[list[Difference], str]:
    """Return the layers that differ, and why one could not be run."""
    differences, unrunnable = [], ""
    for name, source in layers.items():
        shown = name or "the layer"
        progress(1)
        if name not in stated:
            differences.append(Difference(shown, "the file does not state its eps"))
            continue
        try:
            found = _layer_difference(written, name, source, stated[name], tolerance)
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
    written: WrittenFile, name: str, source: BatchNorm, eps: Eps, tolerance: Tolerance
) -> Difference | None:
    shown = name or "the layer"
    original = nn.BatchNorm2d(source.channels, eps=source.eps.value, affine=_is_affine(source))
    frozen = FrozenBatchNorm2d(source.channels, eps=eps.value, affine=_is_affine(source))
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
        is_affine = role in ("weight", "bias")
        setattr(original, role, nn.Parameter(tensor) if is_affine else tensor)
        setattr(frozen, role, found)
    return _output_difference(shown, original.eval(), frozen, tolerance, _eps_differs(source, eps))


def _is_affine(source: BatchNorm) -> bool:
    return "weight" in source.tensors


def _eps_differs(source: BatchNorm, eps: Eps) -> str:
    if source.eps.value == eps.value:
        return ""
    guessed = f" ({eps.source})" if eps.source in ("assumed", "recognised") else ""
    return f"eps {eps.value!r}{guessed} instead of {source.eps.value!r}"


def _output_difference(
    shown: str, original: nn.Module, frozen: FrozenBatchNorm2d, tolerance: Tolerance, problem: str
) -> Difference | None:
    worst = None
    for probe, training in _probes(original):
        frozen.train(training)
        # Where the layer is narrower, what rounding does to the probe is not its fault.
        narrowed = probe.to(frozen.running_mean.dtype)
        expected, found = original(narrowed.to(probe.dtype)), frozen(narrowed)
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


def _probes(layer: Any) -> Iterator[tuple[Tensor, bool]]:
    """Yield inputs of shape (4, C, 4, 4) that cover a layer's statistics, and a training flag."""
    generator = torch.Generator().manual_seed(0)
    mean = layer.running_mean.double().view(1, -1, 1, 1)
    deviation = layer.running_var.double().clamp(min=0).sqrt().view(1, -1, 1, 1)
    noise = torch.randn(4, mean.numel(), 4, 4, generator=generator, dtype=torch.float64)
    # One image each: near the mean, far out, exactly at it, and without regard to it.
    spread = torch.tensor([1.0, 30.0, 0.0, 1.0], dtype=torch.float64).view(4, 1, 1, 1)
    probe = mean + deviation * noise * spread
    probe[3] = noise[3]
    probe = probe.to(layer.running_mean.dtype)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        formatted = probe.contiguous(memory_format=memory_format)
        yield formatted, False
        yield formatted.clone().requires_grad_(), True
