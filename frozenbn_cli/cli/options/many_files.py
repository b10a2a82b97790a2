"""The options that are for many files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from frozenbn_cli.cli.option_values import whole
from frozenbn_cli.errors import UsageError

__all__ = ["ManyArguments", "Recursive"]

_MANY = "Many files"

Recursive = Annotated[
    bool,
    typer.Option(
        "--recursive",
        "-r",
        help="Look into the folders in a folder too.",
        rich_help_panel=_MANY,
    ),
]


@dataclass(frozen=True, slots=True)
class ManyArguments:
    """How many files are converted."""

    output_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Convert several files, folders and patterns such as 'zoo/**/*.pth', and write "
            "the results here, in folders as the inputs lie in.",
            show_default=False,
            rich_help_panel=_MANY,
        ),
    ] = None
    recursive: Recursive = False
    skip_existing: Annotated[
        bool,
        typer.Option(
            "--skip-existing",
            help="Count an output as done that was made of the same source with the same options.",
            rich_help_panel=_MANY,
        ),
    ] = False
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            "-j",
            parser=whole,
            metavar="N",
            help="How many processes convert at once; one for each core, 8 at most, if not given.",
            show_default=False,
            rich_help_panel=_MANY,
        ),
    ] = None
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Convert on a running Dask cluster, all of whose workers see the files: "
            "'tcp://10.0.0.1:8786'.",
            show_default=False,
            rich_help_panel=_MANY,
        ),
    ] = None

    @property
    def given(self) -> list[str]:
        """The options that are given, and are for many files alone."""
        flags = {
            "--recursive": self.recursive,
            "--skip-existing": self.skip_existing,
            "--jobs": self.jobs,
            "--scheduler": self.scheduler,
        }
        return [flag for flag, value in flags.items() if value is not None and value is not False]

    def check_with(self, output: Path | None) -> None:
        """Refuse what is only for one file.

        Raises:
            UsageError: An output is named, of one file.
        """
        if output is not None:
            raise UsageError("--output and --output-dir are given; one of them says where")
