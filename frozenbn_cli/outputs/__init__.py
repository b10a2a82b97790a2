"""The formats that are written: each takes tensors as they lie in the input, and a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from frozenbn_cli.outputs.output import Output, OutputFormat, default_output
from frozenbn_cli.outputs.safetensors import SafetensorsOutput
from frozenbn_cli.outputs.torch import TorchOutput
from frozenbn_cli.outputs.torchscript import TorchScriptOutput

__all__ = ["OUTPUTS", "Output", "OutputFormat", "TorchScriptOutput", "default_output"]

OUTPUTS: Mapping[OutputFormat, Callable[..., Output]] = {
    "safetensors": SafetensorsOutput,
    "torch": TorchOutput,
    "torchscript": TorchScriptOutput,
}
"""How to begin an output of each format."""
