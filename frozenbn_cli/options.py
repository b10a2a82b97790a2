"""The options of the command line, each defined once."""

from __future__ import annotations

import math
import re
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "AllLayers",
    "AsJson",
    "Check",
    "Checkpoint",
    "Checkpoints",
    "DryRun",
    "Eps",
    "Exclude",
    "Force",
    "ForceUnhealthy",
    "Format",
    "Include",
    "InputShape",
    "KeepPrefix",
    "Key",
    "NoVerify",
    "OutputPath",
    "Quiet",
    "To",
    "Trust",
    "parse_shapes",
]


def _check_eps(eps: float | None) -> float | None:
    if eps is not None and not 0 <= eps < math.inf:
        raise typer.BadParameter("must be a finite number, 0 or more")
    return eps


def _check_shapes(shapes: list[str] | None) -> list[str] | None:
    for text in shapes or ():
        if not re.fullmatch(r"\d{1,9}(x\d{1,9})*", text):
            raise typer.BadParameter(f"{text!r} is no shape such as 1x3x224x224")
    return shapes


def parse_shapes(shapes: list[str] | None) -> tuple[tuple[int, ...], ...]:
    """Return shapes as numbers, from the text of ``--input-shape``."""
    return tuple(tuple(map(int, text.split("x"))) for text in shapes or ())


_INPUT, _OUTPUT, _LAYERS, _REPORT = "Input", "Output", "Layers", "Report"
_VERIFICATION = "Verification"
_READ = "A model file: .pt, .pth, .ckpt, .bin, .safetensors, or a folder of shards."

Checkpoint = Annotated[Path, typer.Argument(help=_READ, metavar="CHECKPOINT", show_default=False)]
Checkpoints = Annotated[
    list[Path], typer.Argument(help=_READ, metavar="CHECKPOINT", show_default=False)
]
Key = Annotated[
    str | None,
    typer.Option(
        metavar="KEY",
        help="Which state dict of a file that holds several, such as 'model_ema'.",
        show_default=False,
        rich_help_panel=_INPUT,
    ),
]
KeepPrefix = Annotated[
    bool,
    typer.Option(
        "--keep-prefix",
        help="Keep what wrappers put in front of every name: 'module.', '_orig_mod.'.",
        rich_help_panel=_INPUT,
    ),
]
Eps = Annotated[
    float | None,
    typer.Option(
        metavar="NUMBER",
        callback=_check_eps,
        help="The eps of the model's BatchNorm layers, where the file does not hold it. "
        "PyTorch's default, 1e-5, is assumed if not given.",
        show_default=False,
        rich_help_panel=_LAYERS,
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Freeze only layers whose name matches this pattern, such as 'backbone.*'. "
        "Repeatable.",
        show_default=False,
        rich_help_panel=_LAYERS,
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Leave layers alone whose name matches this pattern. Repeatable.",
        show_default=False,
        rich_help_panel=_LAYERS,
    ),
]
ForceUnhealthy = Annotated[
    bool,
    typer.Option(
        "--force-unhealthy",
        help="Freeze also statistics that are broken or were never formed.",
        rich_help_panel=_LAYERS,
    ),
]
OutputPath = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="The result; beside the input as NAME.frozen.safetensors or NAME.frozen.pt if not "
        "given.",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]


class Format(str, Enum):
    """The output formats, as Typer wants choices."""

    SAFETENSORS = "safetensors"
    TORCH = "torch"
    TORCHSCRIPT = "torchscript"


To = Annotated[
    Format | None,
    typer.Option(
        help="The format of the result: 'torch' is a plain state dict for torch.load. TorchScript "
        "stays TorchScript if not given, all else becomes safetensors.",
        show_default=False,
        rich_help_panel=_OUTPUT,
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace an output that exists.", rich_help_panel=_OUTPUT),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Show what would be done; write nothing.", rich_help_panel=_OUTPUT
    ),
]
NoVerify = Annotated[
    bool,
    typer.Option(
        "--no-verify",
        help="Do not check the written file. Saves the seconds that importing torch takes.",
        rich_help_panel=_VERIFICATION,
    ),
]
InputShape = Annotated[
    list[str] | None,
    typer.Option(
        metavar="SHAPE",
        help="The shape of the input that a TorchScript archive is run on to verify it, such as "
        "1x3x224x224. Repeatable, for several inputs. Found from the first convolution if not "
        "given.",
        show_default=False,
        callback=_check_shapes,
        rich_help_panel=_VERIFICATION,
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust",
        help="Run a TorchScript archive to verify it even if its code can read or write files. "
        "Only for files whose origin you trust.",
        rich_help_panel=_VERIFICATION,
    ),
]
AllLayers = Annotated[
    bool, typer.Option("--all", help="Show every layer.", rich_help_panel=_REPORT)
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON document.", rich_help_panel=_REPORT)
]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=_REPORT),
]
Check = Annotated[
    bool,
    typer.Option(
        "--check",
        help="Exit with 1 if statistics are broken or were never formed, or if loading the file "
        "without care would call what no model needs.",
        rich_help_panel=_REPORT,
    ),
]
