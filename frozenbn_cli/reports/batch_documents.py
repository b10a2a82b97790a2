"""A conversion of many files as a document for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from frozenbn_cli.many_files.file_results import ConversionSummary, FileResult, exit_code_of
from frozenbn_cli.reports.documents import SCHEMA_VERSION, error_fields
from frozenbn_cli.verification.claims import verdict

__all__ = ["batch_document"]


def batch_document(results: Sequence[FileResult], *, total: int, seconds: float) -> dict[str, Any]:
    """Return the document of a conversion of many files, of which ``total`` were to be converted.

    Of each it holds a summary: for thousands of files, their layers would be no document any more.
    """
    counts = Counter(result.state for result in results)
    ended = "failed" if counts["failed"] else "done"
    return {
        "schema_version": SCHEMA_VERSION,
        "command": "convert",
        "outcome": ended if len(results) == total else "interrupted",
        "counts": {
            **{state: counts[state] for state in ("done", "skipped", "failed")},
            "unfinished": total - len(results),
        },
        "exit_code": exit_code_of(results, total),
        "seconds": seconds,
        "files": [_file(result) for result in results],
    }


def _file(result: FileResult) -> dict[str, Any]:
    return {
        "path": str(result.path),
        "state": result.state,
        "output_path": None if result.output is None else str(result.output),
        "seconds": result.seconds,
        "conversion": _summary(result.summary) if result.summary else None,
        "error": error_fields(result.error) if result.error else None,
    }


def _summary(summary: ConversionSummary) -> dict[str, Any]:
    return {
        "outcome": summary.outcome,
        "kind": summary.kind,
        "container": summary.container,
        "input_bytes": summary.input_bytes,
        "input_sha256": summary.input_sha256,
        "output_format": summary.output_format,
        "output_bytes": summary.output_bytes,
        "output_sha256": summary.output_sha256,
        "key": summary.key,
        "prefix": summary.prefix,
        "layers": summary.layers,
        "frozen": summary.frozen,
        "findings": {
            severity: summary.findings.get(severity, 0) for severity in ("error", "warning", "note")
        },
        "claims": [
            {"name": claim.name, "status": claim.status, "detail": claim.detail}
            for claim in summary.claims
        ],
        "verdict": verdict(summary.claims) if summary.claims else None,
    }
