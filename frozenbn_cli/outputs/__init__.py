"""The formats that are written: each takes tensors as they lie in the input, and a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from frozenbn_cli.outputs.checkpoint import CheckpointOutput
from frozenbn_cli.outputs.formats import (
    BY_KIND,
    FORMATS,
    OutputFormat,
    check_name,
    default_output,
    format_of,
)
from frozenbn_cli.outputs.output import Output
from frozenbn_cli.outputs.safetensors import SafetensorsOutput
from frozenbn_cli.outputs.torch import TorchOutput
from frozenbn_cli.outputs.torchscript import TorchScriptOutput

__all__ = [
    "BY_KIND",
    "FORMATS",
    "OUTPUTS",
    "CheckpointOutput",
    "Output",
    "OutputFormat",
    "TorchScriptOutput",
    "check_name",
    "default_output",
    "format_of",
]

OUTPUTS: Mapping[OutputFormat, Callable[..., Output]] = {
    "safetensors": SafetensorsOutput,
    "torch": TorchOutput,
    "torchscript": TorchScriptOutput,
    "checkpoint": CheckpointOutput,
}
"""How to begin an output of each format."""
