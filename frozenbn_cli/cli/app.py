"""The command line: parse, call, print, exit."""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, NoReturn

import typer

from frozenbn_cli.cli import options
from frozenbn_cli.cli.option_values import parse_model, parse_selection, parse_shapes
from frozenbn_cli.cli.sink import Sink, complain, print_json, reader_may_leave, tidy
from frozenbn_cli.errors import (
    INTERRUPTED,
    FrozenBNError,
    OutputError,
    UsageError,
    internal_error,
)
from frozenbn_cli.importing import import_quietly
from frozenbn_cli.verification.terms import VerifyOptions
from frozenbn_cli.version import __version__

__all__ = ["app", "main", "run"]

# Typer carries its own copy of click in some versions; its public exception tells which.
_ParserError: Any = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="frozenbn",
    help="Freeze the BatchNorm2d layers of PyTorch model files, and prove that nothing else "
    "changed.",
    epilog="Exit codes: 0 done · 1 the answer is no (nothing to freeze, unhealthy statistics, "
    "different) · 2 wrong usage · 3 the input cannot be read · 4 the output cannot be written · "
    "70 a bug of ours · 130 interrupted",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"frozenbn {__version__}")
        raise typer.Exit


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


@app.command(epilog=options.INSPECT_EXAMPLES)
def inspect(
    checkpoints: options.Checkpoints,
    key: options.Key = None,
    keep_prefix: options.KeepPrefix = False,
    strip_prefix: options.StripPrefix = "",
    add_prefix: options.AddPrefix = "",
    eps: options.Eps = None,
    no_recognise: options.NoRecognise = False,
    include: options.Include = None,
    exclude: options.Exclude = None,
    dims_of: options.DimsOf = None,
    live: options.Live = False,
    frozen: options.Frozen = False,
    model: options.Model = None,
    model_arg: options.ModelArg = None,
    all_layers: options.AllLayers = False,
    check: options.Check = False,
    report: options.Report = None,
    force: options.ForceReport = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Show what model files are, and whether their running statistics mean anything.

    Nothing in a file is executed, and torch is not imported unless a model is
    named.
    """
    sink = Sink(as_json=as_json, quiet=quiet, report=report, others=checkpoints, force=force)
    inspect_file = partial(
        import_quietly("frozenbn_cli.inspection").inspect_file,
        key=key,
        keep_prefix=keep_prefix,
        strip_prefix=strip_prefix,
        add_prefix=add_prefix,
        eps=eps,
        selection=parse_selection(include, exclude, dims_of, live=live, frozen=frozen),
        model=parse_model(model, model_arg),
        summarize=sink.has_report,
        may_recognise=not no_recognise,
    )
    command = import_quietly("frozenbn_cli.cli.inspect")
    raise typer.Exit(
        command.run(checkpoints, inspect_file, sink, all_layers=all_layers, check=check)
    )


@app.command(epilog=options.CONVERT_EXAMPLES)
def convert(
    checkpoints: options.Checkpoints,
    output: options.OutputPath = None,
    to: options.To = None,
    key: options.Key = None,
    keep_prefix: options.KeepPrefix = False,
    strip_prefix: options.StripPrefix = "",
    add_prefix: options.AddPrefix = "",
    eps: options.Eps = None,
    no_recognise: options.NoRecognise = False,
    include: options.Include = None,
    exclude: options.Exclude = None,
    dims_of: options.DimsOf = None,
    live: options.Live = False,
    frozen: options.Frozen = False,
    force_unhealthy: options.ForceUnhealthy = False,
    force: options.Force = False,
    dry_run: options.DryRun = False,
    model: options.Model = None,
    model_arg: options.ModelArg = None,
    no_verify: options.NoVerify = False,
    input_shape: options.InputShape = None,
    inputs: options.Inputs = None,
    seed: options.Seed = 0,
    runs: options.Runs = 1,
    timeout: options.Timeout = 300.0,
    trust: options.Trust = False,
    output_dir: options.OutputDir = None,
    recursive: options.Recursive = False,
    skip_existing: options.SkipExisting = False,
    jobs: options.Jobs = None,
    scheduler: options.Scheduler = None,
    all_layers: options.AllLayers = False,
    report: options.Report = None,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Freeze the BatchNorm2d layers of a model file, or of many, and write the result.

    The result is verified before it gets its name. The input is never changed,
    and no pickled code in it is executed unless it is trusted. A TorchScript
    archive is rewritten as it lies in the file; to verify the result, it is then
    run. Of many files, one that fails does not stop the others; the exit code is
    that of the worst.
    """
    others = [*checkpoints, output]
    sink = Sink(as_json=as_json, quiet=quiet, report=report, others=others, force=force)
    how = import_quietly("frozenbn_cli.conversion.convert").ConvertOptions(
        to=to.value if to else None,
        key=key,
        keep_prefix=keep_prefix,
        strip_prefix=strip_prefix,
        add_prefix=add_prefix,
        eps=eps,
        selection=parse_selection(include, exclude, dims_of, live=live, frozen=frozen),
        may_recognise=not no_recognise,
        force=force,
        force_unhealthy=force_unhealthy,
        dry_run=dry_run,
        verify=not no_verify,
        model=parse_model(model, model_arg),
        input_shapes=parse_shapes(input_shape),
        inputs=inputs,
        seed=seed,
        runs=runs,
        timeout=timeout,
        trust=trust,
        summarize=sink.has_report,
    )
    if not dry_run:
        tidy(output_dir or (output or checkpoints[0]).parent, recursive=recursive)
    batch = {"recursive": recursive, "skip_existing": skip_existing, "jobs": jobs}
    if output_dir is not None:
        if output is not None:
            raise UsageError("--output and --output-dir are given; one of them says where")
        if report is not None:
            raise UsageError("--report shows one conversion; --json tells of many")
        many = import_quietly("frozenbn_cli.cli.convert_many")
        convert_with = partial(many.convert_files, checkpoints, output_dir=output_dir, options=how)
        code = many.run(partial(convert_with, **batch), scheduler, sink, all_files=all_layers)
        raise typer.Exit(code)
    one = import_quietly("frozenbn_cli.cli.convert")
    one.check_alone(checkpoints, *batch.values(), scheduler)
    raise typer.Exit(one.run(checkpoints[0], output, how, sink, all_layers=all_layers))


@app.command(epilog=options.VERIFY_EXAMPLES)
def verify(
    original: options.Original,
    converted: options.Converted,
    key: options.Key = None,
    eps: options.Eps = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    dims_of: options.DimsOf = None,
    live: options.Live = False,
    frozen: options.Frozen = False,
    model: options.Model = None,
    model_arg: options.ModelArg = None,
    input_shape: options.InputShape = None,
    inputs: options.Inputs = None,
    seed: options.Seed = 0,
    runs: options.Runs = 1,
    timeout: options.Timeout = 300.0,
    atol: options.AbsoluteTolerance = 0.0,
    rtol: options.RelativeTolerance = 0.0,
    trust: options.Trust = False,
    report: options.Report = None,
    force: options.ForceReport = False,
    as_json: options.AsJson = False,
    quiet: options.Quiet = False,
) -> None:
    """Check that one model file is another with its BatchNorm2d layers frozen.

    Contents, layers and the whole model are compared, to the last bit unless a
    tolerance is given; what differs is named and measured. Exits with 0 if
    nothing differs, and 1 if something does.
    """
    others = [original, converted]
    sink = Sink(as_json=as_json, quiet=quiet, report=report, others=others, force=force)
    how = VerifyOptions(
        key=key,
        eps=eps,
        selection=parse_selection(include, exclude, dims_of, live=live, frozen=frozen),
        model=parse_model(model, model_arg),
        input_shapes=parse_shapes(input_shape),
        inputs=inputs,
        seed=seed,
        runs=runs,
        timeout=timeout,
        atol=atol,
        rtol=rtol,
        trust=trust,
        summarize=sink.has_report,
    )
    command = import_quietly("frozenbn_cli.cli.verify")
    raise typer.Exit(command.run(original, converted, how, sink))


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # What the parent ignores on purpose, such as `nohup`, stays ignored; so does SIGINT.
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    for stream in ("stdout", "stderr"):
        _make_usable(stream)
    sys.exit(run(sys.argv[1:]))


def _make_usable(name: str) -> None:
    """Give a stream that was closed somewhere to write, and one that lacks characters a way out."""
    stream = getattr(sys, name)
    if stream is None:
        setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    elif isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def run(arguments: list[str]) -> int:
    """Run the command line with ``arguments`` and return the exit code; the one catch point."""
    try:
        code = int(app(arguments or ["--help"], prog_name="frozenbn", standalone_mode=False) or 0)
    except FrozenBNError as error:
        return _fail(error, arguments)
    except _ParserError as error:
        message = error.format_message().rstrip(".")
        return _fail(UsageError(message, advice="See `frozenbn --help`."), arguments)
    except Exception as error:  # A crash must not look like the answer "no".
        return _fail(internal_error(error), arguments)
    if not arguments:  # The help says which there are; what was wanted is still unknown.
        return UsageError.exit_code
    if code == INTERRUPTED:  # Typer turns KeyboardInterrupt into this.
        sys.stderr.write("frozenbn: interrupted; nothing unfinished was left behind\n")
    return code


def _fail(error: FrozenBNError, arguments: list[str]) -> int:
    if "--json" in arguments:
        documents = import_quietly("frozenbn_cli.reports.documents")
        with suppress(OutputError), reader_may_leave():
            print_json(documents.error_document(arguments[0], error))
    return complain(error)
