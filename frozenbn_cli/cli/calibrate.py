"""`frozenbn calibrate`."""

from __future__ import annotations

from pathlib import Path

from frozenbn_cli.calibration.terms import CalibrateOptions
from frozenbn_cli.cli.sink import Sink
from frozenbn_cli.reports.calibration_documents import calibration_document
from frozenbn_cli.reports.calibrations import describe_calibration
from frozenbn_cli.stages import import_torch_for, telling

__all__ = ["run"]


def run(
    path: Path, output: Path | None, how: CalibrateOptions, sink: Sink, *, all_layers: bool
) -> int:
    """Form the statistics of a file anew, show what came of it, and return the exit code.

    Args:
        path: The input.
        output: Where the result goes; beside the input if None.
        how: The model, the data, and how to go about it.
        sink: Where the words go.
        all_layers: Show every layer.
    """
    with sink.progress() as progress:
        with telling(progress):
            calibration = import_torch_for("frozenbn_cli.calibration.calibrate")
        result = calibration.calibrate_file(path, output, options=how, progress=progress)
    return sink.deliver(
        "calibrate",
        lambda: calibration_document(result),
        lambda: [describe_calibration(result)],
        all_layers=all_layers,
    )
