"""A program's graphs as one: what each value is, and everything that takes it.

A graph can take graphs, such as the branches of `torch.cond`, whose inputs are the values that the
node around them passes, by position. Here a value is followed to where it comes from, whatever it
is called on the way.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from frozenbn_cli.errors import DamagedFileError
from frozenbn_cli.exported.program_shape import subgraphs_of

__all__ = [
    "Node",
    "Place",
    "ProgramGraph",
    "Reader",
    "Scope",
    "Spec",
    "Value",
    "argument_of",
    "names_in",
    "single_outputs",
]

# Of these nodes, what stands behind their graphs is what the graphs take, each time.
_PASSING_ON = {
    f"torch.ops.higher_order.{name}"
    for name in (
        "cond", "wrap_with_set_grad_enabled", "wrap_with_autocast", "wrap", "strict_mode",
        "invoke_subgraph", "tag_activation_checkpoint",
    )
}  # fmt: skip

Node = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Value:
    """A value where it comes from.

    Attributes:
        scope: The index of the graph that makes it or, as an input, takes it from outside.
        name: In that graph.
    """

    scope: int
    name: str


@dataclass(frozen=True, slots=True)
class Spec:
    """What an input of the program is.

    Attributes:
        kind: ``parameter``, ``buffer``, ``user_input`` or another of the schema.
        target: The name of the parameter, buffer or constant; empty for others.
    """

    kind: str
    target: str


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """One of the program's graphs.

    Attributes:
        index: Among all; 0 is the outermost.
        graph: As in the program.
        outer: The index of the graph around it; None for the outermost.
        passed: What the graph around it calls each of its inputs; empty where that is not known.
        taker: The node that takes it; None for the outermost.
    """

    index: int
    graph: dict[str, Any]
    outer: int | None
    passed: Mapping[str, str]
    taker: Node | None


@dataclass(frozen=True, slots=True)
class Place:
    """A node in its graph.

    Attributes:
        scope: The index of the graph.
        index: Of the node in the graph.
    """

    scope: int
    index: int


@dataclass(frozen=True, slots=True)
class Reader:
    """Something that takes a value.

    Attributes:
        place: The node; None where it is an output of the graph, or of a module's signature.
        role: What the node calls it; empty where there is none.
        what: The node's operator, or what else it is, for a message.
        writes_to: The buffer that an output of the program is written to; None for all else.
    """

    place: Place | None
    role: str
    what: str
    writes_to: str | None = None


class ProgramGraph:
    """The graphs of a program that has the shape of the schema.

    Attributes:
        scopes: All graphs, the outermost first.
        specs: What the inputs of the program are, by their names in the outermost graph.
        inputs: The names of those that are parameters, buffers or constants, by what they are of;
            strict exports have several of a tensor with several names.
        mutated: What is written to a buffer in the end, by the buffer.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        module = document["graph_module"]
        self.scopes: list[Scope] = []
        self._add(module["graph"], None, None)
        self.specs: dict[str, Spec] = {}
        for spec in module["signature"]["input_specs"]:
            ((kind, fields),) = spec.items()
            for name in names_in(fields.get("arg")):
                self.specs[name] = Spec(kind, _target_of(kind, fields))
        self.inputs: dict[str, list[Value]] = {}
        for name, spec in self.specs.items():
            if spec.target:
                self.inputs.setdefault(spec.target, []).append(Value(0, name))
        self._made_by = dict(self._makers())
        self.mutated: dict[str, Value] = {}
        self._readers: dict[Value, list[Reader]] = {}
        self._find_readers(module)

    def _makers(self) -> Iterator[tuple[Value, Place]]:
        """Yield every value that a node makes, each of which has a name of its own."""
        for scope in self.scopes:
            taken = list(names_in(scope.graph["inputs"]))
            seen = set(taken)
            for index, node in enumerate(scope.graph["nodes"]):
                for name in names_in(node["outputs"]):
                    if name in seen:
                        raise DamagedFileError(f"two values of one graph are called {name[:80]!a}")
                    seen.add(name)
                    yield Value(scope.index, name), Place(scope.index, index)

    def _add(self, graph: dict[str, Any], outer: int | None, taker: Node | None) -> None:
        passed = _passed(taker, graph) if taker else {}
        scope = Scope(len(self.scopes), graph, outer, passed, taker)
        self.scopes.append(scope)
        for node in graph["nodes"]:
            for inner in subgraphs_of(node):
                self._add(inner, scope.index, node)

    def node(self, place: Place) -> Node:
        """Return the node at a place."""
        node: Node = self.scopes[place.scope].graph["nodes"][place.index]
        return node

    def places(self) -> Iterator[Place]:
        """Yield the place of every node."""
        for scope in self.scopes:
            for index in range(len(scope.graph["nodes"])):
                yield Place(scope.index, index)

    def origin(self, scope: int, name: str) -> Value:
        """Return where a value comes from that a graph calls by this name."""
        while (found := self.scopes[scope]).outer is not None and name in found.passed:
            scope, name = found.outer, found.passed[name]
        return Value(scope, name)

    def spec(self, value: Value) -> Spec | None:
        """Return what an input of the program is; None for any other value."""
        return self.specs.get(value.name) if value.scope == 0 else None

    def maker(self, value: Value) -> Place | None:
        """Return the node that a value is an output of; None for an input of a graph."""
        return self._made_by.get(value)

    def inputs_of(self, target: str) -> list[Value]:
        """Return the inputs of the program that are a parameter, buffer or constant."""
        return self.inputs.get(target, [])

    def readers(self, value: Value) -> list[Reader]:
        """Return everything that takes a value, under whatever name."""
        return self._readers.get(value, [])

    def dtype(self, value: Value) -> int | None:
        """Return the number of a value's dtype; None where the program does not say."""
        meta = self.scopes[value.scope].graph["tensor_values"].get(value.name)
        return None if meta is None else meta["dtype"]

    def rank(self, scope: int, name: str) -> int | None:
        """Return how many dimensions a value has; None where the program does not say."""
        meta = self.scopes[scope].graph["tensor_values"].get(name)
        return None if meta is None else len(meta["sizes"])

    # Who takes what

    def _find_readers(self, module: Mapping[str, Any]) -> None:
        for place in self.places():
            node = self.node(place)
            for taken in node["inputs"][: _followed_from(node)]:
                for name in names_in(taken["arg"]):
                    self._read(place.scope, name, Reader(place, taken["name"], node["target"]))
        for scope in self.scopes[1:]:
            for name in names_in(scope.graph["outputs"]):
                self._read(scope.index, name, Reader(None, "", "the output of a graph in it"))
        outputs = self.scopes[0].graph["outputs"]
        specs = module["signature"]["output_specs"]
        if len(outputs) != len(specs):
            raise DamagedFileError(f"{len(specs):,} output_specs", expected=f"{len(outputs):,}")
        for output, spec in zip(outputs, specs, strict=True):
            buffer = _buffer_written(spec)
            for name in names_in(output):
                if buffer is not None:
                    self.mutated[buffer] = self.origin(0, name)
                self._read(0, name, Reader(None, "", "an output of the program", buffer))
        for entry in module["module_call_graph"]:
            for role in ("inputs", "outputs"):
                for name in names_in((entry.get("signature") or {}).get(role)):
                    what = f"the signature of {entry['fqn'] or 'the module'}"
                    self._read(0, name, Reader(None, "", what))

    def _read(self, scope: int, name: str, reader: Reader) -> None:
        self._readers.setdefault(self.origin(scope, name), []).append(reader)


def argument_of(node: Node, name: str) -> Any:
    """Return what a node takes under a name; None if it takes nothing so called."""
    return next((taken["arg"] for taken in node["inputs"] if taken["name"] == name), None)


def single_outputs(graph: ProgramGraph, place: Place) -> list[Value]:
    """Return the tensors that a node makes, those in lists left out."""
    return [
        Value(place.scope, argument["as_tensor"]["name"])
        for argument in graph.node(place)["outputs"]
        if "as_tensor" in argument
    ]


def names_in(argument: Any) -> Iterator[str]:
    """Yield the names of the values in an argument, however they are packed."""
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(argument, dict):
        parts = argument.items()
    elif isinstance(argument, list):
        parts = enumerate(argument)
    for key, part in parts:
        if isinstance(part, str) and key in ("name", "as_name"):
            yield part
        elif isinstance(part, (dict, list)) and key != "as_graph":
            yield from names_in(part)


def _target_of(kind: str, fields: Mapping[str, Any]) -> str:
    return str(fields.get(f"{kind}_name", ""))


def _buffer_written(spec: Mapping[str, Any]) -> str | None:
    """Return the buffer that an output is written to; None if it is for anything else."""
    ((kind, fields),) = spec.items()
    return str(fields["buffer_name"]) if kind == "buffer_mutation" else None


def _followed_from(node: Node) -> int:
    """Return from which input on the graphs that a node takes are what reads its inputs."""
    graphs = list(subgraphs_of(node))
    if not graphs or not all(_passed(node, graph) or not graph["inputs"] for graph in graphs):
        return len(node["inputs"])
    return _behind_graphs(node)


def _behind_graphs(node: Node) -> int:
    inputs = node["inputs"]
    return 1 + max(index for index, taken in enumerate(inputs) if "as_graph" in taken["arg"])


def _passed(node: Node, graph: Mapping[str, Any]) -> dict[str, str]:
    """Return what is passed for each input of a graph that a node takes; empty if it is unknown."""
    if node["target"] not in _PASSING_ON:
        return {}
    passed = node["inputs"][_behind_graphs(node) :]
    operands = [name for taken in passed for name in names_in(taken["arg"])]
    inputs = [list(names_in(argument)) for argument in graph["inputs"]]
    # A number among them stands at a place of its own.
    if any(len(names) != 1 for names in inputs) or len(operands) != len(inputs):
        return {}
    return dict(zip((names[0] for names in inputs), operands, strict=True))
