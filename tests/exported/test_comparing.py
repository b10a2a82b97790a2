"""What changed beside frozen layers is found, whoever changed it and however."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.errors import VerificationError
from frozenbn_cli.exported import rewriting
from frozenbn_cli.exported.comparing import other_change
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


CHANGES: dict[str, Callable[[Graph], object]] = {
    "another eps": lambda m: take(m, "batch_norm", "eps", {"as_float": 0.5}),
    "another input": lambda m: take(m, "batch_norm", "input", {"as_tensor": {"name": "images"}}),
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
