"""`frozenbn convert`, of many files."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from frozenbn_cli.cli.options.many_files import ManyArguments
from frozenbn_cli.cli.sink import Sink, complain
from frozenbn_cli.conversion.convert import ConvertOptions
from frozenbn_cli.live_models.unused_options import NOTHING_IS_RUN, check_used
from frozenbn_cli.many_files.batch import convert_files
from frozenbn_cli.many_files.dask_cluster import dask_executor
from frozenbn_cli.many_files.file_results import FileResult, exit_code_of
from frozenbn_cli.outputs import FORMATS
from frozenbn_cli.reports.batch_documents import batch_document
from frozenbn_cli.reports.batch_sections import describe_file
from frozenbn_cli.reports.batch_text import batch_report, file_line
from frozenbn_cli.reports.batch_view import BatchView
from frozenbn_cli.reports.console import make_console

__all__ = ["run"]


def run(
    paths: Sequence[Path],
    many: ManyArguments,
    sink: Sink,
    *,
    output_dir: Path,
    options: ConvertOptions,
    all_files: bool,
) -> int:
    """Convert many files, show what becomes of them, and return the exit code.

    Args:
        paths: Files, folders and patterns.
        many: Which of them, and who converts.
        sink: Where the words go.
        output_dir: Where the results go.
        options: How to convert.
        all_files: Show every file at the end.
    """
    if not options.verify and not (options.to and FORMATS[options.to].is_program):
        check_used(options, not_run=NOTHING_IS_RUN)
    console = sink.console
    as_lines = sink.for_people and not console.is_terminal

    def show(result: FileResult) -> None:
        sink.show(file_line(result, console))

    def complain_of(result: FileResult) -> None:
        if result.error:
            complain(result.error, result.traceback)

    started = time.perf_counter()
    live = None if sink.quiet else make_console(sys.stderr)
    with BatchView(live, show=show if as_lines else None, complain=complain_of) as view:
        try:
            with dask_executor(many.scheduler) if many.scheduler else nullcontext() as executor:
                convert_files(
                    paths,
                    output_dir=output_dir,
                    options=options,
                    recursive=many.recursive,
                    skip_existing=many.skip_existing,
                    jobs=many.jobs,
                    executor=executor,
                    progress=view,
                )
        except KeyboardInterrupt:
            if not view.total:
                raise
    seconds = time.perf_counter() - started
    results = view.results
    sink.show(
        batch_report(
            results,
            console,
            total=view.total,
            seconds=seconds,
            table=not as_lines,
            all_files=all_files,
        )
    )
    failed = sink.deliver(
        "convert",
        lambda: batch_document(results, total=view.total, seconds=seconds),
        lambda: list(map(describe_file, results)),
    )
    return max(failed, exit_code_of(results, view.total))
