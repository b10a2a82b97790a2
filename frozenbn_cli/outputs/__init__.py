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
    own_format,
)
from frozenbn_cli.outputs.output import Output
from frozenbn_cli.outputs.rewritable import Rewritable, rewritable
from frozenbn_cli.outputs.rewritten import RewrittenOutput
from frozenbn_cli.outputs.safetensors import SafetensorsOutput
from frozenbn_cli.outputs.torch import TorchOutput

__all__ = [
    "BY_KIND",
    "FORMATS",
    "OUTPUTS",
    "CheckpointOutput",
    "Output",
    "OutputFormat",
    "Rewritable",
    "RewrittenOutput",
    "check_name",
    "default_output",
    "format_of",
    "own_format",
    "rewritable",
]

OUTPUTS: Mapping[OutputFormat, Callable[..., Output]] = {
    "safetensors": SafetensorsOutput,
    "torch": TorchOutput,
    "torchscript": RewrittenOutput,
    "pt2": RewrittenOutput,
    "checkpoint": CheckpointOutput,
}
"""How to begin an output of each format."""
