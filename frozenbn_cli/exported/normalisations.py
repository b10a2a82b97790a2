"""The nodes of a program that normalise: what each takes, and in which way it does it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from frozenbn_cli.errors import DamagedFileError
from frozenbn_cli.exported.program_graph import (
    Node,
    Place,
    ProgramGraph,
    Value,
    argument_of,
    names_in,
)

__all__ = [
    "STATISTICS",
    "Normalisation",
    "Operator",
    "find_normalisations",
    "is_batch_norm",
    "is_instance_norm",
    "renewed_by",
]

STATISTICS = ("running_mean", "running_var")

_ATEN = "torch.ops.aten."


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator that normalises by statistics.

    Attributes:
        target: As in the program.
        frozen_target: What takes the running statistics instead; None if no edit makes it do so.
        has_flag: Whether an argument says which statistics it takes.
        takes_batch: Whether it takes those of the batch where no argument says it.
        outputs: How many it has.
        new_statistics: The index of the output that is the new running mean, behind which stands
            the new running variance; None where it writes them in place, or not at all.
    """

    target: str
    frozen_target: str | None = None
    has_flag: bool = True
    takes_batch: bool = False
    outputs: int = 3
    new_statistics: int | None = None


_NO_TRAINING = f"{_ATEN}_native_batch_norm_legit_no_training.default"

_OPERATORS = {
    operator.target: operator
    for operator in (
        Operator(f"{_ATEN}batch_norm.default", f"{_ATEN}batch_norm.default", outputs=1),
        Operator(_NO_TRAINING, _NO_TRAINING, has_flag=False),
        Operator(
            f"{_ATEN}_native_batch_norm_legit_functional.default",
            _NO_TRAINING,
            outputs=5,
            new_statistics=3,
        ),
        Operator(f"{_ATEN}_native_batch_norm_legit.default", _NO_TRAINING),
        Operator(f"{_ATEN}_native_batch_norm_legit.no_stats"),
        Operator(f"{_ATEN}native_batch_norm.default", f"{_ATEN}native_batch_norm.default"),
        Operator(f"{_ATEN}cudnn_batch_norm.default", outputs=4),
        Operator(f"{_ATEN}miopen_batch_norm.default"),
        Operator(f"{_ATEN}_batch_norm_with_update.default", None, False, True, 4),
        Operator(f"{_ATEN}_batch_norm_with_update_functional.default", None, False, True, 6, 4),
        Operator(f"{_ATEN}_batch_norm_no_update.default", None, False, False, 4),
    )
}


@dataclass(frozen=True, slots=True)
class Normalisation:
    """A node that normalises by statistics.

    Attributes:
        place: The node.
        operator: Its operator.
        tensors: What it takes, by role, as it is called where it comes from; none for what is not
            given.
        takes_batch: Whether it takes the statistics of the batch.
        eps: Added to the variance.
        momentum: Of the running average.
        rank: How many dimensions its input has; None where the program does not say.
        outputs: The values that it makes.
    """

    place: Place
    operator: Operator
    tensors: Mapping[str, Value]
    takes_batch: bool
    eps: float
    momentum: float | None
    rank: int | None
    outputs: tuple[Value, ...]

    def new_statistic(self, index: int) -> Value | None:
        """Return the new running mean (0) or running variance (1); None if it gives none out."""
        first = self.operator.new_statistics
        if first is None or len(self.outputs) != self.operator.outputs:
            return None
        return self.outputs[first + index]


def find_normalisations(graph: ProgramGraph) -> list[Normalisation]:
    """Return the nodes that normalise as BatchNorm does, those that are no layer too.

    Raises:
        DamagedFileError: A node lacks an argument that its operator has.
    """
    return list(_found(graph))


def is_batch_norm(target: str) -> bool:
    """Return whether an operator normalises as BatchNorm does."""
    return target in _OPERATORS


def renewed_by(node: Node, name: str) -> str:
    """Return which statistic an output of a node renews; empty if it does not normalise so."""
    operator = _OPERATORS.get(node["target"])
    outputs = list(names_in(node["outputs"]))
    if operator is None or operator.new_statistics is None or len(outputs) != operator.outputs:
        return ""
    renewed = outputs[operator.new_statistics :][: len(STATISTICS)]
    return STATISTICS[renewed.index(name)] if name in renewed else ""


def is_instance_norm(target: str) -> bool:
    """Return whether an operator normalises each image by itself."""
    return target == f"{_ATEN}instance_norm.default"


def _found(graph: ProgramGraph) -> Iterator[Normalisation]:
    for place in graph.places():
        node = graph.node(place)
        if operator := _OPERATORS.get(node["target"]):
            tensors = {}
            for role in ("input", "weight", "bias", "running_mean", "running_var"):
                names = list(names_in(argument_of(node, role)))
                if len(names) == 1:
                    tensors[role] = graph.origin(place.scope, names[0])
            taken = next(names_in(argument_of(node, "input")), "")
            yield Normalisation(
                place,
                operator,
                tensors,
                _takes_batch(node, operator),
                _number(node, "eps" if argument_of(node, "eps") else "epsilon"),
                _momentum(node),
                graph.rank(place.scope, taken),
                tuple(Value(place.scope, name) for name in names_in(node["outputs"])),
            )


def _takes_batch(node: dict[str, Any], operator: Operator) -> bool:
    if not operator.has_flag:
        return operator.takes_batch
    flag = (argument_of(node, "training") or {}).get("as_bool")
    if type(flag) is not bool:
        raise DamagedFileError(f"training of {node['target']}", expected="true or false")
    return flag


def _number(node: dict[str, Any], name: str) -> float:
    value = _plain_number(node, name)
    if value is None or value < 0:
        raise DamagedFileError(f"{name} of {node['target']}", expected="a number, 0 or more")
    return value


def _momentum(node: dict[str, Any]) -> float | None:
    value = _plain_number(node, "momentum")
    return _plain_number(node, "exponential_average_factor") if value is None else value


def _plain_number(node: dict[str, Any], name: str) -> float | None:
    argument = argument_of(node, name) or {}
    value: Any = argument.get("as_float", argument.get("as_int"))
    try:
        return float(value) if type(value) in (int, float) and math.isfinite(value) else None
    except OverflowError:  # JSON has integers beyond all floats.
        return None
