"""The options that say what is written, and where."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from frozenbn_cli.cli.option_values import finite, format_name
from frozenbn_cli.outputs import FORMATS, OutputFormat

__all__ = ["OutputArguments"]

_OUTPUT = "Output"
_FORMATS = ", ".join(f"'{name}' ({facts.title})" for name, facts in FORMATS.items())


def _formats() -> list[str]:
    return list(FORMATS)


@dataclass(frozen=True, slots=True)
class OutputArguments:
    """What is written, and where."""

    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The result; its name says the format, such as .safetensors, .pt or .pth. Beside "
            "the input as NAME.frozen.safetensors, NAME.frozen.pt or NAME.frozen.pt2 if not given.",
            show_default=False,
            rich_help_panel=_OUTPUT,
        ),
    ] = None
    to: Annotated[
        OutputFormat | None,
        typer.Option(
            parser=format_name,
            autocompletion=_formats,
            metavar="FORMAT",
            help=f"The format of the result: {_FORMATS}. If not given, the name of the output says "
            "it; without one, TorchScript stays TorchScript, a program a program, and all else "
            "becomes safetensors.",
            show_default=False,
            rich_help_panel=_OUTPUT,
        ),
    ] = None
    target_eps: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            parser=finite,
            help="The eps of the frozen layers that the result is loaded into: 1e-5 for "
            "torchvision's, 0 for its COCO detectors. running_var is rewritten so that every scale "
            "stays the same number; what cannot is named, and refused unless --atol or --rtol "
            "allow it.",
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
