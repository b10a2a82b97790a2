"""`frozenbn verify`."""

from __future__ import annotations

from pathlib import Path

from frozenbn_cli.cli.sink import Sink
from frozenbn_cli.reports.documents import verification_document
from frozenbn_cli.reports.verifications import describe_verification
from frozenbn_cli.verification.files import verify_files
from frozenbn_cli.verification.terms import VerifyOptions

__all__ = ["run"]

_DIFFERENT = 1


def run(
    original: Path, converted: Path, how: VerifyOptions, sink: Sink, *, all_layers: bool
) -> int:
    """Verify a file against another, show what was found, and return the exit code.

    Args:
        original: The file before.
        converted: The file after.
        how: To verify.
        sink: Where the words go.
        all_layers: Show every layer.
    """
    with sink.progress() as progress:
        result = verify_files(original, converted, options=how, progress=progress)
    failed = sink.deliver(
        "verify",
        lambda: verification_document(result),
        lambda: [describe_verification(result)],
        all_layers=all_layers,
    )
    return max(failed, 0 if result.verdict == "passed" else _DIFFERENT)
