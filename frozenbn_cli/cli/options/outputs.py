"""The options that say what is written, and where."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Format", "OutputArguments"]

_OUTPUT = "Output"


class Format(str, Enum):
    """The output formats, as Typer wants choices."""

    SAFETENSORS = "safetensors"
    TORCH = "torch"
    TORCHSCRIPT = "torchscript"


@dataclass(frozen=True, slots=True)
class OutputArguments:
    """What is written, and where."""

    output: Annotated[
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
    ] = None
    to: Annotated[
        Format | None,
        typer.Option(
            metavar="FORMAT",
            help="The format of the result: 'safetensors', 'torch' (a plain state dict for "
            "torch.load) or 'torchscript'. TorchScript stays TorchScript if not given, all else "
            "becomes safetensors.",
            show_default=False,
            rich_help_panel=_OUTPUT,
        ),
    ] = None
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace an output, or a report, that exists.", rich_help_panel=_OUTPUT
        ),
    ] = False
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Show what would be done; write nothing but the report that is asked for.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False
