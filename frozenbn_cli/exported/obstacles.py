"""Why a layer of a program cannot be frozen, and whether it is frozen already.

Both are judged by the nodes and the signature of the program, never by what a class is called.
"""

from __future__ import annotations

from collections.abc import Iterator

from frozenbn_cli.exported.batch_norm_layers import AFFINE, COUNT, Layer, Layers, joined
from frozenbn_cli.exported.normalisations import STATISTICS, Normalisation, is_instance_norm
from frozenbn_cli.exported.program_graph import Reader, Value, single_outputs
from frozenbn_cli.wording import listed

__all__ = ["is_frozen", "obstacle"]

_ATEN = "torch.ops.aten."


def is_frozen(layers: Layers, layer: Layer) -> bool:
    """Return whether a layer takes its running statistics, and nothing of it is learned or counted.

    A count of batches that something else reads is part of the model, and no sign of a live layer.
    """
    graph = layers.graph
    names = [alias for _, name in layers.tensors(layer) for alias in layers.aliases(name)]
    specs = [graph.specs[value.name] for name in names for value in graph.inputs_of(name)]
    has_count = layers.has(joined(layer.name, COUNT))
    takers = layers.takers(layer)
    return (
        bool(takers)
        and not layer.takes_batch
        and not layer.counting
        and not any(name in graph.mutated for name in names)
        and not any(_writer(layers, taker) for taker in takers)
        and all(spec.kind != "parameter" for spec in specs)
        and (layer.keeps_count or not has_count)
    )


def obstacle(layers: Layers, layer: Layer) -> str | None:
    """Return why a layer cannot be frozen, the plainest reason; None if it can."""
    return next(_obstacles(layers, layer), None)


def _obstacles(layers: Layers, layer: Layer) -> Iterator[str]:
    if not layer.uses:
        yield _unused(layers, layer)
        return
    for role, name in layers.tensors(layer):
        if role in STATISTICS:
            yield from _writers(layers, role, name)
    yield from _other_counting(layers, layer)
    for use in layer.uses:
        yield from _operator(use)
        yield from _odd_arguments(layers, layer, use)
        yield from _used_results(layers, use)
    if layer.eps is None:
        yield "it is called with several eps"
    for role, name in layers.tensors(layer):
        for alias in layers.aliases(name):
            module, _, other_role = alias.rpartition(".")
            if other_role != role or module not in layers.by_name:
                yield f"its {role} shares its storage with {alias}"
            if role in AFFINE:
                yield from _learners(layers, role, alias)


def _unused(layers: Layers, layer: Layer) -> str:
    names = sorted({reader.what for reader in layers.takers(layer)})
    if not names:
        return "the program never uses it"
    return (
        f"nothing normalises as BatchNorm does with its statistics, which go into {listed(names)}"
    )


def _operator(use: Normalisation) -> Iterator[str]:
    operator = use.operator
    if operator.frozen_target is None:
        yield f"it is called by {operator.target}, which no edit makes take running statistics"
    if len(use.outputs) != operator.outputs:
        yield f"{operator.target} has {len(use.outputs)} outputs"


def _odd_arguments(layers: Layers, layer: Layer, use: Normalisation) -> Iterator[str]:
    for role in (*STATISTICS, *AFFINE):
        name = joined(layer.name, role)
        value = layers.renewals.oldest(use.tensors.get(role))
        target = layers.target(value)
        if value is None:
            if any(name == entry for _, entry in layers.tensors(layer)):
                yield f"it is called without its {role}"
        elif target is None:
            yield f"it is called with a {role} that is computed"
        elif target not in layers.aliases(name):
            yield f"it is called with the {role} {target}"
        if value != use.tensors.get(role) and use.place.scope:
            yield f"a graph in the program renews its {role}"


def _used_results(layers: Layers, use: Normalisation) -> Iterator[str]:
    """Yield what takes more of a node than its output, and could not take what there will be."""
    new = [use.new_statistic(index) for index in range(2)]
    for output in use.outputs[1:]:
        if output not in new:
            for reader in layers.graph.readers(output):
                yield f"{reader.what} takes the statistics of the batch that it gives"
    for role in STATISTICS:
        for value in layers.renewals.of(use.tensors.get(role)):
            yield from _readers_of_new(layers, value, role)


def _readers_of_new(layers: Layers, value: Value, role: str) -> Iterator[str]:
    """Yield what takes a new statistic, and could not take the old one instead."""
    oldest = layers.renewals.oldest(value)
    name = layers.target(oldest)
    for reader in layers.renewals.other_readers(value):
        if reader.place is None:
            if reader.writes_to != name:
                yield f"{reader.what} takes its new {role}"
        elif reader.place not in layers.norm_at or reader.role != role:
            is_alike = oldest is not None and layers.graph.dtype(value) == layers.graph.dtype(
                oldest
            )
            if not is_alike or reader.place.scope != value.scope:
                yield f"{reader.what} takes its new {role}"


def _learners(layers: Layers, role: str, target: str) -> Iterator[str]:
    """Yield what takes an affine tensor of a layer beside its uses, and so may train it."""
    for reader in _readers(layers, target):
        if reader.place not in layers.norm_at or reader.role != role:
            yield f"{reader.what} takes its {role} too"


def _readers(layers: Layers, target: str) -> Iterator[Reader]:
    for value in layers.graph.inputs_of(target):
        yield from layers.graph.readers(value)


def _writers(layers: Layers, role: str, name: str) -> Iterator[str]:
    """Yield what may write a statistic of a layer beside its uses."""
    for alias in layers.aliases(name):
        written = layers.graph.mutated.get(alias)
        if written is not None and written not in layers.renewals.old:
            yield f"its {role} is written elsewhere"
        for reader in _readers(layers, alias):
            is_use = reader.place in layers.norm_at and reader.role == role
            if not is_use and (writer := _writer(layers, reader)):
                yield f"{writer} may write its {role}"


def _other_counting(layers: Layers, layer: Layer) -> Iterator[str]:
    """Yield what writes a count of batches, and would go on with it once the layer is frozen."""
    aliases = layers.aliases(joined(layer.name, COUNT))
    named = (layers.by_name.get(alias.rpartition(".")[0]) for alias in aliases)
    counting = {place for other in named if other for place in other.counting}
    if layer.keeps_count and len(counting) > sum(use.takes_batch for use in layer.uses):
        yield f"its {COUNT} goes up in eval too, and something reads it"
    for alias in aliases:
        written = layers.graph.mutated.get(alias)
        if written is not None and layers.graph.maker(written) not in counting:
            yield f"its {COUNT} is written elsewhere"
    values = [value for alias in aliases for value in layers.graph.inputs_of(alias)]
    values += [value for place in counting for value in single_outputs(layers.graph, place)]
    for reader in (reader for value in values for reader in layers.graph.readers(value)):
        if reader.place not in counting and (writer := _writer(layers, reader)):
            yield f"{writer} may write its {COUNT}"


def _writer(layers: Layers, first: Reader) -> str | None:
    """Return what may write a value that a reader takes, or a view of it; None if nothing does."""
    waiting, seen = [first], {first.place}
    while waiting:
        reader = waiting.pop()
        if reader.place is None:
            continue
        if norm := layers.norm_at.get(reader.place):
            if reader.role in STATISTICS and norm.takes_batch:
                return reader.what
            continue  # What it makes is no view of what it takes.
        if _may_write(reader.what):
            return reader.what
        for output in single_outputs(layers.graph, reader.place):
            fresh = [item for item in layers.graph.readers(output) if item.place not in seen]
            seen |= {item.place for item in fresh}
            waiting += fresh
    return None


def _may_write(target: str) -> bool:
    """Return whether an operator may write to what it takes, by its name or for all that is known.

    Operators of PyTorch say so by a name that ends with an underscore, or by one of an output.
    """
    if not target.startswith(_ATEN):
        return True
    name, _, overload = target.removeprefix(_ATEN).partition(".")
    return (
        name.endswith("_") or "out" in overload or "batch_norm" in name or is_instance_norm(target)
    )
