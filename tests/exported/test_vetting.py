"""What loading or running a program would execute is found before either is done."""

import logging
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.exported.program_archive import ProgramArchive
from frozenbn_cli.exported.vetting import unsafe_in
from tests.builders.hostile_programs import (
    WAYS,
    Document,
    canary_of,
    edited,
    export,
    graph_of,
    hostile_program,
    rename,
    small_program,
    touching,
    unchanged,
)
from tests.builders.programs import (
    WRITES_NEWEST_LAYOUT,
    of_newest_layout,
    records,
    write_records,
)

WRITTEN_BY = Path(__file__).parent / "written_by"
ONE = torch.rand(2, 3, 8, 8)
NOT_PYTHON = {"a custom object", "compiled code"}
REFUSED_BY_PYTORCH = {"the target of a node"}
UNKNOWN_BEFORE = {"an enumeration", "a guard"}


def unsafe(path: Path) -> list[str]:
    source = ByteSource(path)
    try:
        return unsafe_in(ProgramArchive(ZipArchive(source)))
    finally:
        source.close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_program(tmp_path_factory.mktemp("programs") / "plain.pt2")


class Collections(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor, *, scale: float = 2.0, more: dict[str, Tensor]) -> Any:
        y = self.bn(x) + more["a"]
        return {"out": y * scale, "all": [y, (y,)]}, x.shape[0] * 2


class Regions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = self.bn(x)
        y = torch.cond(x.shape[0] > 3, lambda z: z.sin(), lambda z: z.cos(), (y,))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = self.conv(y)
        return y.reshape(y.shape[0], -1)


class Sizes(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = nn.functional.interpolate(x, scale_factor=0.5)
        return torch.cat([z, z], 2).flatten(1) + y[: z.shape[0], :1]


def programs() -> dict[str, Any]:
    batch, half = torch.export.Dim("batch"), torch.export.Dim("half", min=4, max=32)
    more = {"more": {"a": torch.ones(1)}}
    shapes = ({0: batch, 2: 2 * half}, {0: 2 * batch})
    return {
        "collections": (Collections().eval(), (ONE,), {"kwargs": more}),
        "regions": (Regions().eval(), (ONE,), {"dynamic_shapes": ({0: batch},)}),
        "sizes": (
            Sizes(),
            (torch.rand(2, 3, 16, 16), torch.rand(4, 5)),
            {"dynamic_shapes": shapes},
        ),
    }


@pytest.mark.parametrize("name", ["collections", "regions", "sizes"])
def test_what_pytorch_exports_is_safe(tmp_path: Path, name: str) -> None:
    model, inputs, options = programs()[name]
    assert unsafe(export(model, tmp_path / "program.pt2", *inputs, **options)) == []


def test_a_program_in_training_mode_is_safe(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
    assert unsafe(export(model, tmp_path / "program.pt2", ONE)) == []


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_execute_something_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    canary, code = canary_of(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = hostile_program(way, tmp_path, code)
    assert unsafe(path)
    assert not canary.exists()
    _load_and_run(path)
    if way in UNKNOWN_BEFORE and not WRITES_NEWEST_LAYOUT:
        return  # Whether an older PyTorch reads this part of the program at all is open.
    # So the test would fail if PyTorch no longer went this way, and nothing had to be found.
    assert canary.exists() is (way not in NOT_PYTHON | REFUSED_BY_PYTORCH)


def _load_and_run(path: Path) -> None:
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        torch.export.load(path).module()(torch.rand(2, 3, 4, 4))
    logging.disable(logging.NOTSET)


def _set(document: Document, place: str, value: Any) -> None:
    *path, last = place.split(".")
    for key in path:
        document = document[int(key) if key.isdigit() else key]  # type: ignore[index]
    document[int(last) if last.isdigit() else last] = value  # type: ignore[index]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("graph_module.graph.nodes.0.target", "torch.ops.aten.__class__.mro"),
        ("graph_module.graph.nodes.0.target", "torch.ops.aten.from_file.default"),
        ("graph_module.graph.nodes.0.target", "torch.ops.mine.run.default"),
        ("graph_module.graph.nodes.0.target", "torch.ops.higher_order.call_torchbind"),
        ("graph_module.graph.nodes.0.target", "torch.hub.load"),
        ("graph_module.graph.nodes.0.target", "_operator.attrgetter"),
        ("graph_module.graph.nodes.0.target", "#executorch:x"),
        ("graph_module.graph.nodes.0.name", "a b"),
        ("graph_module.graph.nodes.0.inputs.0.arg", {"as_operator": "torch.os.system"}),
        ("graph_module.graph.nodes.0.inputs.0.arg", {"as_string": "a' + open('x') + '"}),
        (
            "graph_module.graph.nodes.0.inputs.0.arg",
            {"as_string": "Runtime assertion failed for expression a on node 'b'+open('x')+'c'"},
        ),
        ("graph_module.graph.nodes.0.inputs.0.arg", {"as_custom_obj": {"name": "a"}}),
        ("graph_module.graph.custom_obj_values", {"a": {"name": "a", "class_fqn": "b"}}),
        ("graph_module.signature.input_specs.0.parameter.parameter_name", 'a"] + open("x")'),
        ("graph_module.module_call_graph.0.signature.forward_arg_names", ["x=open('a')"]),
        ("graph_module.module_call_graph.0.signature.in_spec", '[2, {"children_spec": []}]'),
        ("graph_module.module_call_graph.0.signature.in_spec", "["),
        (
            "graph_module.module_call_graph.0.signature.in_spec",
            '[1, {"type": "builtins.tuple", "context": "null", "children_spec": [{"type": null, '
            '"context": null, "children_spec": []}, {"type": "builtins.dict", "context": '
            '"[\\"a b\\"]", "children_spec": []}]}]',
        ),
        (
            "graph_module.module_call_graph.0.signature.out_spec",
            '[1, {"type": "my.Class", "context": "null", "children_spec": []}]',
        ),
        ("graph_module.treespec_namedtuple_fields", {"a": {"field_names": ["b"]}}),
        ("range_constraints", {"open('x')": {"min_val": 0, "max_val": 1}}),
    ],
)
def test_what_may_be_anything_is_not_safe(
    tmp_path: Path, plain: Path, place: str, value: Any
) -> None:
    path = edited(plain, tmp_path / "other.pt2", lambda document: _set(document, place, value))
    assert unsafe(path)


def test_metadata_may_say_anything(tmp_path: Path, plain: Path) -> None:
    def edit(document: Document) -> None:
        graph_of(document)["nodes"][0]["metadata"] |= {"stack_trace": 'File "a", line 1'}

    assert unsafe(edited(plain, tmp_path / "other.pt2", edit)) == []


@of_newest_layout
def test_a_record_without_bytes_is_not_of_any_size(tmp_path: Path, plain: Path) -> None:
    path = edited(plain, tmp_path / "other.pt2", unchanged, {"data/weights/weight_0": b""})
    assert unsafe(path) == ["0.weight, which has a size and no bytes"]


@of_newest_layout
def test_another_record_may_be_anything(tmp_path: Path, plain: Path) -> None:
    path = edited(plain, tmp_path / "other.pt2", unchanged, {"executorch/a": b"", "extra/a": b""})
    assert unsafe(path) == ["record archive/executorch/a"]


@of_newest_layout
def test_example_inputs_of_plain_tensors_are_safe(tmp_path: Path, plain: Path) -> None:
    assert "sample_inputs" in str(list(_records(plain)))
    assert unsafe(plain) == []
    record = {"data/sample_inputs/model.pt": b"no ZIP archive"}
    path = edited(plain, tmp_path / "other.pt2", unchanged, record)
    assert unsafe(path) == ["what is no pickle of tensors in archive/data/sample_inputs/model.pt"]


def _records(path: Path) -> list[str]:
    source = ByteSource(path)
    try:
        return [name for name, one in ZipArchive(source).records.items() if one.size_bytes]
    finally:
        source.close()


@pytest.mark.parametrize("part", ["state_dict", "constants", "example_inputs"])
def test_pickles_of_pytorch_2_6_are_searched_too(tmp_path: Path, part: str) -> None:
    canary, code = canary_of(tmp_path)
    content = records(WRITTEN_BY / "2.6-eval.pt2")
    content[f"serialized_{part}.pt"] = touching(code)
    path = write_records(tmp_path / "hostile.pt2", content, root="")
    assert unsafe(path) == [f"__builtin__.eval in serialized_{part}.pt"]
    assert not canary.exists()
    _load_and_run(path)
    assert canary.exists()


def test_an_archive_of_two_layouts_is_not_safe(tmp_path: Path) -> None:
    content = {**records(WRITTEN_BY / "2.6-eval.pt2"), "a/archive_format": b"pt2"}
    path = write_records(tmp_path / "both.pt2", content, root="")
    assert unsafe(path) == ["record a/archive_format"]


def test_renaming_an_input_is_no_edit_that_is_unsafe(tmp_path: Path, plain: Path) -> None:
    path = edited(plain, tmp_path / "other.pt2", lambda document: rename(document, "images"))
    assert unsafe(path) == []
