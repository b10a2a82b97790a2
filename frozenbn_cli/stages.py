"""Which step a piece of work is at, how far that has come, and how long each stage took."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

from frozenbn_cli.importing import import_quietly

__all__ = ["Progress", "Stages", "begin", "import_torch_for", "tell", "telling"]

Progress = Callable[[str, int, int], None]
"""Is told the step, how much of it is done (bytes, layers, runs), and the total; 0 if unknown."""

_told: ContextVar[Progress | None] = ContextVar("told", default=None)


@contextmanager
def telling(progress: Progress | None) -> Iterator[None]:
    """Tell ``progress`` of the steps that begin within; what is told already is, if it is None."""
    token = _told.set(progress or _told.get())
    try:
        yield
    finally:
        _told.reset(token)


def begin(step: str, total: int = 0) -> Callable[[int], None]:
    """Say that a step begins, which ends where the next one does.

    Args:
        step: Its name, as *building the model*.
        total: How much there is to do; 0 where nobody can tell.

    Returns:
        What is told how much more of it is done.
    """
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        tell(step, done, total)

    count(0)
    return count


def tell(step: str, done: int, total: int) -> None:
    """Pass on how far a step has come, as whoever is at work on it says."""
    progress = _told.get()
    if progress is not None:
        progress(step, done, total)


def import_torch_for(name: str) -> ModuleType:
    """Import a module of this package that imports torch, a step of its own the first time."""
    if "torch" not in sys.modules:
        begin("importing torch")
    return import_quietly(name)


class Stages:
    """The time that each stage of one piece of work took.

    Attributes:
        seconds: The time of each stage that is done, by name.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Measure what is done within; a stage may go on later."""
        started = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started
