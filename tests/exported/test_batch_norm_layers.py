"""The layers of programs: what is known of each, and why one is left alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torchvision
from torch import Tensor, nn

from frozenbn_cli.batch_norms.plan import LayerPlan
from frozenbn_cli.errors import UnsupportedFileError
from frozenbn_cli.exported.module_stack import innermost, type_in_stack, with_type
from frozenbn_cli.inspection import inspect_file
from frozenbn_cli.nn import FrozenBatchNorm2d
from tests.builders.programs import (
    AllDimensions,
    Bare,
    Branches,
    ComputedWeight,
    CountedAndRead,
    Instance,
    Odd,
    Plain,
    ResetCount,
    TwoNames,
    UsedWeight,
    WithoutGradient,
    Written,
    export,
    of_newest_layout,
    other_names,
    program_of,
    program_record,
    records,
    saved,
    uneven,
    write_records,
)

CONFIG = "data/weights/model_weights_config.json"
BATCH_NORM = "torch.nn.modules.batchnorm.BatchNorm2d"


def inspected(content: bytes, folder: Path) -> dict[str, LayerPlan]:
    path = folder / "a.pt2"
    path.write_bytes(content)
    (part,) = inspect_file(path).state_dicts
    return {item.layer.name: item for item in part.plan.layers}


def described(item: LayerPlan) -> tuple[Any, ...]:
    layer = item.layer
    return layer.type_name, layer.eps.value, layer.eps.source, layer.momentum, layer.spatial_dims


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_everything_is_read(mode: str, decomposed: bool, tmp_path: Path) -> None:
    found = inspected(program_of(Plain, mode, decomposed=decomposed), tmp_path)

    assert described(found["bn"]) == (BATCH_NORM, 1e-3, "read", 0.03, 2)
    assert described(found["head.1"]) == (BATCH_NORM, 1e-5, "read", 0.1, 2)
    assert found["bn"].layer.dims_known == "read"


def test_dimensions_are_those_of_the_inputs(tmp_path: Path) -> None:
    found = inspected(program_of(AllDimensions), tmp_path)

    dims = {name: item.layer.spatial_dims for name, item in found.items()}
    assert dims == {"flat": 1, "line": 1, "plane": 2, "volume": 3}


def test_branches_have_no_stack_and_layers_all_the_same(tmp_path: Path) -> None:
    found = inspected(program_of(Branches), tmp_path)

    assert described(found["bn"]) == (None, 1e-5, "read", 0.1, 2)
    assert found["bn"].action == "freeze"


def test_where_a_stack_names_another_module_no_class_is_read(tmp_path: Path) -> None:
    found = inspected(program_of(WithoutGradient, "train", decomposed=True), tmp_path)

    assert found["bn"].layer.type_name is None


def test_the_buffers_of_any_module_make_a_layer(tmp_path: Path) -> None:
    found = inspected(program_of(Bare), tmp_path)

    assert described(found[""]) == ("tests.builders.programs.Bare", 1e-4, "read", 0.3, 2)


def test_every_name_of_a_layer_is_one(tmp_path: Path) -> None:
    found = inspected(program_of(TwoNames), tmp_path)

    assert {name: set(item.layer.facts.shares_with) for name, item in found.items()} == {
        name: {"a", "b", "c"} for name in "abc"
    }


def with_names(path: Path, count: int, uses: int) -> None:
    """Give the tensors of a program's only layer many names more, and the layer many uses."""
    content = records(path)
    config = json.loads(content[CONFIG])
    entries = config["config"]
    for name, entry in list(entries.items()):
        role = name.rpartition(".")[2]
        entries |= {f"more.{index}.{role}": entry for index in range(count)}
    document = json.loads(content[program_record(content)])
    graph = document["graph_module"]["graph"]
    use = next(node for node in graph["nodes"] if "batch_norm" in node["target"])
    graph["nodes"] += [use | {"outputs": [{"as_tensor": {"name": f"y{i}"}}]} for i in range(uses)]
    content |= {
        CONFIG: json.dumps(config).encode(),
        program_record(content): json.dumps(document).encode(),
    }
    write_records(path, content)


@of_newest_layout
@pytest.mark.parametrize(("names", "uses"), [(300, 5), (60, 100)])
def test_a_layer_of_many_names_is_one(names: int, uses: int, tmp_path: Path) -> None:
    # Every pair of names, for each name, would take minutes.
    path = tmp_path / "a.pt2"
    path.write_bytes(program_of(Odd))
    with_names(path, names, uses)

    (part,) = inspect_file(path).state_dicts

    assert len(part.plan.layers) == names + 1
    assert {len(item.layer.facts.shares_with) for item in part.plan.layers} == {names + 1}


@of_newest_layout
def test_a_layer_of_more_names_and_uses_than_any_model_has(tmp_path: Path) -> None:
    path = tmp_path / "a.pt2"
    path.write_bytes(program_of(Odd))
    with_names(path, 1000, 1000)

    with pytest.raises(UnsupportedFileError, match=r"taken 1,001 times; that is beyond any model"):
        inspect_file(path)


class Arithmetic(nn.Module):
    """What a table of decompositions of one's own can make of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        bn = self.bn
        scale = bn.weight * (bn.running_var + bn.eps).rsqrt()  # type: ignore[operator]
        shift = bn.bias - bn.running_mean * scale
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)


LEFT_ALONE: list[tuple[Callable[[], nn.Module], str, bool, str, str]] = [
    (Written, "eval", False, "bn", r"torch\.ops\.aten\.mul_\.Tensor may write its running_mean"),
    (Written, "eval", True, "bn", "its running_mean is written elsewhere"),
    (Written, "train", False, "bn", "may write its running_mean"),
    (Written, "train", True, "bn", "its running_mean|may write its running_mean"),
    (UsedWeight, "eval", False, "bn", r"torch\.ops\.aten\.select\.int takes its weight too"),
    (ComputedWeight, "eval", False, "bn", "it is called with a weight that is computed"),
    (Instance, "eval", False, "norm", r"InstanceNorm2d, no BatchNorm"),
    (Instance, "eval", True, "norm", r"InstanceNorm2d, no BatchNorm"),
    (Instance, "train", True, "norm", r"InstanceNorm2d, no BatchNorm"),
    (Arithmetic, "eval", False, "bn", "nothing normalises as BatchNorm does"),
    (ResetCount, "eval", False, "bn", r"zero_\.default may write its num_batches_tracked"),
    (ResetCount, "eval", True, "bn", "its num_batches_tracked is written elsewhere"),
    (ResetCount, "train", False, "bn", r"zero_\.default may write its num_batches_tracked"),
    (CountedAndRead, "eval", False, "bn", "goes up in eval too, and something reads it"),
    (CountedAndRead, "eval", True, "bn", "goes up in eval too, and something reads it"),
    (other_names, "eval", False, "0", r"it normalises by 0\.average and 0\.running_var"),
]


@pytest.mark.parametrize(("make", "mode", "decomposed", "name", "reason"), LEFT_ALONE)
def test_why_a_layer_is_left_alone(
    make: Callable[[], nn.Module],
    mode: str,
    decomposed: bool,
    name: str,
    reason: str,
    tmp_path: Path,
) -> None:
    found = inspected(program_of(make, mode, decomposed=decomposed), tmp_path)

    assert found.keys() == {name}
    assert found[name].action == "leave"
    assert re.search(reason, found[name].reason or "")


class TestFrozenAlready:
    def test_ours(self, tmp_path: Path) -> None:
        model = nn.Sequential(FrozenBatchNorm2d(3), nn.BatchNorm2d(3))

        found = inspected(saved(export(uneven(model).train())), tmp_path)

        assert [item.layer.frozen_already for item in found.values()] == [True, False]

    def test_those_of_torchvision(self, tmp_path: Path) -> None:
        model = nn.Sequential(torchvision.ops.misc.FrozenBatchNorm2d(3))

        found = inspected(saved(export(uneven(model))), tmp_path)

        assert found["0"].layer.frozen_already

    def test_not_one_whose_affine_is_trained(self, tmp_path: Path) -> None:
        found = inspected(program_of(Plain), tmp_path)

        assert not any(item.layer.frozen_already for item in found.values())


class TestStacks:
    STACK = "L__self__,,a.Net;L__self__layers_0,layers.0,a.Block;bn@1,layers.0.bn,b.BN"

    def test_a_class_is_read_where_the_path_is_the_name(self) -> None:
        assert type_in_stack(self.STACK, "layers.0.bn") == "b.BN"
        assert type_in_stack(self.STACK, "layers.0") == "a.Block"
        assert type_in_stack(self.STACK, "bn") is None
        assert type_in_stack("", "") is None
        assert innermost(self.STACK) == ("layers.0.bn", "b.BN")
        assert innermost("nothing of the kind") == (None, "")

    def test_one_class_is_replaced_and_all_else_stays(self) -> None:
        changed = with_type(self.STACK, "layers.0.bn", "c.Frozen")

        assert changed == self.STACK.replace("b.BN", "c.Frozen")
        assert with_type(self.STACK, "other", "c.Frozen") == self.STACK
