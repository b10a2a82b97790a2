"""Converts many files: one work function, on processes of its own or on any executor."""

from __future__ import annotations

import os
import queue
import secrets
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from frozenbn_cli.containers.atomic_output import marked, remove_marked
from frozenbn_cli.conversion.convert import ConversionResult, ConvertOptions, convert_file
from frozenbn_cli.errors import (
    FrozenBNError,
    OutputError,
    RefusedError,
    UsageError,
    internal_error,
)
from frozenbn_cli.live_models.target import ModelTarget
from frozenbn_cli.many_files.file_results import (
    ConversionSummary,
    FileResult,
    FileState,
    without_tensors,
)
from frozenbn_cli.many_files.model_files import (
    ModelFile,
    check_collisions,
    find_model_files,
    possible_outputs,
)
from frozenbn_cli.many_files.resuming import find_existing
from frozenbn_cli.many_files.worker_pool import WorkerPool, default_jobs
from frozenbn_cli.outputs import OutputFormat
from frozenbn_cli.version import __version__

__all__ = ["BatchProgress", "Job", "convert_files", "convert_one"]

BatchProgress: TypeAlias = Callable[[FileResult, int, int], None]
"""Is told each file whose state has changed, how many are finished, and how many there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One file to convert, for a worker anywhere.

    Attributes:
        file: The input, and where its output belongs.
        options: How to convert it.
        skip_existing: Whether an output that is there, of the same source and options, counts.
        was_there: Whether there was anything under the output's name before the work began.
        mark: Of the temporary files of this run.
        version: Of frozenbn; a worker with another might convert otherwise.
    """

    file: ModelFile
    options: ConvertOptions
    skip_existing: bool
    was_there: bool
    mark: str
    version: str = __version__


def convert_files(
    paths: Iterable[str | Path],
    *,
    output_dir: str | Path,
    options: ConvertOptions | None = None,
    recursive: bool = False,
    skip_existing: bool = False,
    jobs: int | None = None,
    executor: Executor | None = None,
    progress: BatchProgress | None = None,
) -> list[FileResult]:
    """Freeze the BatchNorm2d layers of many checkpoints, each as `convert_file` does.

    One that fails neither stops nor harms another. Interrupted, it leaves what is finished, and
    no temporary file.

    Args:
        paths: Files, folders (the model files in them, or one sharded checkpoint), glob patterns.
        output_dir: Where the results belong; folders below it keep inputs of one name apart.
        options: How to convert each.
        recursive: Look into the folders in folders too.
        skip_existing: Count an output that is there, and was made of the same source with the same
            options, as done.
        jobs: How many worker processes; one for each core, 8 at most, if None.
        executor: Where to convert instead, such as that of a cluster, all of whose workers see the
            paths and have the same version of frozenbn, which is checked. It is not shut down.
        progress: Is told each file whose state has changed.

    Returns:
        What became of each file, in the order in which they were named or found.

    Raises:
        UsageError: Nothing is found, or two outputs would have the same name; before any work.
        OutputError: The output folder cannot be made.
    """
    options = options or ConvertOptions()
    if jobs is not None and jobs < 1:
        raise UsageError(f"jobs {jobs}", expected="1 or more")
    if jobs is not None and executor is not None:
        raise UsageError("jobs are given, and an executor, which has workers of its own")
    files = find_model_files(paths, output_dir=Path(output_dir), recursive=recursive)
    check_collisions(files, options.to)
    if not options.dry_run:
        _make_folder(Path(output_dir))
    mark = secrets.token_hex(4)
    work = [
        Job(
            file=file,
            options=options,
            skip_existing=skip_existing,
            was_there=_is_there(file, options.to),
            mark=mark,
        )
        for file in files
    ]
    with _swept(files, mark):
        if executor is not None:
            return _Batch(executor, work, progress).run(map(_anywhere, work), at_once=len(work))
        pool = WorkerPool(min(jobs or default_jobs(), len(work)))
        try:
            results = _Batch(pool, work, progress).run(work, at_once=pool.jobs)
        except BaseException:
            pool.terminate()
            raise
        pool.shutdown()
        return results


def convert_one(job: Job) -> FileResult:
    """Convert one file, and return what became of it, whatever that is."""
    started = time.perf_counter()
    path = job.file.path
    error: FrozenBNError
    trace = ""
    summary = conversion = None
    try:
        _check_version(job)
        found = _convert_or_find(job)
        return replace(found, seconds=time.perf_counter() - started)
    except RefusedError as refused:
        if refused.result:
            summary = ConversionSummary.of(refused.result)
            conversion = _for_report(refused.result, job)
        error = refused
        # It holds open files.
        error.result = None
    except FrozenBNError as failure:
        error = failure
    except (Exception, SystemExit) as bug:
        # A bug of ours, or of a model's own code, must not stop the other files.
        error = internal_error(bug, where=(str(path),))
        trace = traceback.format_exc()
    return FileResult(
        path=path,
        state="failed",
        summary=summary,
        conversion=conversion,
        error=error.with_traceback(None),
        seconds=time.perf_counter() - started,
        traceback=trace,
    )


def _check_version(job: Job) -> None:
    if job.version != __version__:
        raise OutputError(
            "the worker's frozenbn",
            where=(str(job.file.path),),
            expected=f"version {job.version}",
            found=__version__,
            advice="Install the same version for all workers.",
        )


def _convert_or_find(job: Job) -> FileResult:
    file, options = job.file, job.options
    # What has come since the work began is ours, of a worker that was lost before it could say so.
    if (job.skip_existing or not job.was_there) and _is_there(file, options.to):
        existing = find_existing(file.path, file.output_dir, options)
        if existing:
            state: FileState = "skipped" if job.was_there else "done"
            return FileResult(path=file.path, state=state, output=existing)
    with marked(job.mark):
        result = convert_file(file.path, output_dir=file.output_dir, options=options)
    return FileResult(
        path=file.path,
        state="done",
        output=result.output_path,
        summary=ConversionSummary.of(result),
        conversion=_for_report(result, job),
    )


def _for_report(result: ConversionResult, job: Job) -> ConversionResult | None:
    return without_tensors(result) if job.options.summarize else None


def _is_there(file: ModelFile, to: OutputFormat | None) -> bool:
    return any(map(os.path.lexists, possible_outputs(file, to)))


def _anywhere(job: Job) -> Job:
    """Return the same job for a process that runs in another folder."""
    options = job.options
    if isinstance(options.model, ModelTarget):
        options = replace(options, model=options.model.anywhere())
    if options.inputs is not None:
        options = replace(options, inputs=options.inputs.absolute())
    file = ModelFile(job.file.path.absolute(), job.file.output_dir.absolute())
    return replace(job, file=file, options=options)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot be made ({error.strerror})", where=(str(folder),)) from error


@contextmanager
def _swept(files: Iterable[ModelFile], mark: str) -> Iterator[None]:
    """Remove at the end what workers that were killed could not remove."""
    try:
        yield
    finally:
        for folder in {file.output_dir for file in files}:
            remove_marked(folder, mark)


class _Batch:
    """Work that is handed to an executor, and the results that come back in any order."""

    def __init__(
        self, executor: Executor, work: Sequence[Job], progress: BatchProgress | None
    ) -> None:
        self._executor = executor
        self._work = work
        self._progress = progress or (lambda *_: None)
        self._results: dict[int, FileResult] = {}
        self._pending: dict[int, Future[FileResult]] = {}
        self._finished: queue.SimpleQueue[int] = queue.SimpleQueue()

    def run(self, jobs: Iterable[Job], *, at_once: int) -> list[FileResult]:
        """Return the results in the order of the work; at most ``at_once`` jobs are handed over."""
        for job in self._work:
            self._tell(FileResult(path=job.file.path, state="waiting"))
        waiting = enumerate(jobs)
        try:
            while len(self._results) < len(self._work):
                while len(self._pending) < at_once and (item := next(waiting, None)):
                    self._submit(*item)
                self._receive(self._finished.get())
        except BaseException:
            for future in self._pending.values():
                future.cancel()
            raise
        return [self._results[index] for index in range(len(self._work))]

    def _submit(self, index: int, job: Job) -> None:
        if isinstance(self._executor, WorkerPool):  # Others may have a queue of their own.
            self._tell(FileResult(path=self._work[index].file.path, state="running"))
        try:
            future = self._executor.submit(convert_one, job)
        except Exception as error:  # A broken pool, or work that cannot be pickled.
            future = Future()
            future.set_exception(error)
        self._pending[index] = future
        future.add_done_callback(lambda _: self._finished.put(index))

    def _receive(self, index: int) -> None:
        file = self._work[index].file
        result = _result_of(self._pending.pop(index), file.path)
        output = result.output and file.output_dir / result.output.name
        self._results[index] = replace(result, path=file.path, output=output)
        self._tell(self._results[index])

    def _tell(self, result: FileResult) -> None:
        self._progress(result, len(self._results), len(self._work))


def _result_of(future: Future[FileResult], path: Path) -> FileResult:
    error: FrozenBNError
    try:
        return future.result()
    except FrozenBNError as failure:
        error = failure
    except (Exception, CancelledError) as failure:  # Whatever executors raise where workers fail.
        error = OutputError(f"its worker failed ({type(failure).__name__}: {failure})")
    error.where = (str(path), *error.where)
    return FileResult(path=path, state="failed", error=error)
