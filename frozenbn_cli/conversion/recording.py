"""What the record of a conversion says of the layers that it froze."""

from __future__ import annotations

from collections.abc import Iterable

from frozenbn_cli.batch_norms.record import ConversionRecord, FrozenLayers
from frozenbn_cli.training.edited import FrozenModel

__all__ = ["frozen_layers", "recorded_models"]


def frozen_layers(
    model: FrozenModel, before: ConversionRecord | None, *, in_file: bool
) -> FrozenLayers:
    """Return what a record says of the layers of one model, those frozen before included.

    Args:
        model: The model, with what becomes of its layers.
        before: The record of an earlier conversion, if the input has one.
        in_file: Whether the output has the names of the input; else those of the report.
    """
    known = FrozenLayers()
    if before is not None:
        own = before.of(model.part)
        renamed = FrozenLayers(own.layers, own.dims_of, own.rewritten)
        known = before.of_key(model.key) if in_file else renamed
    layers, dims_of = dict(known.layers), dict(known.dims_of)
    rewritten = dict(known.rewritten)
    for item in model.frozen:
        layer = item.layer
        name = model.stored_layer(item) if in_file else layer.name
        layers[name] = model.retargeting.stated if model.retargeting else layer.eps
        if layer.spatial_dims not in (None, 2):
            dims_of[name] = layer.spatial_dims
        if model.retargeting and layer.name in model.retargeting.before:
            rewritten[name] = layer.eps
    return FrozenLayers(layers, dims_of, rewritten)


def recorded_models(
    models: Iterable[FrozenModel], before: ConversionRecord | None
) -> dict[str, FrozenLayers]:
    """Return what a record says of each model of a training checkpoint, by its key.

    What was frozen before, in a model that is left alone now, stays recorded.
    """
    known = dict(before.state_dicts) if before else {}
    return known | {model.key: frozen_layers(model, before, in_file=True) for model in models}
