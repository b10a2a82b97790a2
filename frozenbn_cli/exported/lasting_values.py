"""What stands for a value of a program once some layers take their running statistics for good.

A count that went up is the count, and a statistic that was renewed is the statistic, since neither
changes any more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from frozenbn_cli.exported.normalisations import STATISTICS, renewed_by
from frozenbn_cli.exported.program_graph import Node, ProgramGraph, Value, argument_of, names_in

__all__ = ["LastingValues"]

_COUNT = "num_batches_tracked"
_COPY = "a copy"
_ADDING, _ADDING_IN_PLACE = (f"torch.ops.aten.{name}.Tensor" for name in ("add", "add_"))
_COPYING = {f"torch.ops.aten.{name}.default" for name in ("_to_copy", "clone", "alias", "detach")}


class _Step(NamedTuple):
    """How a value is made of an older one: it renews what has this role, or is a copy."""

    older: Value
    role: str


class LastingValues:
    """The values of a program, and what of frozen layers stands for them.

    Args:
        graph: The program before any layer is frozen.
        theirs: The names of the tensors of these layers.
    """

    def __init__(self, graph: ProgramGraph, theirs: Collection[str]) -> None:
        self._graph = graph
        self.role = {
            value: name.rpartition(".")[2] for name in theirs for value in graph.inputs_of(name)
        }
        self._standing: dict[Value, Value | None] = {value: value for value in self.role}
        self._written = {value for name in theirs for value in self._written_to(name)}

    def of(self, value: Value) -> Value:
        """Return the tensor of a frozen layer that stands for a value; itself where none does."""
        steps: dict[Value, _Step] = {}
        current = value
        while current not in self._standing and current not in steps:
            if (step := self._step(current)) is None:
                break
            steps[current] = step
            current = step.older
        root = self._standing.get(current)
        for made, step in reversed(steps.items()):
            root = root if root and self._goes_on(root, step) else None
            self._standing[made] = root
        return root or value

    def _goes_on(self, root: Value, step: _Step) -> bool:
        role = self.role[root]
        # A copy of what never was renewed is left as it is.
        is_copy = step.role == _COPY and role in STATISTICS and step.older != root
        return is_copy or step.role == role

    def _written_to(self, name: str) -> Iterator[Value]:
        """Yield what is written to a count in the end, and what that was added up from.

        What is added to a count and not written only reads it, and is another number.
        """
        value, seen = self._graph.mutated.get(name), set[Value]()
        while value is not None and value not in seen and (place := self._graph.maker(value)):
            node = self._graph.node(place)
            names = list(names_in(_counted(node))) if node["target"] == _ADDING else []
            if len(names) != 1:
                return
            yield value
            seen.add(value)
            value = self._graph.origin(place.scope, names[0])

    def _step(self, value: Value) -> _Step | None:
        place = self._graph.maker(value)
        if place is None:
            return None
        node = self._graph.node(place)
        role, taken = renewed_by(node, value.name), None
        if role:
            taken = argument_of(node, role)
        elif node["target"] == _ADDING_IN_PLACE or value in self._written:
            role, taken = _COUNT, _counted(node)
        elif node["target"] in _COPYING:
            role, taken = _COPY, argument_of(node, "self")
        names = list(names_in(taken))
        return _Step(self._graph.origin(place.scope, names[0]), role) if len(names) == 1 else None


def _counted(node: Node) -> Any:
    """Return what a node adds 1 to; None if it adds anything else."""
    return argument_of(node, "self") if argument_of(node, "other") == {"as_int": 1} else None
