"""Worker processes: one that dies takes only its own work with it."""

import io
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from operator import truediv
from pathlib import Path

import pytest

from frozenbn_cli.many_files import worker_pool
from frozenbn_cli.many_files.worker_pool import WorkerDiedError, WorkerPool, answer, default_jobs
from tests.builders.processes import HANG_SECONDS, wait_until


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    """One worker, which is gone after the test, whatever it works on."""
    pool = WorkerPool(1)
    yield pool
    pool.terminate()


def processes_of(pool: WorkerPool) -> list[int]:
    return [worker._process.pid for worker in pool._workers if worker._process]


def work_on(begun: Path) -> None:
    begun.touch()
    while True:
        time.sleep(0.02)


def begin(pool: WorkerPool, begun: Path) -> Future[None]:
    """Return work that has begun, and has no end."""
    future = pool.submit(work_on, begun)
    wait_until(lambda: begun.exists() or future.done())
    return future


def test_gives_results_and_exceptions_and_keeps_its_process() -> None:
    with WorkerPool(1) as pool:
        first = pool.submit(os.getpid).result()

        with pytest.raises(ZeroDivisionError):
            pool.submit(truediv, 1, 0).result()
        assert pool.submit(os.getpid).result() == first != os.getpid()


def test_a_worker_that_dies_fails_its_own_work_and_is_replaced() -> None:
    with WorkerPool(1) as pool:
        dying = pool.submit(os.kill, pool.submit(os.getpid).result(), signal.SIGKILL)
        after = pool.submit(truediv, 6, 2)

        with pytest.raises(WorkerDiedError, match=r"died \(signal 9\).*fewer jobs"):
            dying.result()
        assert after.result() == 3

        with pytest.raises(WorkerDiedError, match=r"died \(exit code 3\)$"):
            pool.submit(os._exit, 3).result()


def test_work_that_a_worker_cannot_read_does_not_harm_the_next() -> None:
    with WorkerPool(1) as pool:
        # This module is no longer there when the worker looks for it.
        sys.modules["gone"] = type(sys)("gone")
        exec("def work(): pass", sys.modules["gone"].__dict__)
        unknown = pool.submit(sys.modules["gone"].work)
        del sys.modules["gone"]

        with pytest.raises(ModuleNotFoundError):
            unknown.result()
        assert pool.submit(truediv, 6, 2).result() == 3


def test_what_work_prints_does_not_disturb_the_answers(capfd: pytest.CaptureFixture[str]) -> None:
    with WorkerPool(1) as pool:
        pool.submit(print, "printed", flush=True).result()

    assert capfd.readouterr() == ("", "printed\n")


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "1")

    with WorkerPool(2) as pool:
        assert pool.submit(os.getenv, "OMP_NUM_THREADS").result() == "3"
        assert pool.submit(os.getenv, "MKL_NUM_THREADS").result() == "1"
    assert default_jobs() == 6


def test_terminate_ends_work_and_drops_what_waits(
    pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "_GRACE_SECONDS", HANG_SECONDS)
    working, waiting = begin(pool, tmp_path / "begun"), pool.submit(os.getpid)
    (process,) = processes_of(pool)

    pool.terminate()

    with pytest.raises(WorkerDiedError, match=r"died \(exit code 143\)$"):
        working.result()
    assert waiting.cancelled()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_worker_that_does_not_end_is_killed(
    pool: WorkerPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_pool, "_GRACE_SECONDS", 0.2)
    pool.submit(signal.signal, signal.SIGTERM, signal.SIG_IGN).result()
    working = begin(pool, tmp_path / "begun")

    pool.terminate()

    with pytest.raises(WorkerDiedError, match=r"died \(signal 9\)"):
        working.result()


def test_workers_are_out_of_reach_of_the_terminal() -> None:
    with WorkerPool(1) as pool:
        assert pool.submit(os.getsid, 0).result() != os.getsid(0)


class Stubborn(Exception):
    def __reduce__(self) -> object:
        raise TypeError("not me")


def fail() -> None:
    raise Stubborn("why")


def test_answers_each_question_also_with_what_cannot_be_pickled() -> None:
    questions = [(truediv, (6, 2), {}), (fail, (), {}), (truediv, (1, 0), {})]
    asked = b"".join(pickle.dumps(pickle.dumps(question)) for question in questions)
    answers = io.BytesIO()

    answer(io.BytesIO(asked), answers)

    answers.seek(0)
    replies = [pickle.loads(pickle.load(answers)) for _ in questions]
    assert replies[0] == (True, 3)
    assert [(done, repr(error)) for done, error in replies[1:]] == [
        (False, "RuntimeError('Stubborn: why')"),
        (False, "ZeroDivisionError('division by zero')"),
    ]
