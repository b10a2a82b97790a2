"""Where words go: the result to stdout, for people or for programs; all else to stderr."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frozenbn_cli.containers.atomic_output import sweep
from frozenbn_cli.containers.temporary_folder import sweep_temporary
from frozenbn_cli.errors import FrozenBNError, OutputError
from frozenbn_cli.reports.console import ProgressBar, make_console, print_report, printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from frozenbn_cli.reports.description import Command, Section
    from frozenbn_cli.reports.provenance import Provenance
    from frozenbn_cli.reports.report_file import ReportFile

__all__ = ["Sink", "complain", "print_json", "reader_may_leave", "tidy"]


_MOST_SECTIONS = 4


class Sink:
    """What a command prints, and the report that it writes into a file.

    Args:
        provenance: Returns how the result comes about, which few look at.
        as_json: Print one document, and nothing else.
        quiet: Print nothing.
        report: Where a report goes, if one is asked for; refused before any work is done.
        others: The files of the command, which a report never replaces.
        force: Whether a report replaces one that exists.
    """

    def __init__(
        self,
        provenance: Callable[[], Provenance],
        *,
        as_json: bool,
        quiet: bool,
        report: Path | None = None,
        others: Sequence[Path | None] = (),
        force: bool = False,
    ) -> None:
        self._provenance = provenance
        self.as_json = as_json
        self.quiet = quiet
        self._report: ReportFile | None = None
        if report is not None:
            from frozenbn_cli.reports.report_file import ReportFile

            self._report = ReportFile(report, replace=force)
            self._report.check(others)

    @cached_property
    def console(self) -> Console:
        """What reports are printed on."""
        return make_console(sys.stdout)

    @property
    def for_people(self) -> bool:
        """Whether reports are printed."""
        return not self.as_json and not self.quiet

    @property
    def is_kept(self) -> bool:
        """Whether anybody gets a document, which tells the sha256 of files."""
        return self.as_json or self.has_report

    @property
    def has_report(self) -> bool:
        """Whether a report goes into a file."""
        return self._report is not None

    def progress(self) -> ProgressBar:
        """Return what shows the steps of some work on a terminal."""
        return ProgressBar(sys.stderr, is_wanted=not self.quiet)

    def show(self, *parts: RenderableType) -> None:
        """Print for people, at once."""
        if self.for_people:
            with reader_may_leave():
                for part in parts:
                    print_report(self.console, part)

    def _show_sections(self, sections: Sequence[Section], *, all_layers: bool) -> None:
        """Print sections for people, at once; several at a glance first, and many only so."""
        from frozenbn_cli.reports.overview import overview_report
        from frozenbn_cli.reports.terminal import section_report

        is_folded = len(sections) > _MOST_SECTIONS and not all_layers
        if len(sections) > 1:
            hint = "--all shows each file" if is_folded else ""
            self.show(overview_report(sections, self.console, hint=hint))
        for section in () if is_folded else sections:
            if not section.files[0].facts:  # It could not be read, as was told by now.
                continue
            if len(sections) > 1:
                self.show("")
            self.show(section_report(section, self.console, all_layers=all_layers))

    def deliver(
        self,
        command: Command,
        document: Callable[[], dict[str, Any]],
        sections: Callable[[], Sequence[Section]],
        *,
        all_layers: bool | None = None,
    ) -> int:
        """Write the report into its file, and print the result.

        Args:
            command: Whose result it is.
            document: For programs; made only if one gets it.
            sections: The same, for people; made only if somebody sees them.
            all_layers: Whether to show every layer; None where the sections are for reports alone.

        Returns:
            The exit code that a report takes which cannot be written; 0 for all else.
        """
        is_shown = self.for_people and all_layers is not None
        described = sections() if is_shown or self.has_report else ()
        kept = {**document(), "run": self._provenance().document()} if self.is_kept else {}
        failed = self._write_report(command, kept, described)
        if self.as_json:
            with reader_may_leave():
                print_json(kept)
        if is_shown:
            self._show_sections(described, all_layers=bool(all_layers))
        if self._report and not failed:
            self.show(f"\n{self._report.announcement}")
        return failed

    def _write_report(
        self,
        command: Command,
        document: dict[str, Any],
        sections: Sequence[Section],
    ) -> int:
        if self._report is not None:
            from frozenbn_cli.reports.description import Page

            try:
                page = Page(command, self._provenance(), tuple(sections))
                with self.progress() as progress:
                    progress("writing the report", 0, 0)
                    self._report.write(page, document)
            except FrozenBNError as error:
                return complain(error)
        return 0


def print_json(document: dict[str, Any]) -> None:
    """Print a document for programs."""
    from frozenbn_cli.reports.documents import to_json

    sys.stdout.write(to_json(document) + "\n")


def complain(error: FrozenBNError, trace: str | None = None) -> int:
    """Print one line on an error, and return its exit code.

    Args:
        error: What went wrong.
        trace: Its traceback, if it was raised elsewhere.
    """
    if os.environ.get("FROZENBN_DEBUG"):
        sys.stderr.write(traceback.format_exc() if trace is None else trace)
    with suppress(OSError):
        make_console(sys.stderr).print(
            printable(f"frozenbn: {error.shown}"), style="red", soft_wrap=True
        )
    return error.exit_code


def tidy(folder: Path | None = None, *, recursive: bool = False) -> None:
    """Remove what killed runs left in a folder, before another writes into it, and say so.

    So it does with what they left among the temporary files.
    """
    left = sweep(folder, recursive=recursive) if folder else []
    for path in (*left, *sweep_temporary()):
        with suppress(OSError):
            said = f"frozenbn: removed {path}, which a run that was killed had left"
            make_console(sys.stderr).print(printable(said), soft_wrap=True)


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Go on silently where whoever reads the output has seen enough and closed the pipe."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OutputError(f"standard output: cannot be written ({error.strerror})") from error
