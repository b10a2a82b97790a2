"""Where reports are printed: what suits the stream at hand, be it a terminal, a pipe or a file."""

from __future__ import annotations

import time
from types import TracebackType
from typing import IO

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from frozenbn_cli.wording import printable

__all__ = ["ProgressBar", "make_console", "print_report", "printable", "suited", "symbol"]

_UNBOUNDED = 100_000
_PATIENCE_SECONDS = 1.0
_ASCII = {
    "→": "->",
    "✓": "ok",
    "✗": "X",
    "·": "|",
    "–": "-",
    "…": "...",
    "×": "x",
    "▁": ".",
    "σ": "s",
}


def make_console(stream: IO[str]) -> Console:
    """Return a console for ``stream``; lines are as long as they need to be where nobody wraps.

    NO_COLOR and FORCE_COLOR are respected, each stream is judged on its own.
    """
    console = Console(file=stream, highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console = Console(file=stream, highlight=False, emoji=False, markup=False, width=_UNBOUNDED)
    return console


def symbol(console: Console, character: str) -> str:
    """Return ``character``, or what stands for it where the stream's encoding lacks it."""
    try:
        character.encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return _ASCII.get(character, "?")
    return character


def suited(text: str, console: Console) -> str:
    """Return our own words with what stands for the characters that the stream's encoding lacks."""
    if symbol(console, "→") == "→":
        return text
    return "".join(
        character if character.isascii() else symbol(console, character) for character in text
    )


def print_report(console: Console, report: RenderableType) -> None:
    """Print ``report`` without trailing blanks; what the encoding lacks is escaped."""
    with console.capture() as capture:
        console.print(report)
    text = "\n".join(line.rstrip() for line in capture.get().splitlines())
    encoding = console.encoding
    console.file.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    console.file.flush()


class ProgressBar:
    """A bar on a terminal for work that takes longer than a second; gone when it is done.

    Called with a stage, what is done and the total, as the library's progress callback.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._console = make_console(stream)
        self._started = time.monotonic()
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show how far ``stage`` has come; the bar appears after a second."""
        if not self._console.is_terminal:
            return
        if self._bar is None:
            if time.monotonic() - self._started < _PATIENCE_SECONDS:
                return
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.start()
        if stage not in self._tasks:
            for task in self._tasks.values():
                self._bar.update(task, visible=False)
            self._tasks[stage] = self._bar.add_task(stage, total=total or None)
        self._bar.update(self._tasks[stage], completed=done)

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
