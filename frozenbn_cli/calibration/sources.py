"""What ``--data`` names: a callable, a file of tensors or a folder of images. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from frozenbn_cli.calibration.batches import opened
from frozenbn_cli.calibration.terms import CalibrateOptions
from frozenbn_cli.errors import FrozenBNError, InputError, UsageError, located
from frozenbn_cli.importing import import_quietly
from frozenbn_cli.live_models.guarding import first_line
from frozenbn_cli.live_models.inputs import (
    first_convolution,
    read_values,
    shape_text,
    signature_of,
    tensors_in,
)
from frozenbn_cli.live_models.target import folder_of, named_object

__all__ = ["batches_of", "folder_of_data"]

_BATCH_SIZE = 32
_TENSOR_SUFFIXES = (".npz", ".npy", ".safetensors", ".pt", ".pth")


def batches_of(model: nn.Module, options: CalibrateOptions) -> Any:
    """Return what gives the batches of the data, and says in words what they are.

    Raises:
        UsageError: The data are named wrongly, or options are given that have no effect on them.
        InputError: They cannot be read.
        DependencyError: A package that they take is not installed.
    """
    data = options.data
    if not isinstance(data, (str, Path)):
        _refuse(options, "--batch-size", "--image-size", "--mean", "--std")
        return data
    path = Path(data)
    with located(f"--data {data}"):
        if path.is_dir():
            return _images(path, model, options)
        _refuse(options, "--image-size", "--mean", "--std")
        if path.suffix in _TENSOR_SUFFIXES:
            return _tensors(path, model, options)
        _refuse(options, "--batch-size")
        if ":" in str(data):
            return _Named(str(data))
        raise UsageError(
            expected="module:callable, file.py:callable, a folder of images, or a file that ends "
            f"in {' or '.join(_TENSOR_SUFFIXES)}"
        )


def folder_of_data(data: Any) -> Path:
    """Return the folder in which the code of the data, if it is code, looks for modules."""
    is_named = isinstance(data, str) and ":" in data
    return folder_of(data) if is_named else Path.cwd()


def _refuse(options: CalibrateOptions, *names: str) -> None:
    given = {
        "--batch-size": options.batch_size,
        "--image-size": options.images.size,
        "--mean": options.images.mean,
        "--std": options.images.std,
    }
    for name in names:
        if given[name] is not None:
            what = "tensors and images" if name == "--batch-size" else "a folder of images"
            raise UsageError(f"{name} is given, and has an effect on {what} alone")


class _Named:
    """What a callable of the user's gives, called anew each time."""

    def __init__(self, target: str) -> None:
        self._target = target
        try:
            self._found = named_object(target)
        except FrozenBNError:
            raise
        except Exception as error:  # A module of the user's is run to import it.
            raise UsageError(
                f"importing it failed ({type(error).__name__}: {first_line(error)})"
            ) from error

    def __iter__(self) -> Iterator[Any]:
        return opened(self._found)

    def __str__(self) -> str:
        return self._target


def _images(folder: Path, model: nn.Module, options: CalibrateOptions) -> Any:
    weight = first_convolution(model)
    return import_quietly("frozenbn_cli.calibration.images").ImageFolder(
        folder,
        channels=3 if weight is None else weight.shape[1],
        batch_size=options.batch_size or _BATCH_SIZE,
        options=options.images,
    )


class _Cut:
    """Tensors cut into batches along their first dimension."""

    def __init__(self, value: Any, batch_size: int, name: str) -> None:
        tensors = list(tensors_in(value))
        self._count = len(tensors[0]) if tensors[0].dim() else 0
        for tensor in tensors:
            if not tensor.dim() or len(tensor) != self._count:
                raise InputError(
                    expected="tensors of as many examples each",
                    found=", ".join(map(shape_text, tensors)),
                )
        self._value = value
        self._batch_size = batch_size
        self._name = name

    def __len__(self) -> int:
        return math.ceil(self._count / self._batch_size)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, self._count, self._batch_size):
            yield _sliced(self._value, slice(start, start + self._batch_size))

    def __str__(self) -> str:
        return f"{self._name}: {shape_text(self._value)}"


def _sliced(value: Any, which: slice) -> Any:
    if isinstance(value, Tensor):
        return value[which]
    if isinstance(value, Mapping):
        return {name: _sliced(part, which) for name, part in value.items()}
    return value


def _tensors(path: Path, model: nn.Module, options: CalibrateOptions) -> Any:
    """Return what a file of tensors holds, in batches.

    A list is one of batches. Of a tuple the first counts, of named tensors those whose names are
    arguments of the model's forward, or the only one.
    """
    value = read_values(path)
    if isinstance(value, list):
        _refuse(options, "--batch-size")
        return value
    if isinstance(value, tuple):
        value = value[0]
    if isinstance(value, Mapping):
        value = _named_inputs(value, model)
    return _Cut(value, options.batch_size or _BATCH_SIZE, path.name)


def _named_inputs(value: Mapping[str, Any], model: nn.Module) -> Any:
    signature = signature_of(model)
    if not isinstance(signature, str):
        known = {name: part for name, part in value.items() if signature.knows([name])}
        if known:
            return known
        if len(value) > 1 and not signature.any_name:
            raise InputError(
                f"holds {', '.join(value)}",
                expected=f"names that forward has: {', '.join(signature.names)}",
                advice="Save the inputs alone, or under these names.",
            )
        if len(value) > 1:
            return dict(value)
    return next(iter(value.values()))
