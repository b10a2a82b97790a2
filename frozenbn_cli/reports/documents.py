"""Results as documents for programs: plain dicts that become JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from frozenbn_cli.conversion import ConversionResult
from frozenbn_cli.errors import FrozenBNError
from frozenbn_cli.inspection import FIRST_DECADE, InspectedStateDict, Inspection, Statistics
from frozenbn_cli.plan import LayerPlan

__all__ = [
    "SCHEMA_VERSION",
    "conversion_document",
    "error_document",
    "error_fields",
    "inspection_document",
    "to_json",
]

SCHEMA_VERSION = 1


def to_json(document: dict[str, Any]) -> str:
    """Return a document as one JSON text; numbers that JSON lacks become text."""
    return json.dumps(_plain(document), indent=2, allow_nan=False)


def conversion_document(result: ConversionResult) -> dict[str, Any]:
    """Return the document of a conversion, whatever came of it."""
    return {
        "schema_version": SCHEMA_VERSION,
        "command": "convert",
        "outcome": result.outcome,
        "input": {
            "path": str(result.input_path),
            "kind": result.kind,
            "container": result.container,
            "size_bytes": result.input_bytes,
            "sha256": result.input_sha256,
            "key": result.key,
            "prefix": result.prefix,
            "entries": len(result.entries),
            "left_out": dict(result.left_out),
            "beside": dict(result.beside),
            "foreign_names": _foreign_names(result.foreign_names),
        },
        "output": {
            "path": str(result.output_path),
            "format": result.output_format,
            "size_bytes": result.output_bytes,
        },
        "layers": [_layer(plan) for plan in result.plan.layers],
        "edits": [
            {"kind": edit.kind, "entry": edit.entry, "reason": edit.reason}
            for edit in result.plan.edits
        ],
        "claims": [
            {
                "name": claim.name,
                "status": claim.status,
                "checked": claim.checked,
                "detail": claim.detail,
            }
            for claim in result.claims
        ],
        "seconds": dict(result.seconds),
    }


def inspection_document(inspections: Iterable[Inspection | FrozenBNError]) -> dict[str, Any]:
    """Return the document of an inspection of files, those included that could not be read."""
    return {
        "schema_version": SCHEMA_VERSION,
        "command": "inspect",
        "files": [
            {"path": str(item.path), "outcome": "inspected", **_inspected(item)}
            if isinstance(item, Inspection)
            else {"path": item.where[0] if item.where else "", **_failure(item)}
            for item in inspections
        ],
    }


def _inspected(inspection: Inspection) -> dict[str, Any]:
    return {
        "kind": inspection.kind,
        "container": inspection.container,
        "size_bytes": inspection.size_bytes,
        "beside": dict(inspection.beside),
        "foreign_names": _foreign_names(inspection.foreign_names),
        "advice": inspection.advice,
        "healthy": not inspection.has_errors,
        "state_dicts": [_state_dict(part) for part in inspection.state_dicts],
        "seconds": inspection.seconds,
    }


def _state_dict(part: InspectedStateDict) -> dict[str, Any]:
    return {
        "key": part.key,
        "prefix": part.prefix,
        "entries": part.entries,
        "elements": dict(part.elements),
        "left_out": dict(part.left_out),
        "unsupported": dict(part.unsupported),
        "layers": [
            _layer(plan) | {"statistics": _statistics(part.statistics.get(plan.layer.name))}
            for plan in part.plan.layers
        ],
    }


def _statistics(statistics: Statistics | None) -> dict[str, Any] | None:
    if statistics is None:
        return None
    return {
        "mean": list(statistics.mean),
        "variance": list(statistics.variance),
        "variance_decades": list(statistics.variance_decades),
        "first_decade": FIRST_DECADE,
    }


def _foreign_names(names: Mapping[str, bool]) -> list[dict[str, Any]]:
    return [{"name": name, "called": called} for name, called in names.items()]


def _layer(plan: LayerPlan) -> dict[str, Any]:
    layer = plan.layer
    return {
        "name": layer.name,
        "action": plan.action,
        "reason": plan.reason,
        "type": layer.type_name,
        "frozen_already": layer.frozen_already,
        "channels": layer.channels,
        "spatial_dims": layer.spatial_dims,
        "spatial_dims_inferred_from": layer.dims_source,
        "eps": layer.eps.value,
        "eps_source": layer.eps.source,
        "momentum": layer.momentum,
        "batches_tracked": layer.batches_tracked,
        "findings": [
            {
                "code": finding.code,
                "severity": finding.severity,
                "message": finding.message,
                "channels": finding.channels,
                "factor": finding.factor,
                "worst_channel": finding.worst_channel,
            }
            for finding in plan.findings
        ],
    }


def error_document(command: str | None, error: FrozenBNError) -> dict[str, Any]:
    """Return the document of a run that failed."""
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        **_failure(error),
    }


def _failure(error: FrozenBNError) -> dict[str, Any]:
    return {"outcome": "error", "error": error_fields(error)}


def error_fields(error: FrozenBNError) -> dict[str, Any]:
    """Return what a document says of an error."""
    return {
        "kind": type(error).__name__,
        "message": error.problem,
        "advice": error.advice,
        "exit_code": error.exit_code,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
