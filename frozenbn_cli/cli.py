"""The command line: parse, call, print, exit."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from frozenbn_cli import __version__, options
from frozenbn_cli.batch import convert_files
from frozenbn_cli.conversion import ConversionResult, ConvertOptions, convert_file
from frozenbn_cli.dask_cluster import dask_executor
from frozenbn_cli.errors import FrozenBNError, OutputError, RefusedError, UsageError
from frozenbn_cli.file_results import FileResult, exit_code_of
from frozenbn_cli.importing import import_quietly
from frozenbn_cli.inspection import Inspection, inspect_file
from frozenbn_cli.model_files import names_several
from frozenbn_cli.reports.batch_text import batch_report, file_line
from frozenbn_cli.reports.batch_view import BatchView
from frozenbn_cli.reports.console import (
    ProgressBar,
    make_console,
    print_report,
    printable,
)
from frozenbn_cli.reports.documents import (
    batch_document,
    conversion_document,
    error_document,
    error_fields,
    inspection_document,
    to_json,
    verification_document,
)
from frozenbn_cli.reports.inspection_text import inspection_report
from frozenbn_cli.reports.page import Section
from frozenbn_cli.reports.report_file import ReportFile
from frozenbn_cli.reports.sections import (
    conversion_section,
    inspection_section,
    verification_section,
)
from frozenbn_cli.reports.terminal import conversion_report
from frozenbn_cli.reports.verification_text import verification_report
from frozenbn_cli.selection import Selection
from frozenbn_cli.verification.options import VerifyOptions

__all__ = ["app", "main", "run"]

_UNHEALTHY = _DIFFERENT = 1
_INTERRUPTED = 130
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
    eps: options.Eps = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
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
    target = options.parse_model(model, model_arg)
    report_file = _report_file(report, checkpoints, force=force)
    found: list[Inspection | FrozenBNError] = []
    console = make_console(sys.stdout)
    for path in checkpoints:
        try:
            inspection = inspect_file(
                path,
                key=key,
                keep_prefix=keep_prefix,
                eps=eps,
                selection=Selection.of(include or (), exclude or ()),
                model=target,
                summarize=report_file is not None,
            )
        except FrozenBNError as error:
            found.append(error)
            if not as_json:
                _complain(error)
            continue
        found.append(inspection)
        if not as_json and not quiet:
            with _reader_may_leave():
                if len(found) > 1:
                    print_report(console, Text())
                print_report(console, inspection_report(inspection, console, all_layers=all_layers))
    document = inspection_document(found)
    failed = _write_report(
        report_file, "inspect", [inspection_section(item) for item in found], document
    )
    with _reader_may_leave():
        if as_json:
            typer.echo(to_json(document))
        elif not quiet and not failed:
            _announce(report_file, console)
    failures = [item.exit_code for item in found if isinstance(item, FrozenBNError)]
    unhealthy = any(item.has_errors for item in found if isinstance(item, Inspection))
    raise typer.Exit(max(failed, *failures, _UNHEALTHY if check and unhealthy else 0))


@app.command(epilog=options.CONVERT_EXAMPLES)
def convert(
    checkpoints: options.Checkpoints,
    output: options.OutputPath = None,
    to: options.To = None,
    key: options.Key = None,
    keep_prefix: options.KeepPrefix = False,
    eps: options.Eps = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
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
    report_file = _report_file(report, [*checkpoints, output], force=force)
    how = ConvertOptions(
        to=to.value if to else None,
        key=key,
        keep_prefix=keep_prefix,
        eps=eps,
        selection=Selection.of(include or (), exclude or ()),
        force=force,
        force_unhealthy=force_unhealthy,
        dry_run=dry_run,
        verify=not no_verify,
        model=options.parse_model(model, model_arg),
        input_shapes=options.parse_shapes(input_shape),
        inputs=inputs,
        seed=seed,
        runs=runs,
        trust=trust,
        summarize=report_file is not None,
    )
    if output_dir is not None:
        if output is not None:
            raise UsageError("--output and --output-dir are given; one of them says where")
        if report is not None:
            raise UsageError("--report shows one conversion; --json tells of many")
        what = partial(
            convert_files,
            checkpoints,
            output_dir=output_dir,
            options=how,
            recursive=recursive,
            skip_existing=skip_existing,
            jobs=jobs,
        )
        raise typer.Exit(
            _convert_many(what, scheduler, all_files=all_layers, as_json=as_json, quiet=quiet)
        )
    several = recursive or skip_existing or jobs or scheduler or len(checkpoints) > 1
    if several or names_several(checkpoints[0]):
        raise UsageError("several files", expected="--output-dir DIR for the results")

    @_reader_may_leave()
    def show(result: ConversionResult, error: RefusedError | None = None) -> int:
        failure = {"error": error_fields(error)} if error else {}
        document = conversion_document(result) | failure
        section = conversion_section(result, error)
        failed = _write_report(report_file, "convert", [section], document)
        if as_json:
            typer.echo(to_json(document))
        elif not quiet:
            console = make_console(sys.stdout)
            print_report(console, conversion_report(result, console, all_layers=all_layers))
            if not failed:
                _announce(report_file, console)
        return failed

    try:
        with ProgressBar(sys.stderr) as progress:
            result = convert_file(checkpoints[0], output, options=how, progress=progress)
    except RefusedError as error:
        if error.result is None:
            raise
        failed = show(error.result, error)
        raise typer.Exit(max(failed, _complain(error))) from error
    raise typer.Exit(show(result))


def _convert_many(
    convert_with: Callable[..., list[FileResult]],
    scheduler: str | None,
    *,
    all_files: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Convert many files, show what becomes of them, and return the exit code."""
    console = make_console(sys.stdout)
    as_lines = not (as_json or quiet or console.is_terminal)

    @_reader_may_leave()
    def show(result: FileResult) -> None:
        print_report(console, file_line(result, console))

    def complain(result: FileResult) -> None:
        if result.error:
            _complain(result.error, result.traceback)

    started = time.perf_counter()
    live = None if quiet else make_console(sys.stderr)
    with BatchView(live, show=show if as_lines else None, complain=complain) as view:
        try:
            with dask_executor(scheduler) if scheduler else nullcontext() as executor:
                convert_with(executor=executor, progress=view)
        except KeyboardInterrupt:
            if not view.total:
                raise
    seconds = time.perf_counter() - started
    with _reader_may_leave():
        if as_json:
            typer.echo(to_json(batch_document(view.results, total=view.total, seconds=seconds)))
        elif not quiet:
            report = batch_report(
                view.results,
                console,
                total=view.total,
                seconds=seconds,
                table=not as_lines,
                all_files=all_files,
            )
            print_report(console, report)
    return _INTERRUPTED if len(view.results) < view.total else exit_code_of(view.results)


@app.command(epilog=options.VERIFY_EXAMPLES)
def verify(
    original: options.Original,
    converted: options.Converted,
    key: options.Key = None,
    eps: options.Eps = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    model: options.Model = None,
    model_arg: options.ModelArg = None,
    input_shape: options.InputShape = None,
    inputs: options.Inputs = None,
    seed: options.Seed = 0,
    runs: options.Runs = 1,
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
    report_file = _report_file(report, [original, converted], force=force)
    verify_files = import_quietly("frozenbn_cli.verification.files").verify_files
    how = VerifyOptions(
        key=key,
        eps=eps,
        selection=Selection.of(include or (), exclude or ()),
        model=options.parse_model(model, model_arg),
        input_shapes=options.parse_shapes(input_shape),
        inputs=inputs,
        seed=seed,
        runs=runs,
        atol=atol,
        rtol=rtol,
        trust=trust,
        summarize=report_file is not None,
    )
    with ProgressBar(sys.stderr) as progress:
        result = verify_files(original, converted, options=how, progress=progress)
    document = verification_document(result)
    failed = _write_report(report_file, "verify", [verification_section(result)], document)
    with _reader_may_leave():
        if as_json:
            typer.echo(to_json(document))
        elif not quiet:
            console = make_console(sys.stdout)
            print_report(console, verification_report(result, console))
            if not failed:
                _announce(report_file, console)
    raise typer.Exit(max(failed, 0 if result.verdict == "passed" else _DIFFERENT))


def _report_file(
    path: Path | None, others: Sequence[Path | None], *, force: bool
) -> ReportFile | None:
    """Return the report that is asked for, if one is; refuse it before any work is done."""
    if path is None:
        return None
    report = ReportFile(path, replace=force)
    report.check(others)
    return report


def _write_report(
    report: ReportFile | None,
    command: Literal["convert", "inspect", "verify"],
    sections: Sequence[Section],
    document: dict[str, Any],
) -> int:
    """Write the report that was asked for, if one was; return the exit code that this takes."""
    if report is not None:
        try:
            report.write(command, sections, document)
        except FrozenBNError as error:
            return _complain(error)
    return 0


def _announce(report: ReportFile | None, console: Console) -> None:
    if report is not None:
        print_report(console, Text(f"\n{report.announcement}"))


def main() -> NoReturn:
    """Run the command line and exit with its code."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _interrupt)
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
        code = int(app(arguments, prog_name="frozenbn", standalone_mode=False) or 0)
    except FrozenBNError as error:
        return _fail(error, arguments)
    except _ParserError as error:
        message = error.format_message().rstrip(".")
        if not message:  # No arguments: the help was shown.
            return UsageError.exit_code
        return _fail(UsageError(message, advice="See `frozenbn --help`."), arguments)
    except Exception as error:  # A crash must not look like the answer "no".
        bug = FrozenBNError(
            f"internal error ({type(error).__name__}: {error})",
            advice="This is a bug of frozenbn; FROZENBN_DEBUG=1 shows where it happened.",
        )
        return _fail(bug, arguments)
    if code == _INTERRUPTED:  # Typer turns KeyboardInterrupt into this.
        sys.stderr.write("frozenbn: interrupted; nothing unfinished was left behind\n")
    return code


def _fail(error: FrozenBNError, arguments: list[str]) -> int:
    if "--json" in arguments:
        with suppress(OutputError), _reader_may_leave():
            typer.echo(to_json(error_document(arguments[0], error)))
    return _complain(error)


def _complain(error: FrozenBNError, trace: str | None = None) -> int:
    if os.environ.get("FROZENBN_DEBUG"):
        sys.stderr.write(traceback.format_exc() if trace is None else trace)
    with suppress(OSError):
        make_console(sys.stderr).print(printable(f"frozenbn: {error}"), style="red", soft_wrap=True)
    return error.exit_code


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Go on silently where whoever reads the output has seen enough and closed the pipe."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(f"standard output: cannot be written ({error.strerror})") from error
