"""Loads a converted file into a model, layer by layer as the file says. Imports torch."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from frozenbn_cli.batch_norms.batch_norm import Eps
from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.errors import UnsupportedFileError, UsageError
from frozenbn_cli.freezing.freeze import convert_bn_to_frozen
from frozenbn_cli.freezing.survey import survey_batch_norms
from frozenbn_cli.nn import FrozenBatchNorm2d

__all__ = ["freeze_layers", "load_frozen"]


def load_frozen(model: nn.Module, path: str | Path) -> nn.Module:
    """Load a file that frozenbn wrote into ``model``, freezing the layers that the file froze.

    An eps that was read or given at the conversion is set on its layer, with a warning if the
    model had another. An assumed one is not: there the model knows better.

    Args:
        model: The model that the original checkpoint belongs to, with BatchNorm2d layers or with
            FrozenBatchNorm2d layers of this package. Not wrapped (DataParallel, `torch.compile`).
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
        container = checkpoint.container
    if record is None:
        raise UnsupportedFileError(
            "frozenbn did not write this file",
            where=(str(path),),
            advice="Load it with safetensors.torch.load_file.",
        )
    model = freeze_layers(model, record.layers)
    entries: OrderedDict[str, Tensor] = OrderedDict(_entries(Path(path), container))
    # Some modules (torchvision's MNASNet) insist on the version that a state dict is of.
    entries._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(entries, strict=True)
    return model


def freeze_layers(model: nn.Module, layers: Mapping[str, Eps]) -> nn.Module:
    """Freeze the layers of these names, with their eps where that is known, in place.

    Returns:
        ``model``, or a new layer if ``model`` itself is a BatchNorm2d.

    Raises:
        UsageError: One of them cannot be frozen.
    """
    live = {name for layer in survey_batch_norms(model) for name in layer.names}
    if chosen := [name for name in layers if name in live]:
        model = convert_bn_to_frozen(model, include=[_literal(name) for name in chosen])
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, eps in layers.items():
        _set_eps(name, modules.get(name), eps)
    return model


def _entries(path: Path, container: str) -> dict[str, Tensor]:
    if container == "safetensors":
        return load_file(path)
    entries: dict[str, Tensor] = torch.load(path, weights_only=True, map_location="cpu")
    return entries


def _literal(name: str) -> str:
    """Return the pattern that matches ``name`` alone."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _set_eps(name: str, layer: nn.Module | None, eps: Eps) -> None:
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
            stacklevel=4,
        )
        layer.eps = eps.value
