"""Whether a program is another with some layers frozen, and nothing else changed.

This knows nothing of how a program is edited. It takes two programs, and lets differ only what
freezing means: the nodes that normalise with those layers, what counts their batches or copies
their new statistics, what takes either, and how the signature lists their tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from frozenbn_cli.errors import DamagedFileError
from frozenbn_cli.exported.lasting_values import LastingValues
from frozenbn_cli.exported.normalisations import STATISTICS, is_batch_norm
from frozenbn_cli.exported.program_graph import (
    Node,
    ProgramGraph,
    Scope,
    Value,
    argument_of,
    names_in,
)
from frozenbn_cli.exported.program_shape import subgraphs_of

__all__ = ["other_change"]

_COUNT = "num_batches_tracked"
_ROLES = ("weight", "bias", *STATISTICS, _COUNT)


def other_change(
    before: Mapping[str, Any], after: Mapping[str, Any], frozen: Collection[str]
) -> str | None:
    """Return what else two programs differ in, in words; None for nothing.

    Args:
        before: A program.
        after: The program that it should be with layers frozen.
        frozen: The names of these layers, all names of each.
    """
    return next(_changes(before, after, frozen), None)


def _changes(
    before: Mapping[str, Any], after: Mapping[str, Any], frozen: Collection[str]
) -> Iterator[str]:
    first, second = dict(before), dict(after)
    one, other = dict(first.pop("graph_module")), dict(second.pop("graph_module"))
    if first != second:
        yield "something beside the graph changed"
    for part in ("graph", "signature"):
        del one[part], other[part]
    if one != other:
        yield "something beside the nodes and the signature changed"
    theirs = {f"{name}.{role}" if name else role for name in frozen for role in _ROLES}
    old = ProgramGraph(before)
    try:
        new = ProgramGraph(after)
    except DamagedFileError as error:
        yield error.problem
        return
    if len(old.scopes) != len(new.scopes):
        yield "there are other graphs in it"
        return
    yield from _in_inputs(before["graph_module"], after["graph_module"], theirs)
    yield from _Comparison(old, new, theirs).changes(before["graph_module"], after["graph_module"])


def _in_inputs(
    before: Mapping[str, Any], after: Mapping[str, Any], theirs: Collection[str]
) -> Iterator[str]:
    old, new = ([*module["signature"]["input_specs"]] for module in (before, after))
    if [spec for spec in old if _target(spec) not in theirs] != [
        spec for spec in new if _target(spec) not in theirs
    ]:
        yield "input_specs of other tensors changed"
    taken = [(_target(spec), *names_in(spec)) for spec in old]
    for spec in new:
        if _target(spec) in theirs:
            if "buffer" not in spec:
                yield "an affine tensor of a frozen layer is a parameter still"
            if (_target(spec), *names_in(spec)) not in taken:
                yield f"{_target(spec)} is taken as something else"
    if list(names_in(old)) == list(names_in(before["graph"]["inputs"])) and (
        list(names_in(new)) != list(names_in(after["graph"]["inputs"]))
    ):
        yield "the graph takes its inputs in another order than its signature"


def _target(spec: Mapping[str, Any]) -> str:
    ((kind, fields),) = spec.items()
    return str(fields.get(f"{kind.removesuffix('_mutation')}_name", ""))


class _Comparison:
    """Compares the graphs of two programs, one by one.

    Args:
        before: A program.
        after: The one that it should be.
        theirs: The names of the tensors of frozen layers.
    """

    def __init__(self, before: ProgramGraph, after: ProgramGraph, theirs: Collection[str]) -> None:
        self._before, self._after, self._theirs = before, after, theirs
        self._lasting = LastingValues(before, theirs)
        self._there = {
            Value(scope.index, name) for scope in after.scopes for name in _names_of(scope.graph)
        }

    def changes(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
        """Yield what differs in the nodes, and in what goes in and out of the graphs."""
        for old, new in zip(self._before.scopes, self._after.scopes, strict=True):
            yield from self._in_nodes(old, new)
            yield from self._in_arguments(old, new)
        yield from self._in_outputs(before, after)

    def _in_nodes(self, before: Scope, after: Scope) -> Iterator[str]:
        old, new = before.graph["nodes"], after.graph["nodes"]
        kept = list(_pairs(old, new))
        if len(kept) != len(new):
            yield "the nodes are others, or in another order"
            return
        stayed = {id(node) for node, _ in kept}
        for node in old:
            if id(node) not in stayed and not self._may_go(before, node):
                yield f"node {_name(node)} is gone: {node['target']}"
        for one, other in kept:
            yield from self._in_node(before, one, other)

    def _may_go(self, scope: Scope, node: Node) -> bool:
        """Return whether all that a node makes is what a frozen layer has anyhow."""
        made = [Value(scope.index, name) for name in names_in(node["outputs"])]
        return bool(made) and all(self._lasting.of(value) != value for value in made)

    def _in_node(self, scope: Scope, before: Node, after: Node) -> Iterator[str]:
        name = _name(after)
        if _without_classes(before) != _without_classes(after):
            yield f"what is told of node {name} changed"
        if is_batch_norm(before["target"]) and self._is_frozen(scope, before):
            for role in ("input", "weight", "bias", *STATISTICS, "momentum", "eps"):
                old, new = argument_of(before, role), argument_of(after, role)
                if not self._is_same(scope, old, new):
                    yield f"node {name} has another {role}"
            if not is_batch_norm(after["target"]):
                yield f"node {name} is {after['target']} now"
            if argument_of(after, "training") not in (None, {"as_bool": False}):
                yield f"node {name} takes statistics of the batch still"
            return
        if before["target"] != after["target"]:
            yield f"node {name} is {after['target']} now"
        if not any(subgraphs_of(before)):
            if not self._is_same(scope, _arguments(before), _arguments(after)):
                yield f"node {name} takes something else"
            return
        passed = [
            read for read in names_in(_arguments(before)) if not self._is_dropped(scope, read)
        ]
        if not self._are_called(scope, passed, list(names_in(_arguments(after)))):
            yield f"node {name} takes something else"

    def _is_frozen(self, scope: Scope, node: Node) -> bool:
        taken = (next(names_in(argument_of(node, role)), "") for role in STATISTICS)
        origins = (self._before.origin(scope.index, name) for name in taken)
        return all(self._lasting.of(value) in self._lasting.role for value in origins)

    def _in_arguments(self, before: Scope, after: Scope) -> Iterator[str]:
        """Yield what a graph takes and gives otherwise; of the outermost, its signature tells."""
        old = [
            name for name in names_in(before.graph["inputs"]) if not self._is_dropped(before, name)
        ]
        new = list(names_in(after.graph["inputs"]))
        if (sorted(old) != sorted(new)) if before.outer is None else (old != new):
            yield "a graph takes something else"
        if before.outer is not None and not self._is_same(
            before, before.graph["outputs"], after.graph["outputs"]
        ):
            yield "a graph in it gives something else"

    def _is_dropped(self, scope: Scope, name: str) -> bool:
        """Return whether a graph takes the count of a frozen layer no more."""
        role = self._lasting.role.get(self._before.origin(scope.index, name))
        return role == _COUNT and Value(scope.index, name) not in self._there

    def _in_outputs(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
        scope = self._before.scopes[0]
        old, new = (
            list(zip(module["signature"]["output_specs"], module["graph"]["outputs"], strict=True))
            for module in (before, after)
        )
        if any("buffer_mutation" in spec for spec, _ in new if _target(spec) in self._theirs):
            yield "a tensor of a frozen layer is written still"
        old = [
            pair
            for pair in old
            if "buffer_mutation" not in pair[0] or _target(pair[0]) not in self._theirs
        ]
        if not self._is_same(scope, [list(pair) for pair in old], [list(pair) for pair in new]):
            yield "output_specs of other tensors changed"

    def _is_same(self, scope: Scope, before: Any, after: Any) -> bool:
        """Return whether arguments are the same, but for what stands for what is no more."""
        if isinstance(before, list) and isinstance(after, list):
            return len(before) == len(after) and all(
                self._is_same(scope, old, new) for old, new in zip(before, after, strict=True)
            )
        if isinstance(before, dict) and isinstance(after, dict):
            return before.keys() == after.keys() and all(
                self._are_called(scope, [old], [after[key]])
                if key in ("name", "as_name") and isinstance(old, str)
                else self._is_same(scope, old, after[key])
                for key, old in before.items()
            )
        return bool(before == after)

    def _are_called(self, scope: Scope, before: list[str], after: list[str]) -> bool:
        """Return whether names stand for the same values, in a graph before and after."""
        return len(before) == len(after) and all(
            old == new
            if Value(scope.index, old) in self._there
            else self._lasting.of(self._before.origin(scope.index, old))
            == self._before.origin(scope.index, new)
            for old, new in zip(before, after, strict=True)
        )


def _names_of(graph: Mapping[str, Any]) -> Iterator[str]:
    yield from names_in(graph["inputs"])
    for node in graph["nodes"]:
        yield from names_in(node["outputs"])


def _pairs(
    before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the nodes that stay, before and after, as long as they come in the same order.

    Some have no outputs, such as assertions, and so no name by which to tell one from another.
    """
    left = iter(after)
    new = next(left, None)
    for old in before:
        if new is not None and _name(old) == _name(new):
            yield old, new
            new = next(left, None)


def _name(node: Mapping[str, Any]) -> str:
    return next(names_in(node["outputs"]), "")


def _arguments(node: Mapping[str, Any]) -> list[Any]:
    return [taken["arg"] for taken in node["inputs"]]


def _without_classes(node: Mapping[str, Any]) -> dict[str, str]:
    told: dict[str, str] = dict(node["metadata"])
    stack = told.pop("nn_module_stack", "")
    told["paths"] = ";".join(entry.rpartition(",")[0] for entry in stack.split(";"))
    return told
