"""The BatchNorm layers of a program: which nodes are whose, and what they say of them.

A layer is known by the names of its buffers, whatever calls it: a module, `F.batch_norm`, a graph
in a graph. Names that share their tensors are one layer; of these the program uses one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from frozenbn_cli.errors import UnsupportedFileError
from frozenbn_cli.exported.module_stack import innermost, type_in_stack
from frozenbn_cli.exported.normalisations import (
    STATISTICS,
    Normalisation,
    find_normalisations,
    is_instance_norm,
)
from frozenbn_cli.exported.program_graph import (
    Place,
    ProgramGraph,
    Reader,
    Value,
    argument_of,
    names_in,
    single_outputs,
)
from frozenbn_cli.exported.renewals import Renewals

__all__ = ["AFFINE", "COUNT", "Layer", "Layers", "joined"]

AFFINE = ("weight", "bias")
COUNT = "num_batches_tracked"

_COUNTING, _COUNTING_IN_PLACE = "torch.ops.aten.add.Tensor", "torch.ops.aten.add_.Tensor"
_MAX_SHARING = 1_000_000  # Layers times names and uses; with one storage, ResNet-152 has 300,000.
_SPATIAL_DIMS = {2: 1, 3: 1, 4: 2, 5: 3}  # By the number of dimensions with batch and channels.


@dataclass(slots=True)
class Layer:
    """A BatchNorm layer, under one of its names.

    Attributes:
        name: Of the module.
        uses: The nodes that normalise with it.
        counting: The nodes that do nothing but count its batches.
        keeps_count: Whether something reads its count of batches, beside what counts.
        type_name: Its class, where the program tells.
        eps: That of its uses; None if it has none, or several.
        momentum: The same.
        spatial_dims: From the inputs of its uses; None if they differ, or tell nothing.
        takes_batch: Whether a use takes the statistics of the batch.
        is_layer: Whether it has running statistics of its own, under the names that they have.
        live: How it normalises, where it has other ones, or none and no class.
        shares_with: The layers with which it shares tensors, itself among them.
    """

    name: str
    uses: list[Normalisation] = field(default_factory=list)
    counting: list[Place] = field(default_factory=list)
    keeps_count: bool = False
    type_name: str | None = None
    eps: float | None = None
    momentum: float | None = None
    spatial_dims: int | None = None
    takes_batch: bool = False
    is_layer: bool = True
    live: str | None = None
    shares_with: frozenset[str] = frozenset()


def joined(module: str, role: str) -> str:
    """Return the name of an entry of a module; the outermost one has none."""
    return f"{module}.{role}" if module else role


class Layers:
    """The BatchNorm layers of a program.

    Attributes:
        graph: The program.
        norm_at: Each node that normalises, by its place.
        renewals: Where new statistics go.
        by_name: The layers.

    Args:
        graph: The program.
        storages: What stands for the storage of each tensor, by name; the same for tensors that
            share it.

    Raises:
        UnsupportedFileError: So many names and uses of one layer that no model has them.
    """

    def __init__(self, graph: ProgramGraph, storages: Mapping[str, Hashable]) -> None:
        self.graph = graph
        self._storages = storages
        # Every name of a storage, in the file's order.
        self._names: dict[Hashable, list[str]] = {}
        for name, storage in storages.items():
            self._names.setdefault(storage, []).append(name)
        norms = find_normalisations(graph)
        self.norm_at = {norm.place: norm for norm in norms}
        self.renewals = Renewals(graph, norms)
        self.by_name: dict[str, Layer] = {}
        for name in storages:
            module, _, role = name.rpartition(".")
            if role in STATISTICS and self._has_both(module):
                self.by_name.setdefault(module, Layer(module))
        self._check_sharing()
        for norm in norms:
            self._assign(norm)
        for layer in list(self.by_name.values()):
            self._describe(layer)
        for names in self._groups():
            for name in names:
                self.by_name[name].shares_with = names

    def tensors(self, layer: Layer) -> Iterator[tuple[str, str]]:
        """Yield the role and the name of each tensor of a layer, but for its count."""
        for role in (*STATISTICS, *AFFINE):
            if (name := joined(layer.name, role)) in self._storages:
                yield role, name

    def has(self, name: str) -> bool:
        """Return whether the program has a tensor of this name, used or not."""
        return name in self._storages

    def aliases(self, target: str) -> list[str]:
        """Return every name of what shares its storage with a tensor, its own among them."""
        storage = self._storages.get(target)
        return [target] if storage is None else self._names[storage]

    def target(self, value: Value | None) -> str | None:
        """Return the name of the parameter, buffer or constant that a value is; None if of none."""
        spec = self.graph.spec(value) if value else None
        return (spec.target or None) if spec else None

    def takers(self, layer: Layer, roles: tuple[str, ...] = STATISTICS) -> list[Reader]:
        """Return what reads the statistics of a layer, under any of its names."""
        own = [joined(layer.name, role) for role in roles]
        names = dict.fromkeys(alias for name in own for alias in self.aliases(name))
        values = [value for name in names for value in self.graph.inputs_of(name)]
        return [reader for value in values for reader in self.graph.readers(value)]

    # Which nodes are whose

    def _has_both(self, module: str) -> bool:
        return all(joined(module, role) in self._storages for role in STATISTICS)

    def _check_sharing(self) -> None:
        """Refuse layers of so many names and uses that to look at each with each takes minutes."""
        for names in self._names.values():
            layers = {name.rpartition(".")[0] for name in names} & self.by_name.keys()
            values = [value for name in names for value in self.graph.inputs_of(name)]
            takers = sum(len(self.graph.readers(value)) for value in values)
            if len(layers) * (len(names) + takers) > _MAX_SHARING:
                raise UnsupportedFileError(
                    f"a storage of {len(layers):,} layers with {len(names):,} names, which is "
                    f"taken {takers:,} times; that is beyond any model"
                )

    def _assign(self, norm: Normalisation) -> None:
        """Find the layer of a node: by its statistics, or else by the module that it is of."""
        mean = self.target(self.renewals.oldest(norm.tensors.get("running_mean")))
        modules = [
            alias.rpartition(".")[0]
            for alias in (self.aliases(mean) if mean else ())
            if alias.rpartition(".")[2] == "running_mean"
        ]
        path, type_name = innermost(self._stack(norm.place))
        found = [module for module in modules if module in self.by_name]
        if not found and path in self.by_name:
            found = [path]
        for module in found:
            self.by_name[module].uses.append(norm)
        if not found and not self._is_instance_norm(norm, type_name):
            self._add_other(norm, path, type_name)

    def _add_other(self, norm: Normalisation, path: str | None, type_name: str) -> None:
        """Note what normalises without running statistics of a layer."""
        name = norm.outputs[0].name if norm.outputs else norm.operator.target
        if path is not None and path not in self.by_name:
            name = path
        mean, variance = (self.target(norm.tensors.get(role)) for role in STATISTICS)
        live = None
        if "running_mean" in norm.tensors:
            live = (
                f"it normalises by {mean or 'what it computes'} and "
                f"{variance or 'what it computes'}, which are no buffers of a layer"
            )
        elif "BatchNorm" not in type_name:
            live = "it normalises by the statistics of the batch, and has no running ones"
        self.by_name[name] = Layer(name, [norm], is_layer=False, live=live)

    def _is_instance_norm(self, norm: Normalisation, type_name: str) -> bool:
        """Return whether a node is what became of InstanceNorm, which has one image at a time."""
        name = next((output.name for output in (norm.tensors.get("input"),) if output), "")
        meta = self.graph.scopes[norm.place.scope].graph["tensor_values"].get(name)
        sizes = meta["sizes"] if meta else []
        is_one = bool(sizes) and sizes[0].get("as_int") == 1
        return "InstanceNorm" in type_name or (is_one and "BatchNorm" not in type_name)

    def _stack(self, place: Place) -> str:
        stack: str = self.graph.node(place)["metadata"].get("nn_module_stack", "")
        return stack

    # What they say

    def _describe(self, layer: Layer) -> None:
        places = [use.place for use in layer.uses]
        places = places or [reader.place for reader in self.takers(layer) if reader.place]
        types = (type_in_stack(self._stack(place), layer.name) for place in places)
        layer.type_name = next((name for name in types if name), None)
        if layer.type_name is None and not layer.uses:
            targets = {reader.what for reader in self.takers(layer)}
            if any(map(is_instance_norm, targets)):
                layer.type_name = "torch.nn.modules.instancenorm.InstanceNorm"
        layer.eps = _only({use.eps for use in layer.uses})
        layer.momentum = _only({use.momentum for use in layer.uses})
        layer.spatial_dims = _only({_SPATIAL_DIMS.get(use.rank or 0) for use in layer.uses})
        layer.takes_batch = any(use.takes_batch for use in layer.uses)
        layer.counting, layer.keeps_count = self._counting(joined(layer.name, COUNT))

    def _counting(self, target: str) -> tuple[list[Place], bool]:
        """Return the nodes that add to a count alone, and whether anything else reads it."""
        nodes: list[Place] = []
        written = self._adding_to(target)
        waiting, is_read = list(self.graph.inputs_of(target)), False
        while waiting:
            for reader in self.graph.readers(waiting.pop()):
                if reader.place is None:
                    is_read |= reader.writes_to != target
                elif reader.place in written or (
                    reader.role == "self" and self._adds_one(reader.place, _COUNTING_IN_PLACE)
                ):
                    if reader.place not in nodes:
                        nodes.append(reader.place)
                        waiting += single_outputs(self.graph, reader.place)
                else:
                    is_read = True
        new = self.graph.mutated.get(target)
        is_read |= new is not None and self.graph.maker(new) not in nodes
        return nodes, is_read

    def _adding_to(self, target: str) -> set[Place]:
        """Return the nodes that add up what is written to a count in the end.

        Another node that adds to a count only reads it.
        """
        nodes: set[Place] = set()
        value = self.graph.mutated.get(target)
        while value is not None and (place := self.graph.maker(value)):
            if place in nodes or not self._adds_one(place, _COUNTING):
                return set()
            nodes.add(place)
            name = next(names_in(argument_of(self.graph.node(place), "self")), "")
            value = self.graph.origin(place.scope, name)
        return nodes if value in self.graph.inputs_of(target) else set()

    def _adds_one(self, place: Place, operator: str) -> bool:
        node = self.graph.node(place)
        return bool(node["target"] == operator and argument_of(node, "other") == {"as_int": 1})

    def _groups(self) -> Iterator[frozenset[str]]:
        """Yield the layers that share tensors, with each other or by way of others."""
        groups = {name: {name} for name in self.by_name}
        first: dict[tuple[Hashable, str], str] = {}
        for layer in self.by_name.values():
            for role, name in self.tensors(layer):
                other = first.setdefault((self._storages[name], role), layer.name)
                more, fewer = sorted((groups[layer.name], groups[other]), key=len, reverse=True)
                if more is not fewer:
                    more |= fewer
                    groups |= dict.fromkeys(fewer, more)
        for group in {id(group): group for group in groups.values()}.values():
            if len(group) > 1:
                yield frozenset(group)


_T = TypeVar("_T")


def _only(values: set[_T]) -> _T | None:
    return next(iter(values)) if len(values) == 1 else None
