"""Where new statistics go, in a decomposed program: each use gives them out as values of their own.

They are copied perhaps, go into the next use of the same layer, and to its buffer in the end.
"""

from __future__ import annotations

from collections.abc import Iterable

from frozenbn_cli.exported.normalisations import STATISTICS, Normalisation
from frozenbn_cli.exported.program_graph import Place, ProgramGraph, Reader, Value, single_outputs

__all__ = ["Renewals"]

_COPYING = {f"torch.ops.aten.{name}.default" for name in ("_to_copy", "clone", "alias", "detach")}


class Renewals:
    """The new statistics of a program, and their copies.

    Attributes:
        old: The statistic that each of them renews, which may be a new one itself.
        copying: The nodes that copy them.
    """

    def __init__(self, graph: ProgramGraph, normalisations: Iterable[Normalisation]) -> None:
        self._graph = graph
        self.old: dict[Value, Value] = {}
        self.copying: set[Place] = set()
        for norm in normalisations:
            for index, role in enumerate(STATISTICS):
                old = norm.tensors.get(role)
                if (new := norm.new_statistic(index)) and old:
                    self._follow(new, old)
        self._new: dict[Value, list[Value]] = {}
        for new, old in self.old.items():
            self._new.setdefault(old, []).append(new)

    def _follow(self, new: Value, old: Value) -> None:
        waiting = [new]
        while waiting:
            value = waiting.pop()
            self.old[value] = old
            for reader in self._graph.readers(value):
                if reader.place and self._graph.node(reader.place)["target"] in _COPYING:
                    self.copying.add(reader.place)
                    waiting += single_outputs(self._graph, reader.place)

    def oldest(self, value: Value | None) -> Value | None:
        """Return a statistic as it was before the program renewed it."""
        seen: set[Value] = set()
        while value is not None and value in self.old and value not in seen:
            seen.add(value)
            value = self.old[value]
        return value

    def of(self, old: Value | None) -> list[Value]:
        """Return the new statistics that renew a statistic, and their copies."""
        return self._new.get(old, []) if old else []

    def other_readers(self, value: Value) -> list[Reader]:
        """Return what takes a new statistic, or a copy of one, beside the nodes that copy it."""
        return [reader for reader in self._graph.readers(value) if reader.place not in self.copying]
