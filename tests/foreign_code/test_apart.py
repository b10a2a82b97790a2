"""A job has a process of its own: whatever becomes of it, this one goes on and says what."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from frozenbn_cli.errors import UsageError
from frozenbn_cli.foreign_code import apart
from frozenbn_cli.foreign_code.apart import CAN_RUN, JobFailed, run_apart
from frozenbn_cli.stages import telling
from tests.builders.processes import HANG_SECONDS, wait_until
from tests.foreign_code import jobs

pytestmark = pytest.mark.skipif(not CAN_RUN, reason="code of files runs in this process here")


@pytest.fixture
def bare_process(process_of_its_own: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a test have the process ended: one that finds no PyTorch, and so starts at once."""
    monkeypatch.setattr(apart, "_MODULES", ())
    found = [folder for folder in sys.path if Path(folder).name != "site-packages"]
    monkeypatch.setattr(sys, "path", found)


def failure(job: Any, timeout: float = 100) -> str:
    with pytest.raises(JobFailed) as caught:
        run_apart(job, timeout=timeout)
    return str(caught.value)


def test_returns_what_the_job_returns() -> None:
    assert run_apart(partial(jobs.add, 1, second=2), timeout=100) == 3


def test_tells_the_steps_of_a_job_and_nothing_that_is_none() -> None:
    told: list[tuple[str, int, int]] = []

    with telling(lambda *step: told.append(step)):
        assert run_apart(jobs.work_in_steps, timeout=100) == "result"

    assert told == [
        ("running the model (1 of 4)", 0, 2),
        ("running the model (1 of 4)", 1, 2),
        ("\\x1b[31mforged", 0, 7),
        ("done", 0, 0),
    ]


def test_a_job_is_where_its_asker_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_apart(os.getcwd, timeout=100) == str(Path.cwd())
    monkeypatch.chdir(tmp_path)
    assert run_apart(os.getcwd, timeout=100) == str(tmp_path)
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run_apart(partial(jobs.add, 1, 1), timeout=100) == 2


def test_a_job_finds_the_modules_of_its_asker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_apart(partial(jobs.add, 1, 1), timeout=100) == 2
    (tmp_path / "found_later.py").write_text("def answer():\n    return 42\n")
    monkeypatch.syspath_prepend(tmp_path)
    job = importlib.import_module("found_later").answer

    assert run_apart(job, timeout=100) == 42


def test_jobs_find_pytorch_imported() -> None:
    assert run_apart(partial(jobs.is_imported, "torch"), timeout=100) is True


@pytest.mark.usefixtures("bare_process")
def test_a_process_that_is_about_to_end_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends when no job came for long, and is still there for a moment."""
    assert run_apart(partial(jobs.add, 1, 1), timeout=100) == 2
    (server,) = apart._servers
    server._process.kill()
    server._process.wait()
    monkeypatch.setattr(type(server), "is_there", property(lambda _: True))

    assert run_apart(partial(jobs.add, 1, 1), timeout=100) == 2


def test_takes_a_job_of_many_bytes() -> None:
    assert run_apart(partial(len, b"x" * (10 << 20)), timeout=100) == 10 << 20


def test_hands_on_errors_that_were_raised_on_purpose() -> None:
    with pytest.raises(UsageError) as caught:
        run_apart(jobs.refuse, timeout=100)

    assert str(caught.value) == "a, b: what: expected x, found y. Do it."


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        (jobs.crash, "it ended the process that ran it (SIGSEGV)"),
        (jobs.leave, "it ended the process that ran it (exit code 7)"),
        (jobs.answer_itself, "it ended the process that ran it (exit code 0)"),
        (partial(jobs.fail, KeyError), "it failed (KeyError 'as expected')"),
        (partial(jobs.fail, SystemExit), "it failed (SystemExit as expected)"),
        (partial(jobs.fail, MemoryError), "it failed (it takes more memory than there is)"),
    ],
)
def test_says_what_became_of_a_job(job: Any, reason: str) -> None:
    assert failure(job) == reason
    assert run_apart(partial(jobs.add, 1, 1), timeout=100) == 2


@pytest.mark.usefixtures("bare_process")
def test_ends_what_goes_on_for_ever() -> None:
    assert failure(jobs.loop, timeout=0.5) == (
        "it was not done after 0.5 seconds; --timeout allows more"
    )


@pytest.mark.usefixtures("bare_process")
def test_ends_what_runs_when_it_is_interrupted() -> None:
    with interruptible(), pytest.raises(KeyboardInterrupt):
        run_apart(partial(jobs.loop, os.getpid()), timeout=HANG_SECONDS)


@contextmanager
def interruptible() -> Iterator[None]:
    """Hear of Ctrl-C, which a process in the background ignores, and one of a scheduler may block.

    The one that runs the tests may be such a process.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)


def test_bounds_memory() -> None:
    assert "allocate" in failure(jobs.allocate)


def test_lets_no_byte_be_written_to_a_file(tmp_path: Path) -> None:
    assert "File too large" in failure(partial(jobs.write, tmp_path / "file"))
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [0]


def test_knows_where_files_would_go() -> None:
    """Libraries ask for it while they are imported."""
    assert run_apart(jobs.folder_for_files, timeout=100) == tempfile.gettempdir()


def test_hands_on_no_descriptors_but_pipes() -> None:
    with Path(os.devnull).open() as file:
        os.set_inheritable(file.fileno(), True)

        assert run_apart(jobs.descriptors, timeout=100) == ["pipe"] * 4


def test_ends_the_processes_that_a_job_leaves_behind() -> None:
    process_id = run_apart(jobs.leave_a_process_behind, timeout=100)

    # It was killed by now, and is gone as soon as the system comes to it.
    wait_until(lambda: state_of(process_id) in ("", "Z"))


def state_of(process_id: int) -> str:
    """Return the letter that tells what a process does, none if it is gone."""
    try:
        status = Path(f"/proc/{process_id}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return status.partition("State:\t")[2][:1]


def test_gives_what_was_printed_to_whoever_asks(capfd: pytest.CaptureFixture[str]) -> None:
    heard: list[str] = []

    run_apart(partial(jobs.talk, 3), timeout=100, say=heard.append)

    assert heard == ["said\nsaid\nsaid\nshouted\n"]
    assert capfd.readouterr() == ("", "")


def test_does_not_drown_in_what_is_printed() -> None:
    heard: list[str] = []

    run_apart(partial(jobs.talk, 100_000), timeout=100, say=heard.append)

    assert len(heard[0]) == 16 << 10


def test_says_what_cannot_be_sent() -> None:
    assert "cannot be sent to the process that runs code of a file" in failure(lambda: 1)
