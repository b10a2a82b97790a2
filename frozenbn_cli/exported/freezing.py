"""Edits a program so that chosen layers take their running statistics for good.

Affine parameters become buffers, counts of batches and what counts them go, and no statistic is
written any more. Every other node, value and specification stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from frozenbn_cli.exported.batch_norm_layers import AFFINE, COUNT, Layer, Layers, joined
from frozenbn_cli.exported.module_stack import paths_in, with_type
from frozenbn_cli.exported.normalisations import STATISTICS, Normalisation
from frozenbn_cli.exported.program_graph import Place, Scope, Value, names_in, single_outputs
from frozenbn_cli.exported.program_shape import subgraphs_of

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
        affine = {
            name
            for layer in self._frozen
            for role, name in self._layers.tensors(layer)
            if role in AFFINE
        }
        for layer in self._frozen:
            self._move_affine(layer)
        kept = {layer.name for layer in self._frozen if layer.keeps_count}
        counts = {joined(layer.name, COUNT) for layer in self._frozen if layer.name not in kept}
        self._rename()
        self._remove_nodes()
        for count in sorted(counts):
            for value in self._graph.inputs_of(count):  # Strict exports leave some out.
                self._drop_input(value)
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
        for scope in self._graph.scopes:
            names = {
                value.name: self._new_name(value)
                for value in self._renamed
                if value.scope == scope.index
            }
            if names:
                for index, node in enumerate(scope.graph["nodes"]):
                    if Place(scope.index, index) not in self._removed:
                        for taken in node["inputs"]:
                            _rename_in(taken["arg"], names)
                for output in scope.graph["outputs"]:
                    _rename_in(output, names)

    def _new_name(self, value: Value) -> str:
        name = self._renamed[value]
        while (again := Value(value.scope, name)) in self._renamed:
            name = self._renamed[again]
        return name

    def _remove_nodes(self) -> None:
        for scope in self._graph.scopes:
            gone = [place for place in self._removed if place.scope == scope.index]
            for place in gone:
                for output in single_outputs(self._graph, place):
                    scope.graph["tensor_values"].pop(output.name, None)
            indices = {place.index for place in gone}
            if indices:
                scope.graph["nodes"][:] = [
                    node for index, node in enumerate(scope.graph["nodes"]) if index not in indices
                ]

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

    def _move_affine(self, layer: Layer) -> None:
        """Make buffers of the parameters of a layer, which stand before its running mean."""
        names = {name for role, name in self._layers.tensors(layer) if role in AFFINE}
        inputs, specs = self._graph.scopes[0].graph["inputs"], self._input_specs
        pairs = list(zip(specs, inputs, strict=True))
        taken = [pair for pair in pairs if _parameter_of(pair[0]) in names]
        left = [pair for pair in pairs if _parameter_of(pair[0]) not in names]
        mean = joined(layer.name, "running_mean")
        buffers = [spec.get("buffer", {}).get("buffer_name") for spec, _ in left]
        place = buffers.index(mean) if mean in buffers else len(left)
        left[place:place] = [(_as_buffer(spec), argument) for spec, argument in taken]
        specs[:] = [spec for spec, _ in left]
        inputs[:] = [argument for _, argument in left]
        for value in [value for name in names for value in self._graph.inputs_of(name)]:
            for scope, called in self._everywhere(value):
                if called in scope.graph["tensor_values"]:
                    scope.graph["tensor_values"][called]["requires_grad"] = False

    def _everywhere(self, value: Value) -> Iterator[tuple[Scope, str]]:
        """Yield each graph that takes an input of the program, with what it is called there."""
        yield self._graph.scopes[0], value.name
        for scope in self._graph.scopes[1:]:
            for called in scope.passed:
                if self._graph.origin(scope.index, called) == value:
                    yield scope, called

    def _drop_input(self, value: Value) -> None:
        """Drop an input of the program that nothing takes any more, wherever it is passed on."""
        for scope, called in reversed(list(self._everywhere(value))):
            if scope.outer is not None:
                self._drop_operand(scope, called)
            scope.graph["inputs"][:] = [
                argument for argument in scope.graph["inputs"] if called not in names_in(argument)
            ]
            scope.graph["tensor_values"].pop(called, None)
        self._input_specs[:] = [
            spec
            for spec in self._input_specs
            if value.name not in names_in(next(iter(spec.values())).get("arg"))
        ]

    def _drop_operand(self, scope: Scope, called: str) -> None:
        """Drop what is passed for one input of a graph in the graph around it."""
        assert scope.outer is not None  # noqa: S101  # Only the outermost has none.
        passed = scope.passed[called]
        for node in self._graph.scopes[scope.outer].graph["nodes"]:
            if any(graph is scope.graph for graph in subgraphs_of(node)):
                kept = []
                for taken in node["inputs"]:
                    argument = taken["arg"]
                    if argument.get("as_tensor", {}).get("name") == passed:
                        continue
                    if "as_tensors" in argument:
                        tensors = argument["as_tensors"]
                        tensors[:] = [item for item in tensors if item["name"] != passed]
                    kept.append(taken)
                node["inputs"] = kept

    # Classes

    def _set_types(self) -> None:
        """Name the class of ours in the stacks of nodes, where a class does nothing else."""
        own: dict[str, set[Place]] = {}
        for layer in self._frozen:
            own[layer.name] = {use.place for use in layer.uses} | set(layer.counting)
        for name in list(own):  # Under another name of a layer, its count is another one.
            for other in self._layers.by_name[name].shares_with & own.keys():
                own[name] |= set(self._layers.by_name[other].counting)
        stacks: dict[Place, str] = {
            place: stack
            for place in self._graph.places()
            if (stack := self._graph.node(place)["metadata"].get("nn_module_stack"))
        }
        for layer in self._frozen:
            inside = [place for place, stack in stacks.items() if layer.name in paths_in(stack)]
            copies = self._layers.renewals.copying
            if any(place not in own[layer.name] and place not in copies for place in inside):
                continue
            type_name = f"frozenbn_cli.nn.FrozenBatchNorm{layer.spatial_dims or 2}d"
            for place in inside:
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


def _parameter_of(spec: Mapping[str, Any]) -> str | None:
    return spec["parameter"]["parameter_name"] if "parameter" in spec else None


def _as_buffer(spec: Mapping[str, Any]) -> dict[str, Any]:
    fields = spec["parameter"]
    return {
        "buffer": {
            "arg": fields["arg"],
            "buffer_name": fields["parameter_name"],
            "persistent": True,
        }
    }
