"""The command line: parse, call, print, exit."""

from __future__ import annotations

import math
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from frozenbn_cli import __version__
from frozenbn_cli.conversion import ConversionResult, ConvertOptions, convert_checkpoint
from frozenbn_cli.errors import FrozenBNError, RefusedError, UsageError
from frozenbn_cli.reports.console import ProgressBar, make_console, print_report
from frozenbn_cli.reports.documents import (
    conversion_document,
    error_document,
    error_fields,
    to_json,
)
from frozenbn_cli.reports.terminal import conversion_report
from frozenbn_cli.selection import Selection

__all__ = ["app", "main"]

_INTERRUPTED = 130
_BUG = 70
# Typer carries its own copy of click in some versions; its public exception tells which.
_ParserError: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="frozenbn",
    help="Freeze the BatchNorm2d layers of PyTorch model files, and prove that nothing else "
    "changed.",
    epilog="Exit codes: 0 done · 1 the answer is no (nothing to freeze, unhealthy statistics, "
    "different) · 2 wrong usage · 3 the input cannot be read · 4 the output cannot be written · "
    "70 a bug of ours · 130 interrupted",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"frozenbn {__version__}")
        raise typer.Exit


def _check_eps(eps: float | None) -> float | None:
    if eps is not None and not 0 <= eps < math.inf:
        raise typer.BadParameter("must be a finite number, 0 or more")
    return eps


@app.callback()
def frozenbn(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Freeze the BatchNorm2d layers of PyTorch model files."""


@app.command()
def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="A state dict: .pt, .pth, .bin or .safetensors.",
            metavar="CHECKPOINT",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The result; beside the input as NAME.frozen.safetensors if not given.",
            show_default=False,
            rich_help_panel="Output",
        ),
    ] = None,
    eps: Annotated[
        float | None,
        typer.Option(
            metavar="NUMBER",
            callback=_check_eps,
            help="The eps of the model's BatchNorm layers, which a state dict does not "
            "hold. PyTorch's default, 1e-5, is assumed if not given.",
            show_default=False,
            rich_help_panel="Layers",
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Freeze only layers whose name matches this pattern, such as "
            "'backbone.*'. Repeatable.",
            show_default=False,
            rich_help_panel="Layers",
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Leave layers alone whose name matches this pattern. Repeatable.",
            show_default=False,
            rich_help_panel="Layers",
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace an output that exists.", rich_help_panel="Output"),
    ] = False,
    force_unhealthy: Annotated[
        bool,
        typer.Option(
            "--force-unhealthy",
            help="Freeze also statistics that are broken or were never formed.",
            rich_help_panel="Layers",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show what would be done; write nothing.", rich_help_panel="Output"
        ),
    ] = False,
    no_verify: Annotated[
        bool,
        typer.Option(
            "--no-verify",
            help="Do not check the written file. Saves the seconds that importing torch takes.",
            rich_help_panel="Output",
        ),
    ] = False,
    all_layers: Annotated[
        bool, typer.Option("--all", help="Show every layer.", rich_help_panel="Report")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document.", rich_help_panel="Report")
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel="Report"),
    ] = False,
) -> None:
    """Freeze the BatchNorm2d layers of a checkpoint and write it as safetensors.

    The result is verified before it gets its name. The input is never changed, and nothing in it
    is executed.
    """
    options = ConvertOptions(
        eps=eps,
        selection=Selection.of(include or (), exclude or ()),
        force=force,
        force_unhealthy=force_unhealthy,
        dry_run=dry_run,
        verify=not no_verify,
    )

    @_reader_may_leave()
    def show(result: ConversionResult, error: RefusedError | None = None) -> None:
        if as_json:
            failure = {"error": error_fields(error)} if error else {}
            typer.echo(to_json(conversion_document(result) | failure))
        elif not quiet:
            console = make_console(sys.stdout)
            print_report(console, conversion_report(result, console, all_layers=all_layers))

    try:
        with ProgressBar(sys.stderr) as progress:
            result = convert_checkpoint(checkpoint, output, options=options, progress=progress)
    except RefusedError as error:
        if error.result is None:
            raise
        show(error.result, error)
        _complain(error, as_json=False)
        raise typer.Exit(error.exit_code) from error
    show(result)


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGTERM, _interrupt)
    sys.exit(run(sys.argv[1:]))


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def run(arguments: list[str]) -> int:
    """Run the command line with ``arguments`` and return the exit code; the one catch point."""
    as_json = "--json" in arguments
    try:
        code = int(app(arguments, prog_name="frozenbn", standalone_mode=False) or 0)
    except FrozenBNError as error:
        return _complain(error, as_json=as_json)
    except _ParserError as error:
        return _complain(
            UsageError(error.format_message().rstrip("."), advice="See `frozenbn --help`."),
            as_json=as_json,
        )
    except Exception as error:  # A crash must not look like the answer "no".
        bug = FrozenBNError(
            f"internal error ({type(error).__name__}: {error})",
            advice="This is a bug of frozenbn; FROZENBN_DEBUG=1 shows where it happened.",
        )
        return _complain(bug, as_json=as_json)
    if code == _INTERRUPTED:  # Typer turns KeyboardInterrupt into this.
        sys.stderr.write("frozenbn: interrupted; nothing was left behind\n")
    return code


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Go on silently where whoever reads the output has seen enough and closed the pipe."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _complain(error: FrozenBNError, *, as_json: bool) -> int:
    if os.environ.get("FROZENBN_DEBUG"):
        traceback.print_exc()
    if as_json:
        typer.echo(to_json(error_document(None, error)))
    console = make_console(sys.stderr)
    console.print(f"frozenbn: {error}", style="red", soft_wrap=True)
    return error.exit_code
