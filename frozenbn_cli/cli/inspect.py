"""`frozenbn inspect`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.text import Text

from frozenbn_cli.cli.sink import Sink, complain
from frozenbn_cli.errors import FrozenBNError
from frozenbn_cli.inspection import Inspection
from frozenbn_cli.reports.documents import inspection_document
from frozenbn_cli.reports.inspection_text import inspection_report
from frozenbn_cli.reports.sections import inspection_section

__all__ = ["run"]

_UNHEALTHY = 1


def run(
    paths: Sequence[Path],
    inspect: Callable[[Path], Inspection],
    sink: Sink,
    *,
    all_layers: bool,
    check: bool,
) -> int:
    """Show what files are, one after the other, and return the exit code.

    Args:
        paths: The files.
        inspect: Looks at one.
        sink: Where the words go.
        all_layers: Show every layer.
        check: Whether unhealthy statistics are an exit code.
    """
    found: list[Inspection | FrozenBNError] = []
    for path in paths:
        try:
            inspection = inspect(path)
        except FrozenBNError as error:
            found.append(error)
            if not sink.as_json:
                complain(error)
            continue
        report = inspection_report(inspection, sink.console, all_layers=all_layers)
        sink.show(*([Text()] if found else []), report)
        found.append(inspection)
    failed = sink.deliver(
        "inspect",
        inspection_document(found),
        sections=lambda: [inspection_section(item) for item in found],
    )
    failures = [item.exit_code for item in found if isinstance(item, FrozenBNError)]
    unhealthy = any(item.has_errors for item in found if isinstance(item, Inspection))
    return max(failed, *failures, _UNHEALTHY if check and unhealthy else 0)
