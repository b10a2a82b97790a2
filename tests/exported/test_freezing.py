"""Converting exported programs: what PyTorch makes of the result, and what stays as it was."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from frozenbn_cli import load_frozen
from frozenbn_cli.batch_norms.record import METADATA_KEY, ConversionRecord
from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.errors import NothingToFreezeError, UnsupportedFileError, UsageError
from frozenbn_cli.inspection import inspect_file
from frozenbn_cli.nn import FrozenBatchNorm2d
from frozenbn_cli.outputs.rewritable import rewritable
from frozenbn_cli.selection import Selection
from tests.builders.models import assert_same_bits
from tests.builders.programs import (
    IMAGES,
    AllDimensions,
    Autocast,
    Bare,
    Branches,
    Checked,
    Lacking,
    Plain,
    ReadCount,
    ReadNextCount,
    ReadStatistics,
    SharedWeight,
    Twice,
    TwoNames,
    Unused,
    WithoutGradient,
    convert,
    decompose,
    edited,
    export,
    frozen,
    half,
    images_for,
    left,
    load,
    of_newest_layout,
    outputs,
    outputs_in_eval,
    program_of,
    program_record,
    records,
    saved,
    sequence,
    uneven,
    write_records,
)

RECORD = f"extra/{METADATA_KEY}"
CONFIG = "data/weights/model_weights_config.json"
COUNT = "num_batches_tracked"
WRITTEN_BY = Path(__file__).parent / "written_by"

FREEZABLE: list[tuple[Callable[[], nn.Module], str]] = [
    (Plain, "bn head.1"),
    (sequence, "0 2"),
    (half, "bn head.1"),
    (Twice, "bn"),
    (SharedWeight, "a b"),
    (TwoNames, "a b c"),
    (WithoutGradient, "bn"),
    (Autocast, "bn"),
    (Branches, "bn"),
    (Bare, ""),
    (ReadStatistics, "bn"),
    (ReadCount, "bn"),
    (ReadNextCount, "bn"),
    (Checked, "bn"),
]
# What PyTorch itself cannot export in training mode, or not decompose.
NEVER_IN_TRAINING = {Branches}
NEVER_DECOMPOSED_IN_TRAINING = {TwoNames}


QUICK = (Plain, WithoutGradient, TwoNames, ReadNextCount)


def cases(in_training: bool) -> list[Any]:
    return [
        pytest.param(make, names, decomposed, marks=() if make in QUICK else pytest.mark.slow)
        for make, names in FREEZABLE
        for decomposed in (False, True)
        if not in_training
        or (
            make not in NEVER_IN_TRAINING
            and not (decomposed and make in NEVER_DECOMPOSED_IN_TRAINING)
        )
    ]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def assert_frozen(output: Path, make: Callable[[], nn.Module], names: list[str]) -> None:
    """Hold that layers take running statistics, and nothing of them is learned or written."""
    program = load(output)
    entries = {f"{name}.{role}".lstrip(".") for name in names for role in ("weight", "bias")}
    assert not entries & {name for name, _ in program.named_parameters()}
    assert entries <= {name for name, _ in program.named_buffers()}
    assert not any(tensor.requires_grad for _, tensor in program.named_buffers())
    assert not program.graph_signature.buffers_to_mutate
    before = {name: tensor.clone() for name, tensor in program.state_dict.items()}
    assert_same_bits(outputs(program, images_for(make)), outputs_in_eval(make))
    assert_same_bits(program.state_dict, before)


def test_nodes_without_outputs_are_the_same_nodes_as_before(tmp_path: Path) -> None:
    result = convert(write(tmp_path / "a.pt2", program_of(Checked)), verify=True)

    assert [claim.status for claim in result.claims] == ["equal"] * 3


@pytest.mark.parametrize(("make", "names", "decomposed"), cases(in_training=False))
def test_a_program_in_eval_gives_the_same_outputs(
    make: Callable[[], nn.Module], names: str, decomposed: bool, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.pt2", program_of(make, decomposed=decomposed))

    result = convert(path)

    assert sorted(frozen(result)) == (names.split() or [""])
    assert result.output_path.name == "a.frozen.pt2"
    assert_frozen(result.output_path, make, frozen(result))


@pytest.mark.parametrize(("make", "names", "decomposed"), cases(in_training=True))
def test_a_program_in_training_mode_takes_running_statistics_from_then_on(
    make: Callable[[], nn.Module], names: str, decomposed: bool, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.pt2", program_of(make, "train", decomposed=decomposed))

    result = convert(path)

    codes = {finding.code for item in result.plan.frozen for finding in item.findings}
    assert "exported_in_training" in codes
    assert_frozen(result.output_path, make, names.split() or [""])


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_strict_exports_are_frozen_too(mode: str, decomposed: bool, tmp_path: Path) -> None:
    content = program_of(WithoutGradient, mode, decomposed=decomposed, strict=True)

    output = convert(write(tmp_path / "a.pt2", content)).output_path

    assert_frozen(output, WithoutGradient, ["bn"])


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_result_is_saved_and_loaded_again(mode: str, decomposed: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt2", program_of(Plain, mode, decomposed=decomposed))
    output = convert(path).output_path

    again = write(tmp_path / "again.pt2", saved(load(output)))

    assert_same_bits(outputs(load(again)), outputs_in_eval(Plain))
    # The record is lost on the way, and what is frozen shows all the same.
    inspected = inspect_file(again).state_dicts[0].plan
    assert [item.layer.frozen_already for item in inspected.layers] == [True, True]
    types = {item.layer.type_name for item in inspected.layers}
    assert types == {"frozenbn_cli.nn.FrozenBatchNorm2d"}
    with pytest.raises(NothingToFreezeError):
        convert(again)


@pytest.mark.parametrize("make", [Plain, TwoNames, ReadCount])
def test_a_second_conversion_finds_nothing_to_do(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    output = convert(write(tmp_path / "a.pt2", program_of(make))).output_path

    with pytest.raises(NothingToFreezeError):
        convert(output)


@of_newest_layout
def test_everything_else_is_the_same_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt2", saved(export(uneven(Plain())), extra_files={"notes": "mine"}))

    before, after = records(path), records(convert(path).output_path)

    counts = {name for name in before if name not in after}
    assert len(counts) == 2
    assert all(len(before[name]) == 8 for name in counts)
    assert after.keys() - before.keys() == {RECORD}
    changed = {name for name in before.keys() & after.keys() if before[name] != after[name]}
    assert changed == {"models/model.json", CONFIG}
    assert after["extra/notes"] == b"mine"


def test_the_record_says_what_was_frozen(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt2", program_of(Plain))

    output = convert(path).output_path

    (written,) = (part for name, part in records(output).items() if name.endswith(METADATA_KEY))
    record = ConversionRecord.from_metadata({METADATA_KEY: written.decode()})
    assert record is not None
    assert {name: (eps.value, eps.source) for name, eps in record.layers.items()} == {
        "bn": (1e-3, "read"),
        "head.1": (1e-5, "read"),
    }


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("version", ["2.6", "2.8", "2.9"])
def test_programs_of_older_versions(version: str, mode: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.pt2", (WRITTEN_BY / f"{version}-{mode}.pt2").read_bytes())

    result = convert(path, verify=True)

    assert sorted(frozen(result)) == ["bn", "norm"]
    assert [claim.status for claim in result.claims[:2]] == ["equal", "equal"]
    assert inspect_file(result.output_path).container == inspect_file(path).container
    if tuple(map(int, torch.__version__.split(".")[:2])) < tuple(map(int, version.split("."))):
        pytest.skip("a program of a newer PyTorch than this one")
    images = torch.randn(3, 3, 6, 6)
    in_eval = WRITTEN_BY / f"{version}-eval.pt2"
    program = load(result.output_path)
    assert_same_bits(outputs(program, images), outputs(load(in_eval), images))
    names = [name for name, _ in program.named_parameters()]
    assert names == ["conv.weight", "point.weight", "point.bias"]


class TestSelection:
    def test_other_layers_stay_as_they_are(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.pt2", program_of(Plain, "train"))

        result = convert(path, selection=Selection(exclude=("head",)))

        program = load(result.output_path)
        assert frozen(result) == ["bn"]
        assert "head.1.weight" in dict(program.named_parameters())
        module = program.module()
        module(IMAGES)
        assert module.state_dict()["head.1.num_batches_tracked"] == 1001

    def test_layers_that_share_a_tensor_are_chosen_together(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.pt2", program_of(SharedWeight))

        with pytest.raises(UsageError, match="share tensors"):
            convert(path, selection=Selection(include=("a",)))

    def test_layers_of_other_dimensions_are_left_alone(self, tmp_path: Path) -> None:
        result = convert(write(tmp_path / "a.pt2", program_of(AllDimensions)))

        assert frozen(result) == ["plane"]
        assert left(result) == {
            "flat": "BatchNorm1d", "line": "BatchNorm1d", "volume": "BatchNorm3d"
        }  # fmt: skip

    @pytest.mark.parametrize("mode", ["eval", "train"])
    def test_layers_of_all_dimensions_are_frozen_where_that_is_asked_for(
        self, mode: str, tmp_path: Path
    ) -> None:
        path = write(tmp_path / "a.pt2", program_of(AllDimensions, mode))

        result = convert(path, dims=(1, 2, 3))

        names = ["flat", "line", "plane", "volume"]
        assert sorted(frozen(result)) == names
        assert_frozen(result.output_path, AllDimensions, names)
        inspected = inspect_file(result.output_path).state_dicts[0].plan
        types = {item.layer.name: (item.layer.type_name or "")[-2:] for item in inspected.layers}
        assert types == {"flat": "1d", "line": "1d", "plane": "2d", "volume": "3d"}


class TestOtherFormats:
    @pytest.mark.parametrize(("to", "suffix"), [("safetensors", ".safetensors"), ("torch", ".pt")])
    def test_the_state_dict_of_a_program(self, to: str, suffix: str, tmp_path: Path) -> None:
        path = write(tmp_path / "a.pt2", program_of(Plain, "train"))

        result = convert(path, to=to, verify=True)

        assert result.output_path == tmp_path / f"a.frozen{suffix}"
        assert [claim.status for claim in result.claims[:2]] == ["equal", "equal"]
        model = load_frozen(Plain(), result.output_path).eval()
        with torch.no_grad():
            assert_same_bits(model(IMAGES), outputs_in_eval(Plain))

    def test_no_training_checkpoint(self, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedFileError, match=r"a file that torch\.save wrote"):
            convert(write(tmp_path / "a.pt2", program_of(Plain)), to="checkpoint")


class TestCounts:
    def test_a_count_that_something_reads_stays(self, tmp_path: Path) -> None:
        result = convert(write(tmp_path / "a.pt2", program_of(ReadCount, "train")))

        assert f"bn.{COUNT}" in load(result.output_path).state_dict
        assert not [edit for edit in result.plan.edits if edit.entry == f"bn.{COUNT}"]

    @pytest.mark.parametrize("mode", ["eval", "train"])
    def test_a_node_that_adds_to_it_may_only_read_it(self, mode: str, tmp_path: Path) -> None:
        path = write(tmp_path / "a.pt2", program_of(ReadNextCount, mode))

        result = convert(path, verify=True)

        assert [claim.status for claim in result.claims] == ["equal"] * 3
        assert_same_bits(outputs(load(result.output_path)), outputs_in_eval(ReadNextCount))

    def test_all_others_go(self, tmp_path: Path) -> None:
        output = convert(write(tmp_path / "a.pt2", program_of(Plain, "train"))).output_path

        program = load(output)
        assert not [name for name in program.state_dict if name.endswith(COUNT)]
        assert not [name for name in program.graph_signature.buffers if name.endswith(COUNT)]


def test_layers_that_lack_something(tmp_path: Path) -> None:
    result = convert(write(tmp_path / "a.pt2", program_of(Lacking, "train")))

    assert frozen(result) == ["without_affine"]
    assert left(result) == {
        "without_statistics": "no running statistics (track_running_stats=False)"
    }


def test_a_layer_that_is_never_used_is_left_alone(tmp_path: Path) -> None:
    result = convert(write(tmp_path / "a.pt2", program_of(Unused)))

    assert left(result) == {"unused": "the program never uses it"}


class TestSeveralPrograms:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        package = pytest.importorskip("torch.export.pt2_archive._package").package_pt2
        programs = {"one": export(uneven(Plain())), "two": export(uneven(Plain()).train())}
        package(tmp_path / "a.pt2", exported_programs=programs)
        return tmp_path / "a.pt2"

    def test_one_of_them_has_to_be_chosen(self, path: Path) -> None:
        with pytest.raises(UsageError, match="Choose one with"):
            convert(path)

    def test_the_others_stay_as_they_are(self, path: Path) -> None:
        result = convert(path, key="two", verify=True)

        assert [claim.status for claim in result.claims[:2]] == ["equal", "equal"]
        before, after = records(path), records(result.output_path)
        assert after["models/one.json"] == before["models/one.json"]
        assert after["models/two.json"] != before["models/two.json"]
        one, two = inspect_file(result.output_path).state_dicts
        assert not any(item.layer.frozen_already for item in one.plan.layers)
        assert all(item.layer.frozen_already for item in two.plan.layers)

    def test_a_record_of_one_says_nothing_of_another(self, path: Path) -> None:
        output = convert(path, key="two").output_path

        again = convert(output, key="one")

        codes = {finding.code for item in again.plan.layers for finding in item.findings}
        assert "revived" not in codes
        assert sorted(frozen(again)) == ["bn", "head.1"]


class TestRefused:
    def test_code_that_was_compiled_from_the_program(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.pt2", program_of(Plain))
        compiled = {"data/aotinductor/model/code.so": b"code"}
        write_records(path, records(path) | compiled)

        with pytest.raises(UnsupportedFileError, match="compiled"):
            convert(path)

    @of_newest_layout
    def test_weights_that_only_unpickling_would_read(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.pt2", program_of(Plain))

        def edit(config: dict[str, dict[str, dict[str, bool]]]) -> None:
            config["config"]["conv.weight"]["use_pickle"] = True

        edited(path, CONFIG, edit)
        assert inspect_file(path).state_dicts[0].unsupported.keys() == {"conv.weight"}

        with pytest.raises(UnsupportedFileError, match=r"weight 'conv\.weight' is a pickle"):
            convert(path)

    def test_json_that_pytorch_would_have_written_otherwise(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.pt2", program_of(Plain))
        content = records(path)
        record = program_record(content)
        write_records(path, content | {record: content[record].replace(b": ", b":", 1)})

        with pytest.raises(UnsupportedFileError, match="would have written otherwise"):
            convert(path)

    @pytest.mark.parametrize("names", [{"strip_prefix": "head"}, {"add_prefix": "model"}])
    def test_other_names(self, names: dict[str, str], tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="names are to change"):
            convert(write(tmp_path / "a.pt2", program_of(Plain)), **names)


class TestRevived:
    """Quantisation and training passes match the operator, and put training back."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        output = convert(write(tmp_path / "a.pt2", program_of(Plain))).output_path

        def revive(
            document: dict[str, dict[str, dict[str, list[dict[str, list[object]]]]]],
        ) -> None:
            for node in document["graph_module"]["graph"]["nodes"]:
                for taken in node["inputs"]:
                    match taken:
                        case {"name": "training", "arg": dict(arg)}:
                            arg["as_bool"] = True
                            taken["arg"] = arg
                        case {"name": "eps"}:
                            taken["arg"] = {"as_float": 1e-5}

        return edited(output, program_record(records(output)), revive)

    def test_is_named(self, path: Path) -> None:
        plan = inspect_file(path).state_dicts[0].plan

        said = {
            item.layer.name: finding.message
            for item in plan.layers
            for finding in item.findings
            if finding.code == "revived"
        }
        assert said.keys() == {"bn", "head.1"}
        assert said["bn"].endswith("with eps 1e-05 instead of 0.001")
        assert not any(item.layer.frozen_already for item in plan.layers)

    def test_is_frozen_again(self, path: Path) -> None:
        assert sorted(frozen(convert(path))) == ["bn", "head.1"]


def test_a_frozen_program_trains_as_the_frozen_model_does(tmp_path: Path) -> None:
    model = uneven(Plain())
    output = convert(write(tmp_path / "a.pt2", program_of(Plain, "train"))).output_path
    for parent, name in ((model, "bn"), (model.head, "1")):
        layer = parent.get_submodule(name)
        live = FrozenBatchNorm2d(layer.num_features, eps=layer.eps)  # type: ignore[arg-type]
        live.load_state_dict(layer.state_dict())
        setattr(parent, name, live)
    program = load(output).module()
    assert {name for name, _ in program.named_parameters()} == {
        name for name, _ in model.named_parameters()
    }

    for module in (model, program):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
        for _ in range(5):
            optimizer.zero_grad()
            module(IMAGES).square().mean().backward()
            optimizer.step()

    trained = dict(model.state_dict())
    for name, tensor in program.state_dict().items():
        torch.testing.assert_close(tensor, trained[name])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="nothing compiles here")
def test_a_result_is_compiled_ahead_of_time(tmp_path: Path) -> None:
    output = convert(write(tmp_path / "a.pt2", program_of(Plain, "train"))).output_path
    inductor = pytest.importorskip("torch._inductor")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = inductor.aoti_compile_and_package(
            load(output), package_path=str(tmp_path / "compiled.pt2")
        )
        found = inductor.aoti_load_package(package)(IMAGES)

    torch.testing.assert_close(found, outputs_in_eval(Plain))


def test_the_work_grows_as_the_layers_do(tmp_path: Path) -> None:
    few, many = (_calls_to_freeze(layers, tmp_path / f"{layers}.pt2") for layers in (20, 40))

    assert many < 2.5 * few


def _calls_to_freeze(layers: int, path: Path) -> int:
    """Return how many calls it takes to open a program and to freeze all of its layers."""
    model = uneven(nn.Sequential(*(nn.BatchNorm2d(3) for _ in range(layers))))
    path.write_bytes(saved(decompose(export(model.train()))))
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        with open_checkpoint(path) as checkpoint:
            part = checkpoint.state_dict()
            archive = rewritable(checkpoint, part)
            assert archive
            archive.rewrite(part.layers.keys())
    finally:
        sys.setprofile(None)
    return calls
