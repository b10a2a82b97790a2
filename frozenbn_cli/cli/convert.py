"""`frozenbn convert`, of one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from frozenbn_cli.cli.options.many_files import ManyArguments
from frozenbn_cli.cli.sink import Sink, complain
from frozenbn_cli.conversion.convert import ConversionResult, ConvertOptions, convert_file
from frozenbn_cli.errors import RefusedError, UsageError
from frozenbn_cli.many_files.model_files import names_several

if TYPE_CHECKING:
    from frozenbn_cli.reports.description import Section

__all__ = ["check_alone", "run"]


def check_alone(paths: Sequence[Path], many: ManyArguments) -> None:
    """Refuse what needs a folder for its results.

    Args:
        paths: The inputs.
        many: What is for many files.

    Raises:
        UsageError: There are several inputs, or something is meant for several.
    """
    if len(paths) > 1 or names_several(paths[0]):
        raise UsageError("several files", expected="--output-dir DIR for the results")
    if many.given:
        raise UsageError(
            f"{many.given[0]} has no effect on one file",
            advice="It is for many, whose results go into --output-dir DIR.",
        )


def run(
    path: Path, output: Path | None, how: ConvertOptions, sink: Sink, *, all_layers: bool
) -> int:
    """Convert a file, show what came of it, and return the exit code.

    Args:
        path: The input.
        output: Where the result goes; beside the input if None.
        how: To convert.
        sink: Where the words go.
        all_layers: Show every layer.
    """

    def deliver(result: ConversionResult, error: RefusedError | None = None) -> int:
        return sink.deliver(
            "convert",
            lambda: _document(result, error),
            lambda: [_section(result, error)],
            all_layers=all_layers,
        )

    try:
        with sink.progress() as progress:
            result = convert_file(path, output, options=how, progress=progress)
    except RefusedError as error:
        if error.result is None:
            raise
        return max(deliver(error.result, error), complain(error))
    return deliver(result)


def _document(result: ConversionResult, error: RefusedError | None) -> dict[str, Any]:
    from frozenbn_cli.reports.documents import conversion_document, error_fields

    return conversion_document(result) | ({"error": error_fields(error)} if error else {})


def _section(result: ConversionResult, error: RefusedError | None) -> Section:
    from frozenbn_cli.reports.conversions import describe_conversion

    return describe_conversion(result, error)
