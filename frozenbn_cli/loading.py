"""Loads a converted file into a model, layer by layer as the file says. Imports torch."""

from __future__ import annotations

import warnings
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from frozenbn_cli.batch_norm import Eps
from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.errors import UnsupportedFileError, UsageError
from frozenbn_cli.metadata import ConversionRecord
from frozenbn_cli.modules import convert_bn_to_frozen, survey_batch_norms
from frozenbn_cli.nn import FrozenBatchNorm2d

__all__ = ["load_frozen"]


def load_frozen(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a file that frozenbn wrote into ``model``, freezing the layers that the file froze.

    An eps that was read or given at the conversion is set on its layer, with a warning if the
    model had another. An assumed one is not: there the model knows better.

    Args:
        model: The model that the original checkpoint belongs to, with BatchNorm2d layers or with
            layers that are frozen already.
        path: The converted file.

    Returns:
        ``model``, or a new layer if ``model`` itself is a BatchNorm2d.

    Raises:
        InputError: The file cannot be read, or frozenbn did not write it.
        UsageError: A layer that the file froze cannot be frozen in ``model``.
        RuntimeError: Entries are missing, unexpected or of another shape (PyTorch's own message).
    """
    with open_checkpoint(path) as checkpoint:
        record = ConversionRecord.from_metadata(checkpoint.metadata)
    if record is None:
        raise UnsupportedFileError(
            "frozenbn did not write this file",
            where=(str(path),),
            advice="Load it with safetensors.torch.load_file.",
        )
    live = {name for layer in survey_batch_norms(model) for name in layer.names}
    if chosen := [name for name in record.layers if name in live]:
        model = convert_bn_to_frozen(model, include=[_literal(name) for name in chosen])
    for name, eps in record.layers.items():
        _set_eps(model, name, eps)
    model.load_state_dict(load_file(path), strict=True)
    return model


def _literal(name: str) -> str:
    """Return the pattern that matches ``name`` alone."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _set_eps(model: nn.Module, name: str, eps: Eps) -> None:
    layer = dict(model.named_modules(remove_duplicate=False)).get(name)
    if not isinstance(layer, FrozenBatchNorm2d):
        found = "nothing" if layer is None else f"a {type(layer).__name__}"
        raise UsageError(
            f"layer {name!a}",
            expected="a BatchNorm2d that can be frozen",
            found=found,
            advice="Is this the model that the checkpoint belongs to?",
        )
    if eps.source != "assumed" and layer.eps != eps.value:
        warnings.warn(
            f"{name}: eps {layer.eps:g} of the model is replaced by {eps.value:g}, which was "
            f"{eps.source} when the file was converted",
            stacklevel=3,
        )
        layer.eps = eps.value
