"""Freeze the BatchNorm2d layers of PyTorch model files, and prove that nothing else changed.

The public names are loaded on first use, so that importing this package imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from frozenbn_cli.version import __version__

if TYPE_CHECKING:
    from frozenbn_cli.calibration.calibrate import calibrate_file as calibrate_file
    from frozenbn_cli.calibration.statistics import calibrate_statistics as calibrate_statistics
    from frozenbn_cli.calibration.terms import CalibrateOptions as CalibrateOptions
    from frozenbn_cli.calibration.terms import Calibration as Calibration
    from frozenbn_cli.calibration.terms import CalibrationResult as CalibrationResult
    from frozenbn_cli.calibration.terms import ImageOptions as ImageOptions
    from frozenbn_cli.conversion.convert import convert_file as convert_file
    from frozenbn_cli.conversion.terms import ConversionResult as ConversionResult
    from frozenbn_cli.conversion.terms import ConvertOptions as ConvertOptions
    from frozenbn_cli.errors import FrozenBNError as FrozenBNError
    from frozenbn_cli.freezing.freeze import convert_bn_to_frozen as convert_bn_to_frozen
    from frozenbn_cli.freezing.optimizers import freeze_batch_norms as freeze_batch_norms
    from frozenbn_cli.freezing.survey import survey_batch_norms as survey_batch_norms
    from frozenbn_cli.freezing.thaw import convert_frozen_to_bn as convert_frozen_to_bn
    from frozenbn_cli.inspection import Inspection as Inspection
    from frozenbn_cli.inspection import inspect_file as inspect_file
    from frozenbn_cli.loading import LoadReport as LoadReport
    from frozenbn_cli.loading import load_frozen as load_frozen
    from frozenbn_cli.many_files.batch import convert_files as convert_files
    from frozenbn_cli.many_files.file_results import FileResult as FileResult
    from frozenbn_cli.nn import FrozenBatchNorm1d as FrozenBatchNorm1d
    from frozenbn_cli.nn import FrozenBatchNorm2d as FrozenBatchNorm2d
    from frozenbn_cli.nn import FrozenBatchNorm3d as FrozenBatchNorm3d
    from frozenbn_cli.nn import FrozenBatchNormNd as FrozenBatchNormNd
    from frozenbn_cli.nn import frozen_batch_norm as frozen_batch_norm
    from frozenbn_cli.selection import Selection as Selection
    from frozenbn_cli.verification.files import verify_files as verify_files
    from frozenbn_cli.verification.terms import VerificationResult as VerificationResult
    from frozenbn_cli.verification.terms import VerifyOptions as VerifyOptions

_HOMES = {
    "CalibrateOptions": "calibration.terms",
    "Calibration": "calibration.terms",
    "CalibrationResult": "calibration.terms",
    "ConversionResult": "conversion.terms",
    "ConvertOptions": "conversion.terms",
    "FileResult": "many_files.file_results",
    "FrozenBNError": "errors",
    "FrozenBatchNorm1d": "nn",
    "FrozenBatchNorm2d": "nn",
    "FrozenBatchNorm3d": "nn",
    "FrozenBatchNormNd": "nn",
    "ImageOptions": "calibration.terms",
    "Inspection": "inspection",
    "LoadReport": "loading",
    "Selection": "selection",
    "VerificationResult": "verification.terms",
    "VerifyOptions": "verification.terms",
    "calibrate_file": "calibration.calibrate",
    "calibrate_statistics": "calibration.statistics",
    "convert_bn_to_frozen": "freezing.freeze",
    "convert_file": "conversion.convert",
    "convert_files": "many_files.batch",
    "convert_frozen_to_bn": "freezing.thaw",
    "freeze_batch_norms": "freezing.optimizers",
    "frozen_batch_norm": "nn",
    "inspect_file": "inspection",
    "load_frozen": "loading",
    "survey_batch_norms": "freezing.survey",
    "verify_files": "verification.files",
}

__all__ = [*sorted(_HOMES), "__version__"]  # noqa: PLE0604  # The names are strings.


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
