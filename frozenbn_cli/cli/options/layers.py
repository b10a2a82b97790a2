"""The options that say which layers are meant, and what is said of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from frozenbn_cli.cli.option_values import (
    check_dims,
    check_dims_of,
    finite,
    parse_dims,
    parse_selection,
)
from frozenbn_cli.selection import Selection

__all__ = ["Exclude", "ForceUnhealthy", "LayerArguments", "NoRecognise"]

_LAYERS = "Layers"

NoRecognise = Annotated[
    bool,
    typer.Option(
        "--no-recognise",
        help="Go by the file alone. If not given, layers that are exactly those of a torchvision "
        "or timm architecture have the eps that they have there.",
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
Exclude = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="Leave layers alone whose name matches this pattern, or that lie in the module of "
        "this name. Repeatable.",
        show_default=False,
        rich_help_panel=_LAYERS,
    ),
]


@dataclass(frozen=True, slots=True)
class LayerArguments:
    """Which layers are meant, and what is said of them."""

    eps: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            parser=finite,
            help="The eps of the model's BatchNorm layers, where the file does not hold it. If not "
            "given, it is recognised from the layers where they are a known architecture's, and "
            "PyTorch's default, 1e-5, is assumed elsewhere.",
            show_default=False,
            rich_help_panel=_LAYERS,
        ),
    ] = None
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Freeze only layers whose name matches this pattern, such as 'backbone.*', or "
            "that lie in the module of this name; to name a layer says that it is a BatchNorm2d, "
            "where the file does not (or what --dims alone asks for). Repeatable.",
            show_default=False,
            rich_help_panel=_LAYERS,
        ),
    ] = None
    exclude: Exclude = None
    dims: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Freeze layers of these spatial dimensions: '1,2,3' takes in BatchNorm1d and 3d. "
            "BatchNorm2d alone if not given; 'verify' goes by what the converted file says then.",
            show_default=False,
            callback=check_dims,
            rich_help_panel=_LAYERS,
        ),
    ] = None
    dims_of: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIMS",
            help="Say that a layer is a BatchNorm1d, 2d or 3d where the file does not prove it: "
            "'neck.bn=1d'. Repeatable.",
            show_default=False,
            callback=check_dims_of,
            rich_help_panel=_LAYERS,
        ),
    ] = None
    live: Annotated[
        bool,
        typer.Option(
            "--live",
            help="Say that the layers are live of which the file cannot tell it (PyTorch 0.4.0's).",
            rich_help_panel=_LAYERS,
        ),
    ] = False
    frozen: Annotated[
        bool,
        typer.Option(
            "--frozen",
            help="Say that the layers are frozen already of which the file cannot tell it.",
            rich_help_panel=_LAYERS,
        ),
    ] = False

    @property
    def chosen_dims(self) -> tuple[int, ...] | None:
        """The spatial dimensions of the layers that are meant; None where none are chosen."""
        return parse_dims(self.dims)

    @property
    def selection(self) -> Selection:
        """Which layers are meant.

        Raises:
            UsageError: What is said contradicts itself.
        """
        return parse_selection(
            self.include, self.exclude, self.dims_of, live=self.live, frozen=self.frozen
        )
