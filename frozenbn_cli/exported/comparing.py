"""Whether a program is another with some layers frozen, and nothing else changed.

This knows nothing of how a program is edited. It takes two programs, and lets differ only what
freezing means: the nodes that normalise with those layers, what counts their batches or copies
their new statistics, and how the signature lists their tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from frozenbn_cli.exported.normalisations import is_batch_norm
from frozenbn_cli.exported.program_graph import argument_of, names_in
from frozenbn_cli.exported.program_shape import subgraphs_of

__all__ = ["other_change"]

_MAY_GO = {
    f"torch.ops.aten.{name}"
    for name in (
        "add.Tensor", "add_.Tensor", "_to_copy.default", "clone.default", "alias.default",
        "detach.default",
    )
}  # fmt: skip
_ROLES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


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
    graph, new_graph = one.pop("graph"), other.pop("graph")
    signature, new_signature = one.pop("signature"), other.pop("signature")
    if one != other:
        yield "something beside the nodes and the signature changed"
    theirs = {f"{name}.{role}" if name else role for name in frozen for role in _ROLES}
    yield from _in_signature(signature, new_signature, theirs)
    yield from _in_graph(graph, new_graph)


def _in_signature(
    before: Mapping[str, Any], after: Mapping[str, Any], theirs: Collection[str]
) -> Iterator[str]:
    for kind in ("input_specs", "output_specs"):
        old = [_plain(spec) for spec in before[kind] if _target(spec) not in theirs]
        new = [_plain(spec) for spec in after[kind] if _target(spec) not in theirs]
        if old != new:
            yield f"{kind} of other tensors changed"
    if any("parameter" in spec for spec in after["input_specs"] if _target(spec) in theirs):
        yield "an affine tensor of a frozen layer is a parameter still"
    if any("buffer_mutation" in spec for spec in after["output_specs"] if _target(spec) in theirs):
        yield "a tensor of a frozen layer is written still"


def _plain(spec: Mapping[str, Any]) -> tuple[str, str]:
    ((kind, fields),) = spec.items()
    # An output may be one that stands for a statistic now.
    return kind, "" if kind == "user_output" else repr(fields)


def _target(spec: Mapping[str, Any]) -> str:
    ((kind, fields),) = spec.items()
    return str(fields.get(f"{kind.removesuffix('_mutation')}_name", ""))


def _in_graph(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    kept = list(_pairs(before["nodes"], after["nodes"]))
    if len(kept) != len(after["nodes"]):
        yield "the nodes are others, or in another order"
        return
    stayed = {id(old) for old, _ in kept}
    for node in before["nodes"]:
        if id(node) not in stayed and node["target"] not in _MAY_GO:
            yield f"node {_name(node)} is gone: {node['target']}"
    gone = {made for node in before["nodes"] for made in names_in(node["outputs"])}
    gone |= set(names_in(before["inputs"]))
    gone -= {made for node in after["nodes"] for made in names_in(node["outputs"])}
    gone -= set(names_in(after["inputs"]))
    for old, new in kept:
        yield from _in_node(old, new, gone)
    if not set(names_in(after["inputs"])) <= set(names_in(before["inputs"])):
        yield "the graph takes something else"


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


def _in_node(before: dict[str, Any], after: dict[str, Any], gone: Collection[str]) -> Iterator[str]:
    name = _name(after)
    if _without_classes(before) != _without_classes(after):
        yield f"what is told of node {name} changed"
    if is_batch_norm(before["target"]):
        for role in ("input", "weight", "bias", "momentum", "eps"):
            if argument_of(before, role) != argument_of(after, role):
                yield f"node {name} has another {role}"
        if before["target"] != after["target"] and not is_batch_norm(after["target"]):
            yield f"node {name} is {after['target']} now"
        return
    if before["target"] != after["target"]:
        yield f"node {name} is {after['target']} now"
    graphs = list(subgraphs_of(before))
    if not graphs:
        if not _is_same(_arguments(before), _arguments(after), gone):
            yield f"node {name} takes something else"
        return
    for old, new in zip(graphs, subgraphs_of(after), strict=True):
        yield from _in_graph(old, new)
    passed = [read for read in names_in(_arguments(before)) if read not in gone]
    if [read for read in names_in(_arguments(after)) if read in passed] != passed:
        yield f"node {name} takes something else"


def _is_same(before: Any, after: Any, gone: Collection[str]) -> bool:
    """Return whether arguments are the same, but for the names of what is no more."""
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(
            _is_same(old, new, gone) for old, new in zip(before, after, strict=True)
        )
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() == after.keys() and all(
            (key in ("name", "as_name") and old in gone) or _is_same(old, after[key], gone)
            for key, old in before.items()
        )
    return bool(before == after)


def _arguments(node: Mapping[str, Any]) -> list[Any]:
    return [taken["arg"] for taken in node["inputs"]]


def _without_classes(node: Mapping[str, Any]) -> dict[str, str]:
    told: dict[str, str] = dict(node["metadata"])
    stack = told.pop("nn_module_stack", "")
    told["paths"] = ";".join(entry.rpartition(",")[0] for entry in stack.split(";"))
    return told
