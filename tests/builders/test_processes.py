"""Processes of tests: signals act on them as in a terminal, and nothing of them is left."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.builders.processes import running, wait_until

PRINT_IGNORED = """
import signal
kept = [one.name for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
        if signal.getsignal(one) == signal.SIG_IGN]
print(kept, signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


@pytest.fixture
def _in_the_background() -> Iterator[None]:
    """Ignore and block what a shell's `&`, `nohup` and a job scheduler may."""
    signals = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
    before = [signal.signal(one, signal.SIG_IGN) for one in signals]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for one, handler in zip(signals, before, strict=True):
        signal.signal(one, handler)


@pytest.mark.usefixtures("_in_the_background")
@pytest.mark.parametrize(("ignored", "shown"), [([], "[]"), ([signal.SIGHUP], "['SIGHUP']")])
def test_only_what_is_named_is_ignored(ignored: list[signal.Signals], shown: str) -> None:
    with running([sys.executable, "-c", PRINT_IGNORED], ignored=ignored) as process:
        out, err = process.communicate()

    assert (out, err) == (f"{shown} set()\n", "")


def test_a_failure_leaves_no_process_and_no_pipe() -> None:
    with (
        pytest.raises(ZeroDivisionError),
        running([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process,
    ):
        raise ZeroDivisionError

    assert process.returncode == -signal.SIGKILL
    assert all(pipe.closed for pipe in (process.stdin, process.stdout, process.stderr) if pipe)
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_waits_for_nothing_that_cannot_come() -> None:
    with (
        running([sys.executable, "-c", "raise SystemExit(3)"]) as process,
        pytest.raises(AssertionError, match=r"ended too early: exit codes \[3\]"),
    ):
        wait_until(lambda: False, process)
