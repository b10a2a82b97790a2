"""Real architectures, converted with their model: file and live path agree, and all is proven."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from frozenbn_cli import (
    ConversionResult,
    ConvertOptions,
    VerifyOptions,
    convert_bn_to_frozen,
    convert_file,
    load_frozen,
    survey_batch_norms,
)
from frozenbn_cli import inspect_file as inspect_any
from frozenbn_cli import verify_files as verify_any
from frozenbn_cli.errors import NothingToFreezeError, UnsupportedFileError, UsageError
from frozenbn_cli.live_models.building import build
from frozenbn_cli.live_models.target import ModelTarget
from frozenbn_cli.nn import FrozenBatchNorm2d
from frozenbn_cli.selection import Selection
from tests.builders.archives import load, script, torchscript_allowed
from tests.builders.files import save
from tests.builders.marks import slow_except
from tests.builders.models import build as build_cheaply
from tests.builders.models import perturb, small_cnn
from tests.freezing.test_zoo import DETECTOR_SIZES

ALL_EQUAL = {"contents": "equal", "layers": "equal", "model": "equal"}


def statuses(result: Any) -> dict[str, str]:
    return {claim.name: claim.status for claim in result.claims}


class Target:
    """Builds a model cheaply, with seeded weights and uneven statistics."""

    def __init__(self, builder: Callable[..., nn.Module], *names: Any, **arguments: Any) -> None:
        self.builder, self.names, self.arguments = builder, names, arguments

    def __call__(self) -> nn.Module:
        return build_cheaply(self.builder, *self.names, **self.arguments)


MODELS = {
    "resnet50": Target(torchvision.models.resnet50, num_classes=5),
    "tf_efficientnet_b0": Target(timm.create_model, "tf_efficientnet_b0", num_classes=5),
    "lraspp": Target(
        torchvision.models.get_model, "lraspp_mobilenet_v3_large", weights=None,
        weights_backbone=None, num_classes=3,
    ),
    "fasterrcnn": Target(
        torchvision.models.get_model, "fasterrcnn_mobilenet_v3_large_320_fpn", weights=None,
        weights_backbone=None, **DETECTOR_SIZES,
    ),
    "levit_128s": Target(timm.create_model, "levit_128s", num_classes=5),
    "regnety_002": Target(timm.create_model, "regnety_002", num_classes=5),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:still live, since the file froze no layer of these names")
@pytest.mark.parametrize("name", slow_except("regnety_002", MODELS))
def test_converts_and_verifies_with_its_model(tmp_path: Path, name: str) -> None:
    target = MODELS[name]
    original = target()
    path = save(tmp_path / "a.pt", original.state_dict())

    result = convert_file(path, options=ConvertOptions(model=target))
    verified = verify_any(path, result.output_path, options=VerifyOptions(model=target))

    assert statuses(result) == statuses(verified) == ALL_EQUAL
    survey = survey_batch_norms(original)
    live = dict(original.named_modules())
    frozen = {item.layer.name: item.layer for item in result.plan.frozen}
    assert frozen.keys() == {name for item in survey if item.frozen for name in item.names}
    assert len(result.plan.layers) == sum(len(item.names) for item in survey)
    for layer_name, layer in frozen.items():
        assert (layer.eps.value, layer.eps.source) == (live[layer_name].eps, "read")
        assert layer.spatial_dims == 2
    loaded = load_frozen(target(), result.output_path)
    kept = {k: v for k, v in original.state_dict().items() if k in loaded.state_dict()}
    assert all(torch.equal(value, kept[key]) for key, value in loaded.state_dict().items())


def small() -> nn.Module:
    torch.manual_seed(0)
    return perturb(small_cnn()).eval()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(tmp_path / "a.pt", small().state_dict())


class TestDescribedByAModel:
    def layers(self, tmp_path: Path, model: nn.Module, **options: Any) -> dict[str, Any]:
        path = save(tmp_path / "a.pt", model.state_dict())
        (part,) = inspect_any(path, model=lambda: model, **options).state_dicts
        return {item.layer.name: item for item in part.plan.layers}

    def test_classes_eps_and_momentum_are_read(self, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-4, momentum=0.03))

        layer = self.layers(tmp_path, perturb(model))["1"].layer

        assert (layer.eps.value, layer.eps.source, layer.momentum) == (1e-4, "read", 0.03)
        assert layer.type_name == "torch.nn.modules.batchnorm.BatchNorm2d"

    def test_the_model_knows_how_many_dimensions_a_layer_has(self, tmp_path: Path) -> None:
        """From the weights beside them, each would be taken for the other."""
        model = nn.ModuleDict(
            {
                "a": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm2d(4)),
                "b": nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm1d(4)),
                "c": nn.Sequential(nn.Linear(3, 4), nn.SyncBatchNorm(4)),
            }
        )

        layers = self.layers(tmp_path, perturb(model))

        assert {name: item.action for name, item in layers.items()} == {
            "a.1": "freeze",
            "b.1": "leave",
            "c.1": "freeze",
        }

    def test_what_is_no_batch_norm_is_left_alone(self, tmp_path: Path) -> None:
        class Own(nn.BatchNorm2d):
            def forward(self, input: torch.Tensor) -> torch.Tensor:
                return 2 * super().forward(input)

        class Norm(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("running_mean", torch.zeros(4))
                self.register_buffer("running_var", torch.ones(4))
                self.weight = self.bias = None

        model = nn.ModuleDict(
            {
                "own": Own(4),
                "instance": nn.InstanceNorm2d(4, track_running_stats=True),
                "norm": Norm(),
                "frozen": FrozenBatchNorm2d(4),
                "untracked": nn.BatchNorm2d(4, track_running_stats=False),
                "bn": nn.BatchNorm2d(4),
            }
        )

        layers = self.layers(tmp_path, perturb(model))

        assert {name for name, item in layers.items() if item.action == "freeze"} == {"bn"}
        assert "whose forward may do something else" in layers["own"].reason
        assert "InstanceNorm2d, no BatchNorm" in layers["instance"].reason
        assert "Norm, no BatchNorm" in layers["norm"].reason
        assert layers["frozen"].reason == "frozen already"
        assert "no running statistics" in layers["untracked"].reason

    def test_a_layer_under_two_names_is_frozen_under_both_or_neither(self, tmp_path: Path) -> None:
        shared = nn.BatchNorm2d(4)
        model = nn.Sequential(nn.Conv2d(3, 4, 1), shared, nn.Conv2d(4, 4, 1), shared)

        with pytest.raises(UsageError, match="share tensors"):
            self.layers(tmp_path, perturb(model), selection=Selection.of(include="1"))
        assert all(item.action == "freeze" for item in self.layers(tmp_path, model).values())

    def test_a_file_that_does_not_tell_goes_by_its_model(self, path: Path) -> None:
        frozen = save(path.with_name("b.pt"), convert_bn_to_frozen(small()).state_dict())
        with pytest.raises(NothingToFreezeError):
            convert_file(frozen)

        result = convert_file(frozen, options=ConvertOptions(model=small))

        assert statuses(result) == ALL_EQUAL

    def test_inspect_lists_what_does_not_fit(self, path: Path) -> None:
        def larger() -> nn.Module:
            return nn.Sequential(*small(), nn.BatchNorm2d(2))

        (part,) = inspect_any(path, model=larger).state_dicts

        assert part.misfits == (
            "4 missing in the file: 9.weight, 9.bias, 9.running_mean, 9.running_var",
        )
        assert [item.layer.name for item in part.plan.layers] == ["1", "4"]

    def test_convert_refuses_what_does_not_fit(self, path: Path) -> None:
        with pytest.raises(UsageError, match="the file does not fit the model: 14 missing"):
            convert_file(path, options=ConvertOptions(model=lambda: nn.Sequential(small())))
        assert [file.name for file in path.parent.iterdir()] == ["a.pt"]

    def test_a_given_eps_is_not_wanted(self, path: Path) -> None:
        with pytest.raises(UsageError, match="eps is given"):
            convert_file(path, options=ConvertOptions(model=small, eps=1e-3))

    def test_old_state_dicts_without_counts_fit(self, tmp_path: Path) -> None:
        state = {k: v for k, v in small().state_dict().items() if "num_batches" not in k}
        path = save(tmp_path / "a.pt", state)

        assert statuses(convert_file(path, options=ConvertOptions(model=small))) == ALL_EQUAL

    def test_the_dtype_of_the_file_is_kept(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.pt", small().bfloat16().state_dict())

        result = convert_file(path, options=ConvertOptions(model=small))

        assert statuses(result) == ALL_EQUAL
        assert "of bfloat16" in result.claims[2].detail

    def test_a_wrong_file_is_found_by_the_model_alone(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The other two claims look at layers one by one, and not at where they stand."""

        class Swapping(nn.Sequential):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return super().forward(x) * (2 if isinstance(self[1], FrozenBatchNorm2d) else 1)

        with pytest.raises(Exception, match="model: output") as caught:
            convert_file(path, options=ConvertOptions(model=lambda: Swapping(*small())))
        assert type(caught.value).__name__ == "VerificationError"
        assert [file.name for file in path.parent.iterdir()] == ["a.pt"]


class TestToTorchScript:
    def convert(self, path: Path, **options: Any) -> ConversionResult:
        output = path.with_suffix(".ts")
        return convert_file(
            path, output, options=ConvertOptions(to="torchscript", force=True, **options)
        )

    def test_a_state_dict_with_its_model(self, path: Path) -> None:
        result = self.convert(path, model=small)

        assert statuses(result) == ALL_EQUAL
        assert result.made == "scripted"
        loaded = load(result.output_path)
        image = torch.rand(1, 3, 8, 8)
        with torch.no_grad(), torchscript_allowed():
            assert torch.equal(loaded(image), small()(image))
        types = {module.original_name for module in loaded.modules()}
        assert "FrozenBatchNorm2d" in types
        assert "BatchNorm2d" not in types
        assert not [name for name, _ in loaded.named_parameters() if name.startswith(("1.", "4."))]

    def test_what_cannot_be_scripted_is_traced(self, path: Path) -> None:
        class Unscriptable(nn.Sequential):
            def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
                return super().forward(arguments[0])

        result = self.convert(path, model=lambda: Unscriptable(*small()))

        assert statuses(result) == ALL_EQUAL
        assert result.made.startswith("traced (")
        assert "variable number of arguments" in result.made

    @pytest.mark.slow
    @pytest.mark.skipif(
        "images" not in GeneralizedRCNN.forward.__annotations__,
        reason="this torchvision says by a comment alone that its detectors take lists",
    )
    @pytest.mark.filterwarnings("ignore")
    def test_a_detector_that_answers_otherwise_where_it_is_scripted(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.pt", MODELS["fasterrcnn"]().state_dict())

        result = self.convert(path, model=MODELS["fasterrcnn"])

        assert statuses(result) == ALL_EQUAL
        assert result.made == "scripted"
        assert "the original scripted too" in result.claims[2].detail

    def test_what_can_be_neither_is_refused(self, path: Path) -> None:
        class Impossible(nn.Sequential):
            def forward(self, *arguments: torch.Tensor) -> torch.Tensor:
                raise ZeroDivisionError("never")

        with pytest.raises(
            UnsupportedFileError, match=r"neither scripted \(.*nor traced \(.*never"
        ):
            self.convert(path, model=lambda: Impossible(*small()))
        assert [file.name for file in path.parent.iterdir()] == ["a.pt"]

    def test_a_pickled_module_if_trusted(self, tmp_path: Path) -> None:
        path = tmp_path / "a.pt"
        torch.save({"net": small(), "epoch": 1}, path)

        with pytest.raises(UsageError, match="Pass trust=True, or model"):
            self.convert(path)
        result = self.convert(path, trust=True)

        assert statuses(result) == ALL_EQUAL
        verified = verify_any(path, result.output_path, options=VerifyOptions(trust=True))
        assert statuses(verified) == ALL_EQUAL

    def test_a_state_dict_alone_is_refused(self, path: Path) -> None:
        with pytest.raises(UsageError, match="expected a TorchScript archive, or a model"):
            self.convert(path)

    def test_buffers_that_a_state_dict_leaves_out_are_named(self, path: Path) -> None:
        class WithTable(nn.Sequential):
            def __init__(self, *layers: nn.Module) -> None:
                super().__init__(*layers)
                self.register_buffer("table", torch.arange(3), persistent=False)

        result = self.convert(path, model=lambda: WithTable(*small()))

        assert statuses(result) == ALL_EQUAL
        assert result.claims[0].detail.endswith("; beside them table")

    def test_a_selection_is_kept(self, path: Path) -> None:
        result = self.convert(path, model=small, selection=Selection.of(exclude="4"))

        assert statuses(result) == ALL_EQUAL
        loaded = load(result.output_path)
        names = dict(loaded.named_modules())
        assert names["1"].original_name == "FrozenBatchNorm2d"
        assert names["4"].original_name == "BatchNorm2d"
        with pytest.raises(NothingToFreezeError):
            convert_file(self.convert(path, model=small).output_path, path.with_name("twice"))

    def test_a_dry_run_makes_nothing(self, path: Path) -> None:
        assert self.convert(path, model=small, dry_run=True).outcome == "planned"
        assert [file.name for file in path.parent.iterdir()] == ["a.pt"]


class TestTrust:
    """Nothing in a file is executed unless it is trusted."""

    def hostile(self, tmp_path: Path) -> tuple[Path, Path]:
        marker = tmp_path / "executed"
        path = tmp_path / "a.pt"
        module = small()
        module.extra = _Executes(str(marker))
        torch.save(module, path)
        return path, marker

    def test_without_trust_nothing_is_executed(self, tmp_path: Path) -> None:
        path, marker = self.hostile(tmp_path)

        result = convert_file(path)
        verified = verify_any(path, result.output_path, options=VerifyOptions(model=small))

        assert not marker.exists()
        assert statuses(result) == {**ALL_EQUAL, "model": "not verified"}
        assert statuses(verified) == ALL_EQUAL

    def test_with_trust_it_is(self, tmp_path: Path) -> None:
        path, marker = self.hostile(tmp_path)

        result = convert_file(path, options=ConvertOptions(trust=True))

        assert marker.exists()
        assert statuses(result) == ALL_EQUAL

    def test_a_class_that_is_not_here_leaves_the_model_unverified(self, tmp_path: Path) -> None:
        path = tmp_path / "a.pt"
        module = small()
        module[8].__class__ = type("Gone", (nn.Linear,), {"__module__": "gone_package"})
        import sys
        import types

        sys.modules["gone_package"] = types.ModuleType("gone_package")
        sys.modules["gone_package"].Gone = module[8].__class__  # type: ignore[attr-defined]
        torch.save(module, path)
        del sys.modules["gone_package"]

        claim = convert_file(path, options=ConvertOptions(trust=True)).claims[2]

        assert claim.status == "not verified"
        assert claim.detail == (
            "PyTorch cannot load the input here: No module named 'gone_package'"
        )


class _Executes:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return _touch, (self.marker,)


def _touch(marker: str) -> None:
    Path(marker).touch()


def test_building_draws_the_same_weights_each_time() -> None:
    target = ModelTarget("torch.nn:Conv2d", {"in_channels": 3, "out_channels": 2, "kernel_size": 1})
    state = torch.random.get_rng_state()

    assert torch.equal(build(target).weight, build(target).weight)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_model_beside_archives_alone_is_refused(tmp_path: Path) -> None:
    archive = script(small(), tmp_path / "a.pt")
    output = convert_file(archive).output_path

    for attempt in (
        lambda: inspect_any(archive, model=small),
        lambda: convert_file(archive, tmp_path / "b.pt", options=ConvertOptions(model=small)),
        lambda: verify_any(archive, output, options=VerifyOptions(model=small)),
    ):
        with pytest.raises(UsageError, match="an archive of code or a graph holds its own"):
            attempt()
    assert not (tmp_path / "b.pt").exists()
