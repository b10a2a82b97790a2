"""How far a piece of work has come, and how long each of its stages took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Progress", "Stages"]

Progress = Callable[[str, int, int], None]
"""Is told the stage, the bytes or layers done, and the total."""


class Stages:
    """The stages of one piece of work.

    Args:
        progress: Is told how far each stage has come.

    Attributes:
        seconds: The time of each stage that is done, by name.
    """

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Measure what is done within; a stage may go on later."""
        started = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started

    def counter(self, stage: str, total: int) -> Callable[[int], None]:
        """Return what is told how much more of a stage is done."""
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            if self._progress is not None:
                self._progress(stage, done, total)

        return count
