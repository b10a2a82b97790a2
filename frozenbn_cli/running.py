"""Runs TorchScript archives before and after their conversion. Imports torch."""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frozenbn_cli.claims import Claim

__all__ = ["Shape", "same_bits", "verify_archive"]

Shape = tuple[int, ...]
"""Of one input, in elements."""

_SIZES = (64, 224, 32, 256, 299, 128, 384, 512, 28)
_SEED = 0
# What a model raises that does not take its input.
_FAILURES = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError, torch.jit.Error)


def verify_archive(
    original: Path, converted: Path, frozen: Iterable[str], *, shapes: Sequence[Shape] = ()
) -> Claim:
    """Run two archives on the same inputs and compare what comes out, bit by bit.

    First in eval; then with the frozen layers of the second alone in training mode, in which they
    must not change anything, themselves included.

    Args:
        original: The archive before.
        converted: The archive after.
        frozen: The names of its frozen layers.
        shapes: Of the inputs, one each; found from the first convolution if there are none.
    """
    try:
        found = _find_inputs(lambda: _load(original), shapes)
    except _FAILURES as error:
        return _not_verified(f"PyTorch cannot load the input here: {_first_line(error)}")
    if isinstance(found, str):
        return _not_verified(found)
    return _compare(original, converted, list(frozen), found)


@dataclass(frozen=True, slots=True)
class _Run:
    """Inputs that a model takes, and what became of it.

    Attributes:
        inputs: One each.
        shown: The inputs in words.
        outputs: The parts of what came out.
        state: The state dict afterwards, which layers in training mode may have changed.
    """

    inputs: list[Any]
    shown: str
    outputs: list[Any]
    state: dict[str, Tensor]


def _compare(original: Path, converted: Path, frozen: list[str], run: _Run) -> Claim:
    model = None
    for mode, in_training in (
        ("in eval", []),
        ("with the frozen layers in training mode", frozen),
    ):
        try:
            fresh, model = model is None, model or _load(converted)
            difference = _compare_once(model, in_training, run)
            if difference and not fresh:
                # Layers that stay live may have learnt from the run before.
                difference = _compare_once(_load(converted), in_training, run)
        except _FAILURES as error:
            difference = f"it fails ({_last_line(error)})"
        if not difference:
            continue
        if _difference(run.outputs, _outputs(_load(original), run.inputs)):
            return _not_verified(f"run twice on {run.shown}, the input itself differs")
        return Claim("model", "different", f"{difference} {mode}, on {run.shown}")
    detail = f"outputs on {run.shown}, in eval and with the frozen layers in training mode"
    return Claim("model", "equal", detail, len(run.outputs))


def _compare_once(model: Any, in_training: list[str], run: _Run) -> str | None:
    """Return how the outputs or the state of a model differ from those before, if they do."""
    for name in in_training:
        _submodule(model, name).training = True
    if difference := _difference(run.outputs, _outputs(model, run.inputs)):
        return difference
    for name, value in model.state_dict().items():
        if not same_bits(value, run.state[name]):
            return f"{name} differs after a run"
    return None


def _load(path: Path) -> Any:
    try:
        return _load_now(path)
    except RuntimeError as error:
        if "torchvision::" not in str(error) or not _import_torchvision():
            raise
        return _load_now(path)


def _load_now(path: Path) -> Any:
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        # PyTorch deprecates TorchScript, which these files are.
        warnings.filterwarnings("ignore", ".*torch.jit.*")
        model = torch.jit.load(path, map_location="cpu")  # type: ignore[no-untyped-call]
        return model.eval()


def _import_torchvision() -> bool:
    """Import what defines the operators of detection models, if it is installed."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        return False
    return True


def _outputs(model: Any, inputs: list[Any]) -> list[Any]:
    """Return what comes out, without an optimiser that changes the model from run to run."""
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        torch.jit.optimized_execution(False),  # type: ignore[attr-defined]
        contextlib.redirect_stdout(sys.stderr),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        torch.manual_seed(_SEED)
        return list(_leaves(model(*[_copied(value) for value in inputs])))


def _submodule(model: Any, name: str) -> Any:
    for part in filter(None, name.split(".")):
        model = getattr(model, part)
    return model


def _copied(value: Any) -> Any:
    return [part.clone() for part in value] if isinstance(value, list) else value.clone()


# Inputs


def _find_inputs(load: Callable[[], Any], shapes: Sequence[Shape]) -> _Run | str:
    """Return inputs that a model takes, with what becomes of it, or why there are none."""
    model = load()
    try:
        arguments = model._c._get_method("forward").schema.arguments[1:]
    except RuntimeError:
        return "it has no method forward"
    required = [str(item.type) for item in arguments if not item.has_default_value()]
    kinds = [str(item.type) for item in arguments][: max(len(required), len(shapes))]
    for kind in kinds:
        if kind not in ("Tensor", "List[Tensor]"):
            return f"its forward takes a {kind}"
    takes = "an input" if len(kinds) == 1 else f"{len(kinds)} inputs"
    if shapes and len(shapes) != len(kinds):
        return f"its forward takes {takes}; give --input-shape for each"
    weight = _first_convolution(model)
    if not shapes and (weight is None or len(kinds) != 1):
        return f"its forward takes {takes} of unknown shape; give --input-shape"
    dtype = torch.float32 if weight is None else weight.dtype
    reason = ""
    for candidate in [tuple(shapes)] if shapes else _candidates(weight):
        inputs = _inputs(candidate, kinds, dtype)
        shown = ", ".join("x".join(map(str, shape)) for shape in candidate)
        try:
            outputs = _outputs(model, inputs)
        except _FAILURES as error:
            reason = reason or f"it does not run on {shown}: {_last_line(error)}"
            model = load()
            continue
        shown = f"{shown} of {str(dtype).removeprefix('torch.')}"
        return _Run(inputs, shown, outputs, dict(model.state_dict()))
    advice = "" if shapes else "; give --input-shape"
    return f"{reason}{advice}"


def _first_convolution(model: Any) -> Tensor | None:
    for name, value in model.state_dict().items():
        if name.endswith("weight") and value.dim() == 4 and value.is_floating_point():
            weight: Tensor = value
            return weight
    return None


def _candidates(weight: Tensor | None) -> Iterator[tuple[Shape]]:
    channels = dict.fromkeys((weight.shape[1] if weight is not None else 3, 3, 1))
    for count in channels:
        for size in _SIZES:
            yield ((1, count, size, size),)


def _inputs(shapes: Sequence[Shape], kinds: list[str], dtype: torch.dtype) -> list[Any]:
    generator = torch.Generator().manual_seed(_SEED)
    inputs: list[Any] = []
    for shape, kind in zip(shapes, kinds, strict=True):
        value = torch.rand(shape, generator=generator).to(dtype)
        inputs.append(list(value) if kind == "List[Tensor]" else value)
    return inputs


# Outputs


def _leaves(output: Any) -> Iterator[Any]:
    """Yield the parts of nested outputs that are no containers, and where containers begin."""
    if isinstance(output, (list, tuple)):
        yield f"{len(output)} items"
        for part in output:
            yield from _leaves(part)
    elif isinstance(output, dict):
        yield f"keys {list(output)}"
        for part in output.values():
            yield from _leaves(part)
    elif isinstance(output, Tensor):
        yield from _plain_tensors(output)
    else:
        yield output


def _plain_tensors(tensor: Tensor) -> Iterator[Any]:
    """Yield what a tensor holds as tensors whose bits can be looked at, and of which kind it is."""
    if tensor.is_quantized:
        yield f"quantized as {tensor.dtype}"
        yield tensor.int_repr()
        yield tensor.dequantize()
    elif tensor.layout != torch.strided:
        yield f"laid out as {tensor.layout}"
        yield tensor.to_dense()
    else:
        yield tensor.resolve_conj().resolve_neg()


def _difference(before: list[Any], after: list[Any]) -> str | None:
    if len(before) != len(after):
        return f"{len(after)} outputs instead of {len(before)}"
    for first, second in zip(before, after, strict=True):
        if isinstance(first, Tensor) and isinstance(second, Tensor):
            if not same_bits(first, second):
                return _tensor_difference(first, second)
        elif first != second and not _both_nan(first, second):
            return f"{second!r} instead of {first!r}"
    return None


def _both_nan(first: Any, second: Any) -> bool:
    return isinstance(first, float) and isinstance(second, float) and isnan(first) and isnan(second)


def _tensor_difference(first: Tensor, second: Tensor) -> str:
    if first.dtype != second.dtype or first.shape != second.shape:
        return f"an output is {second.dtype} {list(second.shape)} instead of {first.dtype} " + str(
            list(first.shape)
        )
    gap = (first.double() - second.double()).abs().nan_to_num().max().item()
    return f"outputs differ by up to {gap:.3g}"


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors hold the same bits, also of NaN and of the two zeros."""
    return (
        first.dtype == second.dtype
        and first.shape == second.shape
        and torch.equal(_bits(first), _bits(second))
    )


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _not_verified(reason: str) -> Claim:
    return Claim("model", "not verified", reason)


def _first_line(error: Exception) -> str:
    """Return what an error of PyTorch says first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


def _last_line(error: Exception) -> str:
    """Return the last line of an error in TorchScript, which comes after its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
