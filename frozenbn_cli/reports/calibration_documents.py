"""Statistics that were formed anew as a document for programs."""

from __future__ import annotations

from typing import Any

from frozenbn_cli.batch_norms.plan import LayerPlan
from frozenbn_cli.calibration.drift import Drift
from frozenbn_cli.calibration.terms import CalibratedLayer, CalibrationResult
from frozenbn_cli.reports.documents import (
    SCHEMA_VERSION,
    claim_fields,
    finding_fields,
    input_fields,
)
from frozenbn_cli.verification.claims import verdict

__all__ = ["calibration_document"]


def calibration_document(result: CalibrationResult) -> dict[str, Any]:
    """Return the document of a file whose statistics were formed anew, the worst layer first."""
    found = result.calibration
    before = {item.layer.name: item for item in result.before.layers}
    after = {item.layer.name: item for item in result.after.layers}
    return {
        "schema_version": SCHEMA_VERSION,
        "command": "calibrate",
        "outcome": "calibrated",
        "input": input_fields(result),
        "output": {"path": str(result.output_path), "size_bytes": result.output_bytes},
        "model": result.model,
        "data": result.data,
        "batches": found.batches,
        "passes": found.passes,
        "settled": found.settled,
        "steady": found.steady,
        "apart": None
        if found.apart is None
        else {"means": found.apart[0], "variances": found.apart[1]},
        "layers": [
            _layer(layer, name, before[name], after[name])
            for layer in found.worst_first
            for name in layer.names
            if name in before
        ],
        "left": [{"name": name, "reason": reason} for name, reason in found.left.items()],
        "changed": list(result.changed),
        "shared": list(result.shared),
        "claims": [claim_fields(claim) for claim in result.claims],
        "verdict": verdict(result.claims),
        "seconds": dict(result.seconds),
    }


def _layer(
    layer: CalibratedLayer, name: str, before: LayerPlan, after: LayerPlan
) -> dict[str, Any]:
    return {
        "name": name,
        "channels": len(layer.means),
        "elements": layer.elements,
        "batches": layer.uses,
        "batches_before": before.layer.batches_tracked,
        "drift": _drift(layer.drift) if layer.drift else None,
        "findings_before": finding_fields(before),
        "findings": finding_fields(after),
    }


def _drift(drift: Drift) -> dict[str, Any]:
    return {
        "means": drift.means,
        "variances": drift.variances,
        "worst_mean": {"channel": drift.worst_mean, "sigmas": drift.mean_spread.highest},
        "worst_variance": {"channel": drift.worst_variance, "factor": drift.worst_factor},
        "broken_channels": drift.broken,
    }
