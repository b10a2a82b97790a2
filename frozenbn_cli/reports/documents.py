"""Results as documents for programs: plain dicts that become JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from frozenbn_cli.batch_norms.plan import LayerPlan, Plan
from frozenbn_cli.conversion.convert import ConversionResult
from frozenbn_cli.errors import FrozenBNError
from frozenbn_cli.inspection import FIRST_DECADE, InspectedStateDict, Inspection, Statistics
from frozenbn_cli.training.reconciling import Reconciled
from frozenbn_cli.verification.claims import Claim, Measure, verdict
from frozenbn_cli.verification.terms import VerificationResult

if TYPE_CHECKING:
    from frozenbn_cli.calibration.terms import CalibrationResult

__all__ = [
    "SCHEMA_VERSION",
    "claim_fields",
    "conversion_document",
    "error_document",
    "error_fields",
    "finding_fields",
    "input_fields",
    "inspection_document",
    "to_json",
    "verification_document",
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
            **input_fields(result),
            "entries": len(result.entries),
            "left_out": dict(result.left_out),
            "beside": dict(result.beside),
            "foreign_names": _foreign_names(result.foreign_names),
        },
        "output": {
            "path": str(result.output_path),
            "format": result.output_format,
            "size_bytes": result.output_bytes,
            "sha256": result.output_sha256,
        },
        "layers": [_layer(plan) for plan in result.plan.layers],
        "recognised": _recognised(result.plan),
        "edits": [
            {"kind": edit.kind, "entry": edit.entry, "reason": edit.reason}
            for edit in result.plan.edits
        ],
        "target_eps": _target_eps(result),
        "state_dicts": [
            {"key": key, "layers": [_layer(item) for item in plan.layers]}
            for key, plan in result.others.items()
        ],
        "optimizers": [_optimizer(each) for each in result.optimizers],
        "model": result.model,
        "made": result.made,
        "claims": [claim_fields(claim) for claim in result.claims],
        "verdict": verdict(result.claims) if result.claims else None,
        "seconds": dict(result.seconds),
    }


def _optimizer(each: Reconciled) -> dict[str, Any]:
    return {
        "key": each.optimizer.key,
        "model": each.key_of_model,
        "groups": [{"before": before, "after": after} for before, after in each.group_sizes],
        "dropped": sorted(each.places),
        "parameters": list(each.names),
        "known_by": each.proof,
    }


def _target_eps(result: ConversionResult) -> dict[str, Any] | None:
    found = result.retargeting
    if found is None:
        return None
    return {
        "eps": found.eps,
        "rewritten": list(found.before),
        "inexact": {name: list(layer.inexact) for name, layer in found.inexact.items()},
        "off": found.off,
    }


def verification_document(result: VerificationResult) -> dict[str, Any]:
    """Return the document of a verification."""
    return {
        "schema_version": SCHEMA_VERSION,
        "command": "verify",
        "outcome": result.verdict,
        "original": {
            "path": str(result.original_path),
            "kind": result.original_kind,
            "size_bytes": result.original_bytes,
            "sha256": result.original_sha256,
            "key": result.key,
        },
        "converted": {
            "path": str(result.converted_path),
            "kind": result.converted_kind,
            "size_bytes": result.converted_bytes,
            "sha256": result.converted_sha256,
        },
        "recorded": {
            "key": result.recorded.key,
            "eps": list(result.recorded.eps),
            "include": list(result.recorded.selection.include),
            "exclude": list(result.recorded.selection.exclude),
            "dims_of": dict(result.recorded.selection.dims_of),
            "state": result.recorded.selection.state,
            "dims": list(result.recorded.dims or ()),
            "renamed": _renamed(result.recorded.renamed),
        },
        "swapped": result.swapped,
        "tolerance": {"atol": result.tolerance.atol, "rtol": result.tolerance.rtol},
        "layers": [_layer(plan) for plan in result.plan.layers],
        "recognised": _recognised(result.plan),
        "frozen": [
            {"name": name, "eps": eps.value, "eps_source": eps.source}
            for name, eps in result.frozen.items()
        ],
        "live": [{"name": name, "reason": reason} for name, reason in result.live.items()],
        "claims": [claim_fields(claim) for claim in result.claims],
        "seconds": dict(result.seconds),
    }


def claim_fields(claim: Claim) -> dict[str, Any]:
    """Return what a document says of a claim."""
    return {
        "name": claim.name,
        "status": claim.status,
        "required": claim.required,
        "checked": claim.checked,
        "detail": claim.detail,
        "differences": [
            {
                "place": item.place,
                "problem": item.problem,
                "tolerated": item.tolerated,
                "measure": _measure(item.measure) if item.measure else None,
            }
            for item in claim.differences
        ],
        "begins": claim.begins,
        "smallest_atol": claim.smallest_atol if claim.differences else None,
        "smallest_rtol": claim.smallest_rtol if claim.differences else None,
    }


def _measure(measure: Measure) -> dict[str, Any]:
    values = {name: getattr(measure, name) for name in _MEASURED}
    # JSON has no complex numbers.
    values |= {name: str(value) for name, value in values.items() if isinstance(value, complex)}
    return values | {"index": list(measure.index), "relative_index": list(measure.relative_index)}


_MEASURED = (
    "elements", "differing", "absolute", "before", "after", "relative", "ulps", "mean",
    "percentile_99",
)  # fmt: skip


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
        "model": inspection.model,
        "record": inspection.record.to_document() if inspection.record else None,
        "healthy": not inspection.has_errors,
        "state_dicts": [_state_dict(part) for part in inspection.state_dicts],
        "seconds": inspection.seconds,
    }


def _state_dict(part: InspectedStateDict) -> dict[str, Any]:
    return {
        "key": part.key,
        "prefix": part.prefix,
        "renamed": _renamed(part.renamed),
        "entries": part.entries,
        "elements": dict(part.elements),
        "left_out": dict(part.left_out),
        "unsupported": dict(part.unsupported),
        "misfits": list(part.misfits),
        "layers": [
            _layer(plan) | {"statistics": _statistics(part.statistics.get(plan.layer.name))}
            for plan in part.plan.layers
        ],
        "recognised": _recognised(part.plan),
    }


def input_fields(result: ConversionResult | CalibrationResult) -> dict[str, Any]:
    """Return what a document says of the file that something was made of."""
    return {
        "path": str(result.input_path),
        "kind": result.kind,
        "container": result.container,
        "size_bytes": result.input_bytes,
        "sha256": result.input_sha256,
        "key": result.key,
        "prefix": result.prefix,
        "renamed": _renamed(result.renamed),
    }


def _renamed(steps: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    """Return what a document says of how names differ from those in a file."""
    return [{"from": old, "to": new} for old, new in steps]


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
        "may_be_frozen": layer.facts.may_be_frozen,
        "channels": layer.channels,
        "spatial_dims": layer.spatial_dims,
        "spatial_dims_inferred_from": layer.dims_source,
        "spatial_dims_source": layer.dims_known,
        "eps": layer.eps.value,
        "eps_source": layer.eps.source,
        "momentum": layer.momentum,
        "momentum_source": layer.momentum_source,
        "batches_tracked": layer.batches_tracked,
        "findings": finding_fields(plan),
    }


def finding_fields(plan: LayerPlan) -> list[dict[str, Any]]:
    """Return what a document says of the findings on a layer."""
    return [
        {
            "code": finding.code,
            "severity": finding.severity,
            "message": finding.message,
            "channels": finding.channels,
            "factor": finding.factor,
            "worst_channel": finding.worst_channel,
        }
        for finding in plan.findings
    ]


def _recognised(plan: Plan) -> list[dict[str, Any]]:
    """Return which architectures the layers are those of, and what eps each of them has."""
    return [
        {
            "prefix": match.prefix,
            "layers": len(match.layers),
            "candidates": [
                {
                    "architectures": [
                        {"library": one.library, "version": one.version, "name": one.name}
                        for one in candidate.architectures
                    ],
                    "eps": sorted({kind.eps for kind in candidate.kinds if kind.eps is not None}),
                }
                for candidate in match.candidates
            ],
        }
        for match in plan.matches
    ]


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
