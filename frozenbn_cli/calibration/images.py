"""A folder of images as batches. Needs Pillow, the extra ``images``. Imports torch."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frozenbn_cli.calibration.terms import ImageOptions
from frozenbn_cli.errors import DependencyError, InputError
from frozenbn_cli.wording import counted

__all__ = ["ImageFolder"]

_SUFFIXES = {
    ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp",
}  # fmt: skip
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


class ImageFolder:
    """The images in a folder and the folders in it, in the order of their names, as batches.

    Each is scaled until it covers the size that is asked for, and its middle is cut out; values are
    from 0 to 1, less the mean, over the standard deviation.

    Args:
        folder: Where they are.
        channels: How many the model takes: 1 for grey, 3 for colours.
        batch_size: How many images are in a batch.
        options: Their size, mean and standard deviation.

    Raises:
        DependencyError: Pillow is not installed.
        InputError: There is no image.
    """

    def __init__(
        self, folder: Path, *, channels: int, batch_size: int, options: ImageOptions
    ) -> None:
        self._pillow = _pillow()
        self._paths = sorted(path for path in folder.rglob("*") if _is_image(path))
        if not self._paths:
            raise InputError(
                "holds no image", advice=f"Images end in {', '.join(_SUFFIXES_SHOWN)}."
            )
        if channels not in _MODES:
            raise InputError(f"images have 1, 3 or 4 channels, and the model takes {channels}")
        self._mode = _MODES[channels]
        self._batch_size = batch_size
        self._size = options.size
        self._mean = _by_channel(options.mean or (0.0,), channels, "--mean")
        self._std = _by_channel(options.std or (1.0,), channels, "--std")

    def __len__(self) -> int:
        """The number of batches."""
        return math.ceil(len(self._paths) / self._batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        """Read the images, a batch at a time."""
        for start in range(0, len(self._paths), self._batch_size):
            paths = self._paths[start : start + self._batch_size]
            yield self._batch(paths)

    def __str__(self) -> str:
        size = "as large as they are" if self._size is None else "{}x{}".format(*self._size)
        return f"{counted(len(self._paths), 'image')}, {size}, {self._mode}"

    def _batch(self, paths: Sequence[Path]) -> Tensor:
        images = [self._read(path) for path in paths]
        for path, image in zip(paths, images, strict=True):
            if image.shape != images[0].shape:
                first, other = ("x".join(map(str, each.shape[1:])) for each in (images[0], image))
                raise InputError(
                    f"{paths[0].name} has {first} pixels, and {path.name} {other}",
                    advice="Give all one size with --image-size.",
                )
        return (torch.stack(images) - self._mean) / self._std

    def _read(self, path: Path) -> Tensor:
        try:
            with self._pillow.open(path) as opened:
                image = opened.convert(self._mode)
        except Exception as error:  # Pillow's readers raise what they will.
            raise InputError(
                f"cannot be read as an image ({error})".replace(str(path), path.name),
                where=(str(path),),
            ) from error
        if self._size is not None:
            image = self._fitted(image, *self._size)
        values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return values.view(image.height, image.width, -1).permute(2, 0, 1).float() / 255

    def _fitted(self, image: Any, height: int, width: int) -> Any:
        """Scale an image until it covers a size, and cut out its middle."""
        factor = max(height / image.height, width / image.width)
        scaled = (
            max(width, round(image.width * factor)),
            max(height, round(image.height * factor)),
        )
        image = image.resize(scaled, self._pillow.Resampling.BILINEAR)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        return image.crop((left, top, left + width, top + height))


_SUFFIXES_SHOWN = (".jpg", ".png", ".webp", ".tif", ".bmp")


def _pillow() -> Any:
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise DependencyError(
            "a folder of images needs Pillow, which is not installed",
            advice="Install it: pip install 'frozenbn-cli[images]'",
        ) from error


def _is_image(path: Path) -> bool:
    hidden = path.name.startswith(".")
    return path.suffix.lower() in _SUFFIXES and not hidden and path.is_file()


def _by_channel(values: Sequence[float], channels: int, option: str) -> Tensor:
    if len(values) not in (1, channels):
        raise InputError(f"{option} has {len(values)} values, and the model takes {channels}")
    return torch.tensor(values).view(-1, 1, 1)
