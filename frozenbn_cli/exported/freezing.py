"""Edits a program so that chosen layers take their running statistics for good.

Affine parameters become buffers, counts of batches and what counts them go, and no statistic is
written any more. Every other node, value and specification stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from frozenbn_cli.exported.batch_norm_layers import AFFINE, COUNT, Layer, Layers, joined
from frozenbn_cli.exported.module_stack import paths_in, with_type
from frozenbn_cli.exported.normalisations import STATISTICS, Normalisation
from frozenbn_cli.exported.program_graph import (
    Node,
    Place,
    Scope,
    Value,
    names_in,
    single_outputs,
)

__all__ = ["FrozenProgram", "freeze_program"]

_ARGUMENTS = ("input", "weight", "bias", *STATISTICS, "momentum", "eps")  # Without a flag.


@dataclass(frozen=True, slots=True)
class FrozenProgram:
    """What became of the tensors of a program.

    Attributes:
        affine: The affine tensors of frozen layers, which are buffers now.
        dropped: The buffers that the program has no more.
        kept_counts: The frozen layers whose count of batches stays, since something reads it.
    """

    affine: frozenset[str]
    dropped: frozenset[str]
    kept_counts: frozenset[str]


def freeze_program(
    document: dict[str, Any], layers: Layers, names: Collection[str]
) -> FrozenProgram:
    """Freeze layers in a program, in place.

    Args:
        document: The program.
        layers: The layers of this very document.
        names: Those to freeze, which have no obstacle; of a layer with several names, all.
    """
    return _Freezer(document, layers, [layers.by_name[name] for name in sorted(names)]).run()


class _Freezer:
    def __init__(self, document: dict[str, Any], layers: Layers, frozen: list[Layer]) -> None:
        self._module = document["graph_module"]
        self._graph = layers.graph
        self._layers = layers
        self._frozen = frozen
        # What a graph calls a value that is no more, and what it takes instead.
        self._renamed: dict[Value, str] = {}
        self._removed: set[Place] = set()
        # Which graphs take an input of the program from the graph around them, and as what.
        self._passed_on: dict[Value, list[tuple[Scope, str]]] = {}
        for scope in self._graph.scopes[1:]:
            for called in scope.passed:
                value = self._graph.origin(scope.index, called)
                self._passed_on.setdefault(value, []).append((scope, called))

    def run(self) -> FrozenProgram:
        self._set_types()
        uses = {use.place: use for layer in self._frozen for use in layer.uses}
        for use in uses.values():
            self._drop_renewals(use)
        for layer in self._frozen:
            self._drop_counting(layer)
        for use in uses.values():
            self._take_running_statistics(use)
        self._drop_mutations()
        affine = {name for layer in self._frozen for name in self._affine(layer)}
        self._move_affine()
        kept = {layer.name for layer in self._frozen if layer.keeps_count}
        counts = {joined(layer.name, COUNT) for layer in self._frozen if layer.name not in kept}
        self._rename()
        self._remove_nodes()
        # Strict exports leave some out.
        self._drop_inputs(value for name in counts for value in self._graph.inputs_of(name))
        return FrozenProgram(frozenset(affine), frozenset(counts), frozenset(kept))

    # The nodes

    def _take_running_statistics(self, use: Normalisation) -> None:
        node, target = self._graph.node(use.place), use.operator.frozen_target
        if target == use.operator.target:
            for taken in node["inputs"]:
                if taken["name"] == "training":
                    taken["arg"] = {"as_bool": False}
            return
        by_name = {taken["name"]: taken for taken in node["inputs"]}
        node["target"] = target
        node["inputs"] = [by_name[name] for name in _ARGUMENTS if name in by_name]
        node["outputs"] = node["outputs"][:3]
        values = self._scope(use.place).graph["tensor_values"]
        for output in use.outputs[1:]:
            if output in use.outputs[3:]:
                values.pop(output.name, None)
            elif output.name in values:  # There are no statistics of the batch to give out.
                values[output.name] |= {"sizes": [{"as_int": 0}], "strides": [{"as_int": 1}]}

    def _drop_renewals(self, use: Normalisation) -> None:
        """Have what takes the new statistics of a use take those that it took itself."""
        for role in STATISTICS:
            for value in self._layers.renewals.of(use.tensors.get(role)):
                oldest = self._layers.renewals.oldest(value)
                if oldest is not None:
                    self._renamed[value] = oldest.name
                maker = self._graph.maker(value)
                if maker in self._layers.renewals.copying:
                    self._removed.add(maker)

    def _drop_counting(self, layer: Layer) -> None:
        for place in layer.counting:
            self._removed.add(place)
            (taken,) = (
                item for item in self._graph.node(place)["inputs"] if item["name"] == "self"
            )
            for output in single_outputs(self._graph, place):
                self._renamed[output] = taken["arg"]["as_tensor"]["name"]

    def _rename(self) -> None:
        """Replace the names of what is no more where it is taken, one after the other."""
        renamed: dict[int, dict[str, str]] = {}
        for value in self._renamed:
            renamed.setdefault(value.scope, {})[value.name] = self._new_name(value)
        for scope, names in renamed.items():
            graph = self._graph.scopes[scope].graph
            for index, node in enumerate(graph["nodes"]):
                if Place(scope, index) not in self._removed:
                    for taken in node["inputs"]:
                        _rename_in(taken["arg"], names)
            for output in graph["outputs"]:
                _rename_in(output, names)

    def _new_name(self, value: Value) -> str:
        name = self._renamed[value]
        while (again := Value(value.scope, name)) in self._renamed:
            name = self._renamed[again]
        return name

    def _remove_nodes(self) -> None:
        indices: dict[int, set[int]] = {}
        for place in self._removed:
            for output in single_outputs(self._graph, place):
                self._scope(place).graph["tensor_values"].pop(output.name, None)
            indices.setdefault(place.scope, set()).add(place.index)
        for scope, gone in indices.items():
            nodes = self._graph.scopes[scope].graph["nodes"]
            nodes[:] = [node for index, node in enumerate(nodes) if index not in gone]

    def _scope(self, place: Place) -> Scope:
        return self._graph.scopes[place.scope]

    # What goes in and out

    def _drop_mutations(self) -> None:
        """Drop the outputs that renew statistics or counts."""
        gone = {
            alias
            for layer in self._frozen
            for role, name in self._layers.tensors(layer)
            if role in STATISTICS
            for alias in self._layers.aliases(name)
        }
        for layer in self._frozen:
            written = self._graph.mutated.get(joined(layer.name, COUNT))
            if written is not None and self._graph.maker(written) in layer.counting:
                gone.add(joined(layer.name, COUNT))
        outputs, specs = self._graph.scopes[0].graph["outputs"], self._output_specs
        kept = [
            index
            for index, spec in enumerate(specs)
            if spec.get("buffer_mutation", {}).get("buffer_name") not in gone
        ]
        outputs[:] = [outputs[index] for index in kept]
        specs[:] = [specs[index] for index in kept]

    @property
    def _output_specs(self) -> list[dict[str, Any]]:
        specs: list[dict[str, Any]] = self._module["signature"]["output_specs"]
        return specs

    @property
    def _input_specs(self) -> list[dict[str, Any]]:
        specs: list[dict[str, Any]] = self._module["signature"]["input_specs"]
        return specs

    def _move_affine(self) -> None:
        """Make buffers of the parameters of layers, which stand before their running means."""
        inputs, specs = self._graph.scopes[0].graph["inputs"], self._input_specs
        means = {
            name: joined(layer.name, "running_mean")
            for layer in self._frozen
            for name in self._affine(layer)
        }
        moved: dict[str, list[tuple[Any, Any]]] = {mean: [] for mean in means.values()}
        left: list[tuple[Any, Any]] = []
        for spec, argument in zip(specs, inputs, strict=True):
            if (mean := means.get(_parameter_of(spec))) is None:
                left.append((spec, argument))
            else:
                moved[mean].append((_as_buffer(spec), argument))
        pairs: list[tuple[Any, Any]] = []
        for spec, argument in left:
            pairs += moved.pop(spec.get("buffer", {}).get("buffer_name", ""), [])
            pairs.append((spec, argument))
        for rest in moved.values():  # Those of layers whose mean the program does not take.
            pairs += rest
        specs[:] = [spec for spec, _ in pairs]
        inputs[:] = [argument for _, argument in pairs]
        for value in [value for name in means for value in self._graph.inputs_of(name)]:
            for scope, called in self._everywhere(value):
                if called in scope.graph["tensor_values"]:
                    scope.graph["tensor_values"][called]["requires_grad"] = False

    def _affine(self, layer: Layer) -> list[str]:
        return [name for role, name in self._layers.tensors(layer) if role in AFFINE]

    def _everywhere(self, value: Value) -> list[tuple[Scope, str]]:
        """Return each graph that takes an input of the program, with what it is called there."""
        return [(self._graph.scopes[0], value.name), *self._passed_on.get(value, ())]

    def _drop_inputs(self, values: Iterable[Value]) -> None:
        """Drop inputs of the program that nothing takes any more, wherever they are passed on."""
        gone: dict[Scope, set[str]] = {}
        for value in values:
            for scope, called in self._everywhere(value):
                gone.setdefault(scope, set()).add(called)
        for scope, names in gone.items():
            if scope.taker is not None:
                _drop_operands(scope.taker, {scope.passed[called] for called in names})
            scope.graph["inputs"][:] = [
                argument
                for argument in scope.graph["inputs"]
                if names.isdisjoint(names_in(argument))
            ]
            for called in names:
                scope.graph["tensor_values"].pop(called, None)
        outermost = gone.get(self._graph.scopes[0], set())
        self._input_specs[:] = [
            spec
            for spec in self._input_specs
            if outermost.isdisjoint(names_in(next(iter(spec.values())).get("arg")))
        ]

    # Classes

    def _set_types(self) -> None:
        """Name the class of ours in the stacks of nodes, where a class does nothing else."""
        own: dict[str, set[Place]] = {}
        for layer in self._frozen:
            own[layer.name] = {use.place for use in layer.uses} | set(layer.counting)
        for name in list(own):  # Under another name of a layer, its count is another one.
            for other in self._layers.by_name[name].shares_with & own.keys():
                own[name] |= set(self._layers.by_name[other].counting)
        inside: dict[str, list[Place]] = {name: [] for name in own}
        for place in self._graph.places():
            stack = self._graph.node(place)["metadata"].get("nn_module_stack", "")
            for name in paths_in(stack) & own.keys():
                inside[name].append(place)
        copies = self._layers.renewals.copying
        for layer in self._frozen:
            places = inside[layer.name]
            if any(place not in own[layer.name] and place not in copies for place in places):
                continue
            type_name = f"frozenbn_cli.nn.FrozenBatchNorm{layer.spatial_dims or 2}d"
            for place in places:
                metadata = self._graph.node(place)["metadata"]
                metadata["nn_module_stack"] = with_type(
                    metadata["nn_module_stack"], layer.name, type_name
                )


def _rename_in(argument: Any, names: Mapping[str, str]) -> None:
    """Replace names of values in an argument, but for those in graphs of its own."""
    if isinstance(argument, list):
        for part in argument:
            _rename_in(part, names)
    elif isinstance(argument, dict):
        for key, part in argument.items():
            if key in ("name", "as_name") and isinstance(part, str):
                argument[key] = names.get(part, part)
            elif key != "as_graph":
                _rename_in(part, names)


def _drop_operands(node: Node, names: Collection[str]) -> None:
    """Drop what a node passes to its graphs under these names."""
    kept = []
    for taken in node["inputs"]:
        argument = taken["arg"]
        if argument.get("as_tensor", {}).get("name") in names:
            continue
        if "as_tensors" in argument:
            tensors = argument["as_tensors"]
            tensors[:] = [item for item in tensors if item["name"] not in names]
        kept.append(taken)
    node["inputs"] = kept


def _parameter_of(spec: Mapping[str, Any]) -> str:
    return str(spec.get("parameter", {}).get("parameter_name", ""))


def _as_buffer(spec: Mapping[str, Any]) -> dict[str, Any]:
    fields = spec["parameter"]
    return {
        "buffer": {
            "arg": fields["arg"],
            "buffer_name": fields["parameter_name"],
            "persistent": True,
        }
    }
