"""`frozenbn inspect`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.text import Text

from frozenbn_cli.cli.sink import Sink, complain
from frozenbn_cli.errors import FrozenBNError
from frozenbn_cli.inspection import Inspection
from frozenbn_cli.reports.documents import inspection_document
from frozenbn_cli.reports.inspections import describe_inspection

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
        if found:
            sink.show(Text())
        sink.show_section(describe_inspection(inspection), all_layers=all_layers)
        found.append(inspection)
    failed = sink.deliver(
        "inspect",
        inspection_document(found),
        lambda: [describe_inspection(item) for item in found],
    )
    failures = [item.exit_code for item in found if isinstance(item, FrozenBNError)]
    unhealthy = any(item.has_errors for item in found if isinstance(item, Inspection))
    return max(failed, *failures, _UNHEALTHY if check and unhealthy else 0)
