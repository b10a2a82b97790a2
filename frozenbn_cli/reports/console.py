"""Where reports are printed: what suits the stream at hand, be it a terminal, a pipe or a file."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import IO, TYPE_CHECKING

from frozenbn_cli.wording import printable

if TYPE_CHECKING:  # Where nothing is printed, Rich need not be imported.
    from rich.console import Console, RenderableType
    from rich.progress import Progress

__all__ = ["ProgressBar", "make_console", "print_report", "printable", "suited", "symbol"]

_UNBOUNDED = 100_000
_PATIENCE_SECONDS = 0.5
_BEFORE = "reading"
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
    from rich.console import Console

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
    """A line on a terminal for work that takes longer than a moment; gone when it is done.

    Called with a step, what of it is done and the total, as the library's progress callback. The
    line appears by itself, so that a step that says nothing for long is named too, and a step that
    is done shows no full bar while something else goes on.

    Args:
        stream: Shown on it, if it is a terminal.
        is_wanted: Whether anything is shown at all.
    """

    def __init__(self, stream: IO[str], *, is_wanted: bool = True) -> None:
        self._lock = threading.Lock()
        self._now: tuple[str, int, int] = (_BEFORE, 0, 0)
        self._bar: Progress | None = None
        self._timer: threading.Timer | None = None
        if is_wanted and (console := make_console(stream)).is_terminal:
            self._console = console
            self._timer = threading.Timer(_PATIENCE_SECONDS, self._appear)
            self._timer.daemon = True

    def __call__(self, step: str, done: int, total: int) -> None:
        """Show that a step has begun, or how far it has come."""
        with self._lock:
            is_new = step != self._now[0]
            self._now = step, done, total
            if self._bar:
                self._update(self._bar, is_new=is_new)

    def _appear(self) -> None:
        from rich import progress

        with self._lock:
            if self._timer is None:
                return
            self._bar = progress.Progress(
                progress.SpinnerColumn("line"),
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._bar.add_task("")
            self._update(self._bar, is_new=True)
            self._bar.start()

    def _update(self, bar: Progress, *, is_new: bool) -> None:
        step, done, total = self._now
        (task,) = bar.task_ids
        if is_new:
            bar.reset(task, description=printable(step))
        bar.update(task, completed=done)
        # Of what is done, or nobody can tell how long it takes, the bar moves to and fro.
        bar.tasks[0].total = total if done < total else None

    def __enter__(self) -> ProgressBar:
        if self._timer and _PATIENCE_SECONDS > 0:
            self._timer.start()
        elif self._timer:
            self._appear()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._timer:
            self._timer.cancel()
        with self._lock:
            self._timer = None
            if self._bar:
                self._bar.stop()
