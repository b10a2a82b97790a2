"""The options that say from what statistics are formed, and how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from frozenbn_cli.cli.option_values import (
    check_image_size,
    check_numbers,
    check_positive_numbers,
    parse_image_size,
    parse_numbers,
    whole,
)
from frozenbn_cli.cli.options.layers import Exclude
from frozenbn_cli.selection import Selection

if TYPE_CHECKING:
    from frozenbn_cli.calibration.terms import ImageOptions

__all__ = [
    "Calibrated",
    "CalibratedLayers",
    "CalibratedOutput",
    "Data",
    "DataArguments",
    "ForceCalibrated",
]

_DATA = "Data"
_OUTPUT = "Output"
_LAYERS = "Layers"

Calibrated = Annotated[
    Path,
    typer.Argument(
        help="A model file: .pt, .pth, .ckpt, .bin or .safetensors.",
        metavar="CHECKPOINT",
        show_default=False,
    ),
]
CalibratedOutput = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="The result, in the format of the input; beside it as NAME.calibrated.SUFFIX if not "
        "given.",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]
ForceCalibrated = Annotated[
    bool,
    typer.Option(
        "--force", help="Replace an output, or a report, that exists.", rich_help_panel=_OUTPUT
    ),
]
Data = Annotated[
    str,
    typer.Option(
        metavar="DATA",
        help="What the statistics are formed from, without labels: 'package.module:callable' or "
        "'path/file.py:callable', which gives batches (tensors, tuples whose first is the input, "
        "dicts of inputs by name), and whose code is run; a file of tensors (.npz, .safetensors, "
        ".pt); or a folder of images.",
        show_default=False,
        rich_help_panel=_DATA,
    ),
]


@dataclass(frozen=True, slots=True)
class CalibratedLayers:
    """Which layers get new statistics."""

    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Calibrate only layers whose name matches this pattern, such as 'backbone.*', or "
            "that lie in the module of this name. Repeatable.",
            show_default=False,
            rich_help_panel=_LAYERS,
        ),
    ] = None
    exclude: Exclude = None

    @property
    def selection(self) -> Selection:
        """Which layers are meant."""
        return Selection.of(self.include or (), self.exclude or ())


@dataclass(frozen=True, slots=True)
class DataArguments:
    """From what statistics are formed, and how."""

    batches: Annotated[
        int | None,
        typer.Option(
            parser=whole,
            metavar="N",
            help="Take the first N batches only.",
            show_default=False,
            rich_help_panel=_DATA,
        ),
    ] = None
    passes: Annotated[
        int | None,
        typer.Option(
            parser=whole,
            metavar="N",
            help="Go through the data N times at most. If not given, as often as there are layers, "
            "most times not through the whole model, until all statistics fit each other.",
            show_default=False,
            rich_help_panel=_DATA,
        ),
    ] = None
    batch_size: Annotated[
        int | None,
        typer.Option(
            parser=whole,
            metavar="N",
            help="How many tensors or images are in a batch; 32 if not given.",
            show_default=False,
            rich_help_panel=_DATA,
        ),
    ] = None
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Scale images until they cover this size, and cut out the middle: 224, or "
            "HEIGHTxWIDTH.",
            show_default=False,
            callback=check_image_size,
            rich_help_panel=_DATA,
        ),
    ] = None
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="Taken from the values of images, which are from 0 to 1: one number, or one for "
            "each channel, such as 0.485,0.456,0.406. 0 if not given.",
            show_default=False,
            callback=check_numbers,
            rich_help_panel=_DATA,
        ),
    ] = None
    std: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="The same are divided by this after that, such as 0.229,0.224,0.225. 1 if not "
            "given.",
            show_default=False,
            callback=check_positive_numbers,
            rich_help_panel=_DATA,
        ),
    ] = None

    @property
    def images(self) -> ImageOptions:
        """What is made of images."""
        from frozenbn_cli.calibration.terms import ImageOptions

        return ImageOptions(
            size=parse_image_size(self.image_size),
            mean=parse_numbers(self.mean),
            std=parse_numbers(self.std),
        )
