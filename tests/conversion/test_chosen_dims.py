"""BatchNorm1d and 3d are frozen beside 2d where the user chooses that, and only then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frozenbn_cli import (
    ConversionResult,
    ConvertOptions,
    Selection,
    VerifyOptions,
    convert_bn_to_frozen,
    convert_file,
    inspect_file,
    load_frozen,
    verify_files,
)
from frozenbn_cli.batch_norms.plan import Plan
from frozenbn_cli.batch_norms.record import METADATA_KEY, ConversionRecord
from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.cli.app import run
from frozenbn_cli.errors import NothingToFreezeError, UsageError
from frozenbn_cli.nn import FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d
from tests.builders.files import save
from tests.builders.models import assert_same_bits, perturb

ALL = (1, 2, 3)
ABOUT_DIMS = ("stays_live", "dims_assumed", "dims_unknown")


class Mixed(nn.Module):
    """A layer of each dimension, and one before which nothing tells of which it is."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm3d(2)
        self.clip = nn.Sequential(nn.Conv3d(6, 4, 1), nn.BatchNorm3d(4, 1e-3))
        self.image = nn.Sequential(nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5))
        self.points = nn.Sequential(nn.Conv1d(5, 6, 1), nn.BatchNorm1d(6, affine=False))
        self.head = nn.Sequential(nn.Linear(6, 7), nn.BatchNorm1d(7))

    def forward(self, x: Tensor) -> Tensor:
        x = self.image(self.clip(self.first(x).repeat(1, 3, 1, 1, 1)).mean(2))
        return self.head(self.points(x.flatten(2)).mean(2))


CLIP = torch.rand(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LAYERS = {"first", "clip.1", "image.1", "points.1", "head.1"}


def mixed() -> Mixed:
    torch.manual_seed(0)
    return perturb(Mixed()).eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(tmp_path / "a.pt", mixed().state_dict())


def converted(path: Path, **options: Any) -> ConversionResult:
    return convert_file(path, options=ConvertOptions(**({"dims": ALL} | options), force=True))


def frozen(plan: Plan) -> set[str]:
    return {item.layer.name for item in plan.frozen}


def codes(plan: Plan) -> dict[str, list[str]]:
    return {
        item.layer.name: [one.code for one in item.findings if one.code in ABOUT_DIMS]
        for item in plan.layers
    }


def statuses(result: Any) -> dict[str, str]:
    return {claim.name: claim.status for claim in result.claims}


def record(path: Path) -> ConversionRecord:
    with open_checkpoint(path) as checkpoint:
        found = ConversionRecord.from_metadata(checkpoint.metadata)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("dims", "names"),
    [
        (None, {"image.1", "first"}),
        ((2,), {"image.1", "first"}),
        ((1,), {"points.1", "head.1"}),
        ((1, 3), {"clip.1", "points.1", "head.1"}),
        (ALL, LAYERS),
    ],
)
def test_freezes_the_dimensions_that_are_chosen(
    path: Path, dims: tuple[int, ...] | None, names: set[str]
) -> None:
    assert frozen(converted(path, dims=dims, dry_run=True).plan) == names
    assert frozen(inspect_file(path, dims=dims).state_dicts[0].plan) == names


def test_what_stays_live_says_how_to_freeze_it_unless_that_was_chosen(path: Path) -> None:
    silent = inspect_file(path).state_dicts[0].plan
    chosen = inspect_file(path, dims=(2,)).state_dicts[0].plan

    assert codes(silent)["clip.1"] == codes(silent)["head.1"] == ["stays_live"]
    (said,) = {
        finding.message
        for item in silent.layers
        for finding in item.findings
        if finding.code == "stays_live"
    }
    assert "--dims 1,2,3 freezes them too" in said
    assert codes(chosen)["clip.1"] == codes(chosen)["head.1"] == []


def test_of_unknown_dimensions_is_frozen_with_a_note_that_says_so(path: Path) -> None:
    assert codes(converted(path, dims=None, dry_run=True).plan)["first"] == ["dims_assumed"]
    assert codes(converted(path, dry_run=True).plan)["first"] == ["dims_unknown"]
    left = converted(path, dims=(1, 3), dry_run=True).plan.left
    assert {item.layer.name: item.reason for item in left}["first"] == (
        "nothing proves that it is a BatchNorm1d or BatchNorm3d"
    )
    said = Selection(dims_of=(("first", 3),))
    assert frozen(converted(path, dims=(3,), selection=said, dry_run=True).plan) == {
        "clip.1",
        "first",
    }


def test_to_include_a_layer_by_its_name_says_that_it_is_of_the_one_kind_meant(path: Path) -> None:
    named = Selection.of(include=["first", "head.1"])

    plan = converted(path, dims=(3,), selection=named, dry_run=True).plan
    assert {item.layer.name: item.layer.spatial_dims for item in plan.frozen} == {
        "first": 3,
        "head.1": 3,
    }
    plan = converted(path, selection=named, dry_run=True).plan
    assert {item.layer.name: item.layer.spatial_dims for item in plan.frozen} == {
        "first": None,
        "head.1": 1,
    }


def test_refuses_dimensions_that_are_none(path: Path) -> None:
    for dims in ((), (0,), (2, 4)):
        with pytest.raises(UsageError, match="expected some of 1, 2 and 3"):
            ConvertOptions(dims=dims)
        with pytest.raises(UsageError, match="expected some of 1, 2 and 3"):
            inspect_file(path, dims=dims)


@pytest.mark.parametrize("to", ["safetensors", "torch"])
def test_a_state_dict_is_verified_in_its_dimensions_and_loads(path: Path, to: str) -> None:
    result = converted(path, to=to)

    assert statuses(result)["layers"] == "equal"
    assert "against BatchNorm1d, BatchNorm2d, BatchNorm3d in eval" in result.claims[1].detail
    loaded = load_frozen(mixed(), result.output_path).train()
    kinds = {name: type(loaded.get_submodule(name)) for name in LAYERS}
    assert kinds == {
        "first": FrozenBatchNorm3d,
        "clip.1": FrozenBatchNorm3d,
        "image.1": FrozenBatchNorm2d,
        "points.1": FrozenBatchNorm1d,
        "head.1": FrozenBatchNorm1d,
    }
    # Into a model whose layers are frozen already.
    again = load_frozen(convert_bn_to_frozen(mixed(), dims=ALL), result.output_path)
    assert_same_bits(loaded(CLIP), again(CLIP))


def test_with_a_model_all_three_claims_cover_every_dimension(path: Path) -> None:
    result = converted(path, model=mixed, input_shapes=((2, 2, 3, 4, 4),))

    assert set(statuses(result).values()) == {"equal"}
    assert record(result.output_path).dims_of == {
        "first": 3,
        "clip.1": 3,
        "points.1": 1,
        "head.1": 1,
    }
    assert_same_bits(load_frozen(mixed(), result.output_path)(CLIP), mixed()(CLIP))


def test_with_a_model_others_stay_live_unless_they_are_chosen(path: Path) -> None:
    result = converted(path, dims=None, model=mixed, input_shapes=((2, 2, 3, 4, 4),))

    assert frozen(result.plan) == {"image.1"}
    assert set(statuses(result).values()) == {"equal"}


class OwnForward(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Renamed(nn.BatchNorm3d):
    """Of another name."""


def test_a_model_says_which_subclasses_can_be_frozen(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            OwnForward(2), nn.Unflatten(0, (-1, 1, 1, 1)), nn.Flatten(1, 3), nn.BatchNorm1d(2)
        )

    path = save(tmp_path / "a.pt", perturb(build()).state_dict())
    result = converted(path, model=build, input_shapes=((3, 2),))

    assert frozen(result.plan) == {"3"}
    (left,) = result.plan.left
    assert left.reason is not None
    assert "OwnForward, whose forward may do something else" in left.reason


def test_a_pickled_module_says_its_classes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", mixed())

    assert frozen(converted(path, dims=None).plan) == {"image.1"}
    result = converted(path, trust=True, input_shapes=((2, 2, 3, 4, 4),))

    assert frozen(result.plan) == LAYERS
    assert set(statuses(result).values()) == {"equal"}
    assert verify_files(path, result.output_path).verdict == "passed"
    own = save(tmp_path / "b.pt", nn.Sequential(Renamed(2), nn.BatchNorm1d(2)))
    (left,) = converted(own, force_unhealthy=True).plan.left
    assert left.reason is not None
    assert left.reason.endswith("Renamed, whose forward may do something else")


def test_a_pickled_frozen_module_is_frozen_already(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", convert_bn_to_frozen(mixed(), dims=ALL))

    plan = inspect_file(path).state_dicts[0].plan

    assert {item.layer.name for item in plan.layers if item.layer.frozen_already} == LAYERS
    assert {item.layer.name: item.layer.spatial_dims for item in plan.layers} == {
        "first": 3,
        "clip.1": 3,
        "image.1": 2,
        "points.1": 1,
        "head.1": 1,
    }


def test_synchronised_layers_are_of_any_dimensions(tmp_path: Path) -> None:
    model = perturb(nn.SyncBatchNorm.convert_sync_batchnorm(mixed()))
    path = save(tmp_path / "a.pt", model)

    result = converted(path, dims=None, trust=True, input_shapes=((2, 2, 3, 4, 4),))

    assert frozen(result.plan) == LAYERS
    assert codes(result.plan)["first"] == []
    assert set(statuses(result).values()) == {"equal"}


class TestRecord:
    def test_verify_takes_the_choice_from_the_record(self, path: Path) -> None:
        result = converted(path)

        assert verify_files(path, result.output_path).verdict == "passed"
        other = verify_files(path, result.output_path, options=VerifyOptions(dims=(2,)))
        assert other.verdict == "failed"
        assert "frozen in the converted file, but BatchNorm3d" in other.claims[1].detail

    def test_verify_names_the_option_where_there_is_no_record(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.pt", mixed())
        by_hand = save(tmp_path / "b.pt", convert_bn_to_frozen(mixed(), dims=ALL))

        said = verify_files(path, by_hand).claims[1].differences[0]

        assert str(said).endswith("but BatchNorm3d (--dims 1,2,3 takes it in)")
        assert verify_files(path, by_hand, options=VerifyOptions(dims=ALL)).verdict == "passed"

    def test_a_live_layer_that_should_be_frozen_is_named_by_its_kind(self, path: Path) -> None:
        result = converted(path, dims=(2,))

        found = verify_files(path, result.output_path, options=VerifyOptions(dims=ALL))

        assert "a BatchNorm1d that is live in the converted file" in [
            item.problem for item in found.claims[1].differences
        ]

    def test_says_the_choice_only_where_there_is_one(self, path: Path) -> None:
        silent = record(converted(path, dims=None).output_path)
        chosen = record(converted(path).output_path)

        assert "dims" not in (silent.options or {})
        assert silent.dims is None
        assert chosen.options is not None
        assert chosen.options["dims"] == [1, 2, 3]
        assert chosen.dims == ALL
        assert chosen.dims_of == {"clip.1": 3, "points.1": 1, "head.1": 1}

    def test_what_it_says_of_a_layer_is_read_again(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.pt", {"n." + k: v for k, v in mixed().first.state_dict().items()})
        said = Selection(dims_of=(("n", 3),))

        result = converted(path, selection=said)

        (item,) = inspect_file(result.output_path).state_dicts[0].plan.layers
        assert (item.layer.spatial_dims, item.layer.dims_known) == (3, "read")
        assert item.reason == "frozen already"

    @pytest.mark.parametrize("dims", [None, [], [4], ["1"], [[1]], "123", {"1": 2}])
    def test_what_is_no_choice_is_none(self, dims: object) -> None:
        assert ConversionRecord("0", {}, {}, options={"dims": dims}).dims is None

    def test_older_records_and_broken_ones(self) -> None:
        def read(**fields: object) -> ConversionRecord | None:
            layer = {"eps": 1e-5, "eps_source": "read"} | fields
            document = {"frozenbn": "0", "source": {}, "layers": {"a": layer}, "verified": []}
            return ConversionRecord.from_metadata({METADATA_KEY: json.dumps(document)})

        older = read()
        assert older is not None
        assert (older.dims, older.dims_of) == (None, {})
        newer = read(dims=3)
        assert newer is not None
        assert newer.dims_of == {"a": 3}
        for dims in (4, True, "1", None):
            with pytest.raises(Exception, match="expected a record of frozenbn"):
                read(dims=dims)

    def test_a_second_conversion_keeps_what_the_first_recorded(self, path: Path) -> None:
        first = converted(path, dims=(1,))
        second = converted(first.output_path, dims=(1, 2, 3))

        assert record(second.output_path).dims_of == {"clip.1": 3, "points.1": 1, "head.1": 1}
        assert set(record(second.output_path).layers) == LAYERS


def test_a_file_whose_layers_were_not_chosen_does_not_load_into_other_dimensions(
    tmp_path: Path,
) -> None:
    model = nn.Sequential(nn.BatchNorm1d(54))
    state = perturb(model).state_dict()
    assumed = converted(save(tmp_path / "a.pt", state), dims=None)
    chosen = converted(save(tmp_path / "b.pt", state))

    with pytest.raises(UsageError, match=r"dims=\(1, 2, 3\)"):
        load_frozen(nn.Sequential(nn.BatchNorm1d(54)), assumed.output_path)
    loaded = load_frozen(nn.Sequential(nn.BatchNorm1d(54)), chosen.output_path)

    assert type(loaded[0]) is FrozenBatchNorm1d


def test_nothing_to_freeze_says_that_there_would_be(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", perturb(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))))

    with pytest.raises(NothingToFreezeError, match=r"no BatchNorm2d to freeze.*dims=\(1, 2, 3\)"):
        converted(path, dims=None)
    with pytest.raises(NothingToFreezeError, match="no BatchNorm3d to freeze"):
        converted(path, dims=(3,))
    assert frozen(converted(path).plan) == {"1"}


def test_never_formed_statistics_of_other_dimensions_stop_it_too(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))

    with pytest.raises(Exception, match="never formed statistics in 1 of 1"):
        converted(path)


class TestOnTheCommandLine:
    def test_inspect_convert_and_verify(
        self, path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["inspect", str(path), "--json"]) == 0
        assert "--dims 1,2,3 freezes them too" in capsys.readouterr().out
        assert run(["inspect", str(path), "--dims", "1,2,3"]) == 0
        assert "would freeze 5 of 5 layers" in capsys.readouterr().out
        assert run(["convert", str(path), "--dims", "1,2,3", "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert {layer["name"]: layer["spatial_dims"] for layer in document["layers"]} == {
            "first": None,
            "clip.1": 3,
            "image.1": 2,
            "points.1": 1,
            "head.1": 1,
        }
        output = document["output"]["path"]
        assert run(["verify", str(path), output]) == 0
        assert run(["verify", str(path), output, "--dims", "2"]) == 1

    @pytest.mark.parametrize("text", ["", "4", "1,,2", "1 2", "2,"])
    def test_refuses_what_lists_no_dimensions(
        self, path: Path, text: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["inspect", str(path), "--dims", text]) == 2
        assert "is no list of 1, 2 and 3, such as 1,2,3" in capsys.readouterr().err

    def test_many_files(self, path: Path, tmp_path: Path) -> None:
        convert = ["convert", str(path), "--output-dir", str(tmp_path / "out"), "--no-verify", "-q"]

        assert run([*convert, "--dims", "3,1", "--jobs", "1"]) == 0

        (output,) = (tmp_path / "out").iterdir()
        assert record(output).dims == (1, 3)
        assert set(record(output).layers) == {"clip.1", "points.1", "head.1"}
