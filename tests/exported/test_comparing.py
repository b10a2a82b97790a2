"""What changed beside frozen layers is found, whoever changed it and however."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.errors import VerificationError
from frozenbn_cli.exported import rewriting
from frozenbn_cli.exported.comparing import other_change
from frozenbn_cli.exported.program_graph import argument_of, names_in
from tests.builders.hostile_programs import export
from tests.builders.models import perturb
from tests.builders.programs import convert

WRITTEN_BY = Path(__file__).parent / "written_by"
FROZEN = ("bn", "norm")

Graph = dict[str, Any]


def read(path: Path) -> dict[str, Any]:
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.program is not None
        return checkpoint.program.program("model")


@pytest.fixture(params=["2.6-eval", "2.6-train", "2.9-eval", "2.9-train"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "a.pt2"
    path.write_bytes((WRITTEN_BY / f"{request.param}.pt2").read_bytes())
    return path


def node(module: Graph, part: str) -> dict[str, Any]:
    return next(item for item in module["graph"]["nodes"] if part in item["target"])


def take(module: Graph, part: str, role: str, value: dict[str, Any]) -> None:
    next(item for item in node(module, part)["inputs"] if item["name"] == role)["arg"] = value


def as_parameter(module: Graph) -> None:
    specs = module["signature"]["input_specs"]
    index = next(i for i, spec in enumerate(specs) if "bn.bias" in str(spec))
    fields = specs[index]["buffer"]
    specs[index] = {"parameter": {"arg": fields["arg"], "parameter_name": "bn.bias"}}


def variance_of(module: Graph) -> dict[str, Any]:
    inputs = node(module, "batch_norm")["inputs"]
    variance: dict[str, Any] = next(item["arg"] for item in inputs if item["name"] == "running_var")
    return variance


def train_still(module: Graph) -> None:
    taken = node(module, "batch_norm")["inputs"]
    taken[:] = [item for item in taken if item["name"] != "training"]
    taken.append({"name": "training", "arg": {"as_bool": True}, "kind": 1})


def give_out_something_else(module: Graph) -> None:
    (output,) = node(module, "relu")["outputs"]
    module["graph"]["outputs"][-1] = output
    module["signature"]["output_specs"][-1] = {"user_output": {"arg": output}}


def swap_affine(module: Graph) -> None:
    specs = module["signature"]["input_specs"]
    buffers = [spec["buffer"] for spec in specs if "buffer" in spec]
    weight, bias = (
        next(buffer for buffer in buffers if buffer["buffer_name"].endswith(role))
        for role in ("weight", "bias")
    )
    weight["arg"], bias["arg"] = bias["arg"], weight["arg"]


def take_less(module: Graph) -> None:
    module["graph"]["inputs"].pop(0)
    module["signature"]["input_specs"].pop(0)


CHANGES: dict[str, Callable[[Graph], object]] = {
    "another eps": lambda m: take(m, "batch_norm", "eps", {"as_float": 0.5}),
    "another input": lambda m: take(m, "batch_norm", "input", {"as_tensor": {"name": "images"}}),
    "another mean": lambda m: take(m, "batch_norm", "running_mean", variance_of(m)),
    "statistics of the batch": train_still,
    "another value given out": give_out_something_else,
    "weight for bias": swap_affine,
    "an input less": take_less,
    "another number": lambda m: take(m, "mean", "dim", {"as_ints": [1]}),
    "another operator": lambda m: node(m, "relu").update(target="torch.ops.aten.gelu.default"),
    "a node less": lambda m: m["graph"]["nodes"].remove(node(m, "relu")),
    "another order": lambda m: m["graph"]["nodes"].reverse(),
    "another path": lambda m: node(m, "relu")["metadata"].update(nn_module_stack="a,b,c"),
    "another output": lambda m: m["signature"]["output_specs"].clear(),
    "a parameter still": as_parameter,
    "a signature": lambda m: m["module_call_graph"].pop(),
}


def test_only_freezing_is_none(path: Path) -> None:
    before, after = read(path), read(convert(path).output_path)

    assert other_change(before, after, FROZEN) is None
    assert other_change(before, after, ("bn",)) is not None
    assert other_change(before, before, ()) is None


@pytest.mark.parametrize("change", CHANGES)
def test_any_other_change_is_found(change: str, path: Path) -> None:
    before, after = read(path), read(convert(path).output_path)

    CHANGES[change](after["graph_module"])

    assert other_change(before, after, FROZEN) is not None


class ReadNextCount(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x) * (self.bn.num_batches_tracked + 1)  # type: ignore[operator]


def test_a_count_is_not_what_is_added_to_it(tmp_path: Path) -> None:
    before = read(
        export(perturb(ReadNextCount()).eval(), tmp_path / "a.pt2", torch.zeros(2, 3, 4, 4))
    )
    after = read(convert(tmp_path / "a.pt2").output_path)
    assert other_change(before, after, ("bn",)) is None
    graph = after["graph_module"]["graph"]
    add = node(after["graph_module"], "add")
    graph["nodes"].remove(add)
    (made,), (count,) = names_in(add["outputs"]), names_in(argument_of(add, "self"))
    take(after["graph_module"], "mul", "other", {"as_tensor": {"name": count}})

    assert made not in str(graph["nodes"])
    assert other_change(before, after, ("bn",)) == f"node {made} is gone: {add['target']}"


def test_something_beside_the_graph(path: Path) -> None:
    before = read(path)

    assert other_change(before, before | {"guards_code": ["x"]}, ()) is not None


def test_a_conversion_that_changes_more_writes_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freeze = rewriting.freeze_program

    def spoilt(document: dict[str, Any], *arguments: Any) -> Any:
        CHANGES["another number"](document["graph_module"])
        return freeze(document, *arguments)

    monkeypatch.setattr(rewriting, "freeze_program", spoilt)

    with pytest.raises(VerificationError, match="contents: node mean takes something else"):
        convert(path, verify=True)

    assert [file.name for file in path.parent.iterdir()] == ["a.pt2"]
