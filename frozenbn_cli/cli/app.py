"""The command line: parse, call, print, exit."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from frozenbn_cli.cli.interrupting import end_interrupted, was_interrupted
from frozenbn_cli.cli.invocation import Invocation, current_date
from frozenbn_cli.cli.options.checkpoints import (
    Checkpoints,
    Converted,
    Key,
    NameArguments,
    Original,
)
from frozenbn_cli.cli.options.data import (
    Calibrated,
    CalibratedLayers,
    CalibratedOutput,
    Data,
    DataArguments,
    ForceCalibrated,
)
from frozenbn_cli.cli.options.examples import (
    CALIBRATE_EXAMPLES,
    CONVERT_EXAMPLES,
    INSPECT_EXAMPLES,
    VERIFY_EXAMPLES,
)
from frozenbn_cli.cli.options.groups import PlainGroup, command
from frozenbn_cli.cli.options.layers import ForceUnhealthy, LayerArguments, NoRecognise
from frozenbn_cli.cli.options.many_files import ManyArguments, Recursive
from frozenbn_cli.cli.options.models import (
    ModelArguments,
    NoVerify,
    OptimizerTarget,
    RunArguments,
    ToleranceArguments,
    run_options,
)
from frozenbn_cli.cli.options.outputs import OutputArguments
from frozenbn_cli.cli.options.reporting import AllLayers, Check, ForceReport, ReportArguments
from frozenbn_cli.cli.parser_errors import usage_error
from frozenbn_cli.cli.sink import complain, print_json, reader_may_leave, tidy
from frozenbn_cli.errors import (
    INTERRUPTED,
    FrozenBNError,
    OutputError,
    UsageError,
    internal_error,
)
from frozenbn_cli.importing import import_quietly
from frozenbn_cli.live_models.target import ModelTarget
from frozenbn_cli.version import __version__

__all__ = ["make_streams_usable", "run"]

# Typer carries its own copy of click in some versions; its public exception tells which.
_ParserError: Any = typer.BadParameter.__mro__[2]

_HELP = "Freeze the BatchNorm2d layers of PyTorch model files, and prove that nothing else changed."
_EXIT_CODES = (
    "Exit codes: 0 done · 1 the answer is no (nothing to freeze, unhealthy statistics, different) "
    "· 2 wrong usage · 3 the input cannot be read · 4 the output cannot be written · "
    "70 a bug of ours · 130 interrupted"
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"frozenbn {__version__}")
        raise typer.Exit


def frozenbn(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Freeze the BatchNorm2d layers of PyTorch model files."""


@command(epilog=INSPECT_EXAMPLES)
def inspect(
    *,
    context: typer.Context,
    checkpoints: Checkpoints,
    key: Key = None,
    names: NameArguments,
    layers: LayerArguments,
    no_recognise: NoRecognise = False,
    model: ModelArguments,
    recursive: Recursive = False,
    all_layers: AllLayers = False,
    check: Check = False,
    reporting: ReportArguments,
    force: ForceReport = False,
) -> None:
    """Show what model files are, and whether their running statistics mean anything.

    Nothing in a file is executed, and torch is not imported unless a model is
    named.
    """
    sink = reporting.sink(context.obj, checkpoints, force=force)
    inspect_file = partial(
        import_quietly("frozenbn_cli.inspection").inspect_file,
        key=key,
        **names.values,
        eps=layers.eps,
        selection=layers.selection,
        dims=layers.chosen_dims,
        model=model.target,
        summarize=sink.has_report,
        may_recognise=not no_recognise,
    )
    shown = import_quietly("frozenbn_cli.cli.inspect")
    paths = import_quietly("frozenbn_cli.many_files.model_files").find_checkpoints(
        checkpoints, recursive=recursive
    )
    raise typer.Exit(shown.run(paths, inspect_file, sink, all_layers=all_layers, check=check))


@command(epilog=CONVERT_EXAMPLES)
def convert(
    *,
    context: typer.Context,
    checkpoints: Checkpoints,
    output: OutputArguments,
    key: Key = None,
    names: NameArguments,
    layers: LayerArguments,
    no_recognise: NoRecognise = False,
    force_unhealthy: ForceUnhealthy = False,
    model: ModelArguments,
    optimizer: OptimizerTarget = None,
    no_verify: NoVerify = False,
    running: RunArguments,
    tolerance: ToleranceArguments,
    many: ManyArguments,
    all_layers: AllLayers = False,
    reporting: ReportArguments,
) -> None:
    """Freeze the BatchNorm2d layers of a model file, or of many, and write the result.

    The result is verified before it gets its name. The input is never changed,
    and no pickled code in it is executed unless it is trusted. A TorchScript
    archive or an exported program is rewritten as it lies in the file; to verify
    the result, the archive is then run. Of many files, one that fails does not
    stop the others; the exit code is that of the worst.
    """
    sink = reporting.sink(context.obj, [*checkpoints, output.output], force=output.force)
    how = import_quietly("frozenbn_cli.conversion.convert").ConvertOptions(
        to=output.to,
        key=key,
        **names.values,
        eps=layers.eps,
        target_eps=output.target_eps,
        optimizer=ModelTarget(optimizer, option="--optimizer") if optimizer else None,
        atol=tolerance.atol,
        rtol=tolerance.rtol,
        selection=layers.selection,
        dims=layers.chosen_dims,
        may_recognise=not no_recognise,
        force=output.force,
        force_unhealthy=force_unhealthy,
        dry_run=output.dry_run,
        verify=not no_verify,
        summarize=sink.has_report,
        hash_output=sink.is_kept,
        date=context.obj.date,
        **run_options(model, running),
    )
    output_dir = many.output_dir
    if not output.dry_run:
        tidy(output_dir or (output.output or checkpoints[0]).parent, recursive=many.recursive)
    if output_dir is not None:
        many.check_with(output.output)
        of_many = import_quietly("frozenbn_cli.cli.convert_many")
        into = {"output_dir": output_dir, "options": how}
        raise typer.Exit(of_many.run(checkpoints, many, sink, all_files=all_layers, **into))
    of_one = import_quietly("frozenbn_cli.cli.convert")
    of_one.check_alone(checkpoints, many)
    raise typer.Exit(of_one.run(checkpoints[0], output.output, how, sink, all_layers=all_layers))


@command(epilog=VERIFY_EXAMPLES)
def verify(
    *,
    context: typer.Context,
    original: Original,
    converted: Converted,
    key: Key = None,
    layers: LayerArguments,
    model: ModelArguments,
    running: RunArguments,
    tolerance: ToleranceArguments,
    all_layers: AllLayers = False,
    reporting: ReportArguments,
    force: ForceReport = False,
) -> None:
    """Check that one model file is another with its BatchNorm2d layers frozen.

    Contents, layers and the whole model are compared, to the last bit unless a
    tolerance is given; what differs is named and measured. Exits with 0 if
    nothing differs, and 1 if something does.
    """
    sink = reporting.sink(context.obj, [original, converted], force=force)
    how = import_quietly("frozenbn_cli.verification.terms").VerifyOptions(
        key=key,
        eps=layers.eps,
        selection=layers.selection,
        dims=layers.chosen_dims,
        atol=tolerance.atol,
        rtol=tolerance.rtol,
        summarize=sink.has_report,
        hash_files=sink.is_kept,
        **run_options(model, running),
    )
    tidy()
    raise typer.Exit(
        import_quietly("frozenbn_cli.cli.verify").run(
            original, converted, how, sink, all_layers=all_layers
        )
    )


@command(epilog=CALIBRATE_EXAMPLES)
def calibrate(
    *,
    context: typer.Context,
    checkpoint: Calibrated,
    data: Data,
    model: ModelArguments,
    output: CalibratedOutput = None,
    force: ForceCalibrated = False,
    key: Key = None,
    names: NameArguments,
    layers: CalibratedLayers,
    data_options: DataArguments,
    all_layers: AllLayers = False,
    reporting: ReportArguments,
) -> None:
    """Form the running statistics of a model file anew from data, without labels.

    The model runs in eval over the data, as often as it takes until the mean
    and the variance of each layer are those of its inputs. The result is a copy
    of the input in its own format, verified before it gets its name: nothing
    but running statistics and counters changes.
    """
    if model.target is None:
        raise UsageError("calibrate runs the model of the file", advice="Name it with --model.")
    sink = reporting.sink(context.obj, [checkpoint, output, Path(data)], force=force)
    how = import_quietly("frozenbn_cli.calibration.terms").CalibrateOptions(
        model=model.target,
        data=data,
        batch_size=data_options.batch_size,
        images=data_options.images,
        max_batches=data_options.batches,
        passes=data_options.passes,
        key=key,
        **names.values,
        selection=layers.selection,
        force=force,
        summarize=sink.has_report,
    )
    tidy((output or checkpoint).parent, recursive=False)
    of_one = import_quietly("frozenbn_cli.cli.calibrate")
    raise typer.Exit(of_one.run(checkpoint, output, how, sink, all_layers=all_layers))


_COMMANDS = {"inspect": inspect, "convert": convert, "verify": verify, "calibrate": calibrate}


def _parser(arguments: list[str]) -> typer.Typer:
    """Return what parses a command line; of the commands, the named one where it begins with one.

    To build them all takes 10 ms.
    """
    parser = typer.Typer(
        name="frozenbn",
        cls=PlainGroup,
        help=_HELP,
        epilog=_EXIT_CODES,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    parser.callback()(frozenbn)
    named = [_COMMANDS[name] for name in arguments[:1] if name in _COMMANDS]
    for add in named or _COMMANDS.values():
        add(parser)
    return parser


def make_streams_usable() -> None:
    """Give streams that were closed somewhere to write, and what they lack characters for a way."""
    for stream in ("stdout", "stderr"):
        _make_usable(stream)


def _make_usable(name: str) -> None:
    """Give a stream that was closed somewhere to write, and one that lacks characters a way out."""
    stream = getattr(sys, name)
    if stream is None:
        setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
    elif isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def run(arguments: list[str], *, now: Callable[[], datetime] = current_date) -> int:
    """Run the command line with ``arguments`` and return the exit code; the one catch point.

    Args:
        arguments: What was typed.
        now: Returns the date that reports and records tell.
    """
    invocation = None
    try:
        invocation = Invocation(tuple(arguments), now())
        given = arguments or ["--help"]
        parse = _parser(arguments)
        code = int(parse(given, prog_name="frozenbn", standalone_mode=False, obj=invocation) or 0)
    except FrozenBNError as error:
        if was_interrupted():
            return end_interrupted()
        return _fail(error, arguments, invocation)
    except _ParserError as error:
        return _fail(usage_error(error, arguments), arguments, invocation)
    except Exception as error:  # A crash must not look like the answer "no".
        if was_interrupted():
            return end_interrupted()
        return _fail(internal_error(error), arguments, invocation)
    if not arguments:  # The help says which there are; what was wanted is still unknown.
        return UsageError.exit_code
    return end_interrupted() if code == INTERRUPTED else code  # So Typer's KeyboardInterrupt ends.


def _fail(error: FrozenBNError, arguments: list[str], invocation: Invocation | None) -> int:
    if "--json" in arguments:
        documents = import_quietly("frozenbn_cli.reports.documents")
        document = documents.error_document(arguments[0], error)
        if invocation:
            document["run"] = invocation().document()
        with suppress(OutputError), reader_may_leave():
            print_json(document)
    return complain(error)
