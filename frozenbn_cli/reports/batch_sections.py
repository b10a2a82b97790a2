"""What a report in a file says of each of many files that were converted."""

from __future__ import annotations

from frozenbn_cli.many_files.file_results import FileResult
from frozenbn_cli.reports.console import printable
from frozenbn_cli.reports.conversions import describe_conversion
from frozenbn_cli.reports.description import FileFacts, Glance, Section, Verdict

__all__ = ["describe_file"]


def describe_file(result: FileResult) -> Section:
    """Return what a report says of a file that was converted, skipped, or could not be read."""
    if result.conversion is not None:
        return describe_conversion(result.conversion, result.error)
    files = [FileFacts("input", printable(result.path))]
    then = Glance()
    if result.output is not None:
        files.append(FileFacts("output", printable(result.output)))
        then = Glance(then=files[-1].path)
    return Section(
        command="convert",
        title=printable(result.path.name),
        verdict=_verdict(result),
        files=tuple(files),
        glance=then,
    )


def _verdict(result: FileResult) -> Verdict:
    if result.error:
        return Verdict("bad", "Failed", printable(result.error))
    if result.state == "skipped":
        detail = "Its output was there already, made of the same source with the same options."
        return Verdict("plain", "Skipped", detail)
    return Verdict("good", "Converted before", "By a worker that was lost before it could tell.")
