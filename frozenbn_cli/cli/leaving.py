"""Ends the process without tearing down all that was imported, which takes seconds with PyTorch."""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn

from frozenbn_cli.errors import INTERRUPTED

__all__ = ["leave"]


def leave(code: int) -> NoReturn:
    """End the process with an exit code, after all that was to be done at its end.

    Where nothing goes on beside, memory is left to the operating system: what was imported takes
    15 ms to tear down, and seconds with PyTorch. Whoever interrupts does not wait for what goes on.
    """
    is_watched = sys.getprofile() or sys.gettrace()  # By what writes its findings at the end.
    if is_watched or _has_processes() or (_has_threads() and code != INTERRUPTED):
        sys.exit(code)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # Nobody reads it any more.
            stream.flush()
    os._exit(code)


def _has_processes() -> bool:
    multiprocessing = sys.modules.get("multiprocessing")
    return "distributed" in sys.modules or bool(
        multiprocessing and multiprocessing.active_children()
    )


def _has_threads() -> bool:
    others = (thread for thread in threading.enumerate() if thread is not threading.main_thread())
    return any(not thread.daemon for thread in others)
