"""`frozenbn inspect`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from frozenbn_cli.cli.sink import Sink, complain
from frozenbn_cli.errors import FrozenBNError
from frozenbn_cli.inspection import Inspection
from frozenbn_cli.reports.documents import inspection_document
from frozenbn_cli.reports.inspections import describe_inspection
from frozenbn_cli.stages import begin, telling

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
    """Show what files are, several at a glance first, and return the exit code.

    Args:
        paths: The files.
        inspect: Looks at one.
        sink: Where the words go.
        all_layers: Show every layer, and every file.
        check: Whether unhealthy statistics are an exit code.
    """
    found: list[Inspection | FrozenBNError] = []

    def look(path: Path) -> Inspection | FrozenBNError:
        try:
            return inspect(path)
        except FrozenBNError as error:
            if not sink.as_json:
                complain(error)
            return error

    with sink.progress() as progress, telling(progress):
        count = begin("looking at files", len(paths) if len(paths) > 1 else 0)
        for path in paths:
            found.append(look(path))
            count(1)
    failed = sink.deliver(
        "inspect",
        lambda: inspection_document(found),
        lambda: [describe_inspection(item) for item in found],
        all_layers=all_layers,
    )
    failures = [item.exit_code for item in found if isinstance(item, FrozenBNError)]
    unhealthy = any(item.has_errors for item in found if isinstance(item, Inspection))
    return max(failed, *failures, _UNHEALTHY if check and unhealthy else 0)
