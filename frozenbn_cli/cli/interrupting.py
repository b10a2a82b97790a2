"""Ctrl-C and its like: at any moment they end in exit code 130, and never in a traceback."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

__all__ = ["end_interrupted", "was_interrupted", "watch_signals"]

_seen: list[int] = []


def watch_signals() -> None:
    """Let signals interrupt what runs, those that the parent ignores on purpose excepted."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, _: object) -> NoReturn:
    _seen.append(number)
    raise KeyboardInterrupt


def was_interrupted() -> bool:
    """Return whether a signal came, also where an import made another exception of it."""
    return bool(_seen)


def end_interrupted() -> int:
    """Say that it was interrupted, and return the exit code."""
    from frozenbn_cli.errors import INTERRUPTED  # Signals are watched first.

    sys.stderr.write("frozenbn: interrupted; nothing unfinished was left behind\n")
    return INTERRUPTED
