"""Follows a conversion of many files: a live table on a terminal, a line for each elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from frozenbn_cli.many_files.file_results import FileResult
from frozenbn_cli.reports.batch_text import file_table, state_cell
from frozenbn_cli.reports.console import printable, symbol
from frozenbn_cli.wording import counted

__all__ = ["BatchView"]

_MOST_ROWS = 16
_ROWS_BESIDE = 6
_REFRESHES_PER_SECOND = 8


class BatchView:
    """What is seen of many files while they are converted; the library's progress callback.

    The live table is gone when all is done. What is wrong with a file is told at once, or, where
    that would break into the table, after it.

    Args:
        console: Of the stream that the live table is shown on, if it is a terminal; None for none.
        show: Is given a line for each file as it is finished; None where nobody wants it.
        complain: Is given each file that failed.
    """

    def __init__(
        self,
        console: Console | None,
        *,
        show: Callable[[FileResult], None] | None,
        complain: Callable[[FileResult], None],
    ) -> None:
        self.total = 0
        self._order: dict[Path, int] = {}
        self._finished: list[FileResult] = []
        self._show = show
        self._complain = complain
        self._running: dict[Path, tuple[FileResult, float]] = {}
        self._recent: deque[FileResult] = deque(maxlen=_MOST_ROWS)
        self._failed = 0
        self._live: Live | None = None
        if console and console.is_terminal:
            self._console = console
            self._bar = Progress(
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task("files", total=None)
            self._live = Live(
                console=console,
                get_renderable=self.rendered,
                refresh_per_second=_REFRESHES_PER_SECOND,
                transient=True,
            )

    def __call__(self, result: FileResult, finished: int, total: int) -> None:
        """Take note of a file whose state has changed."""
        self.total = total
        if result.state == "waiting":
            self._order[result.path] = len(self._order)
        elif result.state == "running":
            self._running[result.path] = result, time.monotonic()
        else:
            self._finish(result)
        if self._live:
            dot = symbol(self._console, "·")
            failed = f" {dot} {self._failed:,} failed" if self._failed else ""
            self._bar.update(
                self._task, completed=finished, total=total, description=f"files{failed}"
            )

    @property
    def results(self) -> list[FileResult]:
        """The files that are finished, in the order in which they were named or found."""
        return sorted(self._finished, key=lambda result: self._order[result.path])

    def _finish(self, result: FileResult) -> None:
        self._running.pop(result.path, None)
        self._recent.append(result)
        self._finished.append(result)
        if self._show:
            self._show(result)
        if result.error:
            self._failed += 1
            if not self._live:
                self._complain(result)

    def rendered(self) -> RenderableType:
        """Return the live table as it is now: what was finished last, what runs, and a bar."""
        most = max(1, min(_MOST_ROWS, self._console.height - _ROWS_BESIDE))
        running = list(self._running.values())[:most]
        recent = list(self._recent)[max(0, len(self._recent) - (most - len(running))) :]
        recent = recent if len(running) < most else []
        table = file_table(self._console, header=False)
        table.add_column("Time", no_wrap=True, justify="right")
        now = time.monotonic()
        rows = [(result, result.seconds) for result in recent]
        rows += [(result, now - started) for result, started in running]
        for result, seconds in rows:
            name = Text(printable(result.path), "" if result.state == "running" else "dim")
            table.add_row(name, state_cell(result, self._console), f"{seconds:.1f} s")
        parts: list[RenderableType] = [table, self._bar]
        if earlier := len(self._finished) - len(recent):
            parts.insert(0, Text(f"{counted(earlier, 'file')} finished before", "dim"))
        return Group(*parts)

    def __enter__(self) -> BatchView:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()
            for result in self.results:
                if result.error:
                    self._complain(result)
