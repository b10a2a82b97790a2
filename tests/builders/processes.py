"""Processes of a test: started as a terminal would start them, and gone when the test is."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# No process takes so long, however little of the machine it is left: one that does hangs.
HANG_SECONDS = 600.0

# What is ignored stays so in the processes below; Python itself ignores some signals at its start.
_LIKE_A_TERMINAL = """
import os, signal, sys
ignored = set(map(int, filter(None, sys.argv[1].split(","))))
signal.pthread_sigmask(signal.SIG_SETMASK, ())
for number in signal.valid_signals():
    if number in ignored:
        signal.signal(number, signal.SIG_IGN)
    elif signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
os.execvp(sys.argv[2], sys.argv[2:])
"""


@contextmanager
def running(
    command: Sequence[object], *, ignored: Collection[signal.Signals] = (), **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """Start a command on which signals act as in a terminal, however the tests were started.

    Where they are started in the background, by `nohup` or by a job scheduler, a signal that is
    ignored there would be ignored by the command too. Both outputs are pipes unless ``options``
    say otherwise. When the block is left, the command is killed, and its pipes are closed.

    Args:
        command: The program, looked up in PATH, and its arguments.
        ignored: The signals that it shall inherit as ignored.
        options: For `subprocess.Popen`.
    """
    numbers = ",".join(str(int(one)) for one in ignored)
    start = [sys.executable, "-I", "-S", "-c", _LIKE_A_TERMINAL, numbers, *map(str, command)]
    outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(start, text=True, **outputs | options) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(condition: Callable[[], object], *processes: subprocess.Popen[str]) -> None:
    """Wait for what ``processes`` bring about, as long as all of them live."""
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
        codes = [process.poll() for process in processes]
        assert codes == [None] * len(codes), f"ended too early: exit codes {codes}"
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(0.02)
