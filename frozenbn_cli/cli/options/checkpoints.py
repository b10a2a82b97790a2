"""The options that say which files are read, and by which names."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = ["Checkpoints", "Converted", "Key", "NameArguments", "Original"]

_INPUT = "Input"

_READ = "A model file: .pt, .pth, .ckpt, .bin, .safetensors, or a folder of them."

Checkpoints = Annotated[
    list[Path], typer.Argument(help=_READ, metavar="CHECKPOINT", show_default=False)
]
Original = Annotated[
    Path, typer.Argument(help=f"Before. {_READ}", metavar="ORIGINAL", show_default=False)
]
Converted = Annotated[
    Path, typer.Argument(help="After, of any kind.", metavar="CONVERTED", show_default=False)
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


@dataclass(frozen=True, slots=True)
class NameArguments:
    """What the entries of a file are to be called."""

    keep_prefix: Annotated[
        bool,
        typer.Option(
            "--keep-prefix",
            help="Keep what wrappers put into names: 'module.', '_orig_mod.'.",
            rich_help_panel=_INPUT,
        ),
    ] = False
    strip_prefix: Annotated[
        str,
        typer.Option(
            metavar="PREFIX",
            help="Take this off the names that begin with it, such as 'model.backbone.'.",
            show_default=False,
            rich_help_panel=_INPUT,
        ),
    ] = ""
    add_prefix: Annotated[
        str,
        typer.Option(
            metavar="PREFIX",
            help="Put this in front of every name, such as 'backbone.'.",
            show_default=False,
            rich_help_panel=_INPUT,
        ),
    ] = ""

    @property
    def values(self) -> dict[str, Any]:
        """The same as the library names it."""
        return asdict(self)
