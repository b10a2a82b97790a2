"""Worker processes of our own, as an executor: one that dies takes only its own work with it.

Beyond `concurrent.futures.ProcessPoolExecutor`: a worker that is killed (memory ran out) fails one
future and is replaced; workers can be told to end; they are out of reach of the terminal's Ctrl-C,
which their parent turns into an orderly end; the number of threads of each is bounded; and a script
needs no ``if __name__ == "__main__"``, since a worker does not import it.
"""

from __future__ import annotations

import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from typing import Any, BinaryIO, NoReturn

from frozenbn_cli.errors import OutputError

__all__ = ["WorkerDiedError", "WorkerPool", "answer", "default_jobs", "serve"]

_START = """
import pickle, sys
sys.path[:] = pickle.load(sys.stdin.buffer)
from frozenbn_cli.many_files.worker_pool import serve
serve()
"""
_MOST_JOBS = 8
_GRACE_SECONDS = 5.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class WorkerDiedError(OutputError):
    """A worker process ended in the middle of its work."""


def default_jobs() -> int:
    """Return how many workers are started if nobody says: one for each core, 8 at most."""
    return min(_cores(), _MOST_JOBS)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # What is ours, in a container or a Slurm job too.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class WorkerPool(Executor):
    """An executor of worker processes, each started when it is first needed.

    Args:
        jobs: How many.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._waiting: queue.SimpleQueue[tuple[Future[Any], bytes] | None] = queue.SimpleQueue()
        self._workers = [_Worker(self._waiting, max(1, _cores() // jobs)) for _ in range(jobs)]

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn`` in a worker; it, its arguments and what it returns must be picklable."""
        future: Future[Any] = Future()
        # Bytes within a pickle: one that cannot be read does not take the next with it.
        self._waiting.put((future, pickle.dumps(pickle.dumps((fn, args, kwargs)))))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers once they have done what was submitted."""
        if cancel_futures:
            self._cancel()
        for _ in self._workers:
            self._waiting.put(None)
        if wait:
            for worker in self._workers:
                worker.thread.join()

    def terminate(self) -> None:
        """End the workers in the middle of their work; they clean up if they can."""
        self._cancel()
        for worker in self._workers:
            worker.terminate()
        self.shutdown(wait=False)
        for worker in self._workers:
            worker.reap()

    def _cancel(self) -> None:
        with suppress(queue.Empty):
            while True:
                if item := self._waiting.get_nowait():
                    item[0].cancel()
                    item[0].set_running_or_notify_cancel()  # For those who wait for it.


class _Worker:
    """A thread that hands work to a process of its own, and starts another if that one dies."""

    def __init__(
        self, waiting: queue.SimpleQueue[tuple[Future[Any], bytes] | None], threads: int
    ) -> None:
        self._waiting = waiting
        self._environment = dict.fromkeys(_THREAD_VARIABLES, str(threads)) | dict(os.environ)
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = False
        self._lock = threading.Lock()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def terminate(self) -> None:
        with self._lock:
            self._ending = True
            if self._process:
                self._process.terminate()

    def reap(self) -> None:
        """Wait until the process has ended, and kill it if it does not."""
        if self._process:
            try:
                self._process.wait(_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self.thread.join()

    def _run(self) -> None:
        while item := self._waiting.get():
            future, work = item
            if future.set_running_or_notify_cancel():
                self._do(future, work)
        if self._process:
            self._close(self._process)

    def _do(self, future: Future[Any], work: bytes) -> None:
        process = None
        try:
            process = self._started()
            _send(process.stdin, work)
            reply = pickle.load(process.stdout)  # type: ignore[arg-type]  # noqa: S301
        except (EOFError, OSError, pickle.UnpicklingError) as error:
            future.set_exception(self._died(process) if process else error)
            return
        try:
            done, value = pickle.loads(reply)  # noqa: S301  # From our own child.
        except Exception as error:  # Whatever a class raises that is made anew.
            done, value = False, error
        (future.set_result if done else future.set_exception)(value)

    def _started(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._ending:
                raise EOFError
            if self._process is None:
                self._process = subprocess.Popen(  # noqa: S603  # Ourselves.
                    [sys.executable, "-c", _START],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=self._environment,
                    start_new_session=True,
                )
                _send(self._process.stdin, pickle.dumps(sys.path))
            return self._process

    def _died(self, process: subprocess.Popen[bytes]) -> WorkerDiedError:
        self._process = None
        code = self._close(process)
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return WorkerDiedError(
            f"the worker process died ({how})",
            advice="If memory ran out, try fewer --jobs." if code == -signal.SIGKILL else "",
        )

    @staticmethod
    def _close(process: subprocess.Popen[bytes]) -> int:
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                pipe.close()  # type: ignore[union-attr]
        return process.wait()


def _send(pipe: Any, work: bytes) -> None:
    pipe.write(work)
    pipe.flush()


# In the worker


class _Terminated(BaseException):  # No error, and nothing that code would catch.
    pass


def serve() -> NoReturn:
    """Do what the parent asks for until it has no more; what is printed goes to stderr."""
    signal.signal(signal.SIGTERM, _terminate)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        answer(sys.stdin.buffer, answers)
    except (_Terminated, OSError):  # Threads that still read are not waited for.
        os._exit(128 + signal.SIGTERM)
    os._exit(0)


def _terminate(*_: object) -> NoReturn:
    raise _Terminated


def answer(questions: BinaryIO, answers: BinaryIO) -> None:
    """Answer each pickled question with whether it was done, and the result or the exception."""
    while True:
        try:
            question = pickle.load(questions)  # noqa: S301  # From our own parent.
        except EOFError:
            return
        _send(answers, pickle.dumps(_answered(question)))


def _answered(question: bytes) -> bytes:
    try:
        fn, args, kwargs = pickle.loads(question)  # noqa: S301
        return pickle.dumps((True, fn(*args, **kwargs)))
    except Exception as error:  # It is for the parent, as in every executor.
        try:
            return pickle.dumps((False, error))
        except Exception:  # Whatever an exception's own code raises.
            return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
