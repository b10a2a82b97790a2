"""A converted file meets a model that is not the one it came from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from timm.layers import freeze_batch_norm_2d as timm_freeze
from torch import Tensor, nn
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from frozenbn_cli import (
    ConvertOptions,
    FrozenBatchNorm2d,
    LoadReport,
    convert_bn_to_frozen,
    convert_file,
    load_frozen,
)
from frozenbn_cli.errors import UnsupportedFileError, UsageError
from tests.builders.files import save
from tests.builders.models import (
    Detectron2FrozenBatchNorm2d,
    assert_same_bits,
    build,
    perturb,
    small_cnn,
)

ignores_torchscript_warning = pytest.mark.filterwarnings(
    "ignore:`torch.jit.* is deprecated:FutureWarning"
)


def resnet(classes: int = 3, **keywords: Any) -> nn.Module:
    return build(torchvision.models.resnet18, num_classes=classes, seed=classes, **keywords)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save(tmp_path_factory.mktemp("resnet") / "resnet.pt", resnet().state_dict())
    return convert_file(path, options=ConvertOptions(eps=1e-5)).output_path


def image() -> Tensor:
    return torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def body(model: nn.Module, x: Tensor) -> Tensor:
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        x = getattr(model, name)(x)
    return x


class TestAnotherHead:
    @pytest.mark.parametrize("skip", ["fc.*", "fc", ["fc.weight", "fc.bias"]])
    def test_is_left_as_it_is(self, file: Path, skip: Any) -> None:
        model = resnet(5)
        head = copy.deepcopy(model.fc.state_dict())
        report = load_frozen(model, file, skip=skip, with_report=True)
        assert isinstance(report, LoadReport)
        assert report.model is model
        assert report.skipped == report.left == ("fc.weight", "fc.bias")
        assert len(report.frozen) == 20
        assert len(report.loaded) == 20 * 5
        assert report.live == ()
        assert_same_bits(dict(model.fc.state_dict()), dict(head))
        assert_same_bits(body(model.train(), image()), body(resnet(), image()))

    def test_of_another_name_is_left_too(self, file: Path) -> None:
        model = resnet()
        model.head, model.fc = model.fc, nn.Identity()
        load_frozen(model, file, skip=["fc", "head"])
        assert_same_bits(body(model, image()), body(resnet(), image()))

    def test_that_is_not_mentioned_is_refused_and_nothing_changes(self, file: Path) -> None:
        model = resnet(5)
        modules, before = list(model.modules()), copy.deepcopy(model.state_dict())
        with pytest.raises(UsageError, match=r"2 of another shape.*fc.weight.*skip=.*prefix="):
            load_frozen(model, file)
        assert list(model.modules()) == modules
        assert_same_bits(dict(model.state_dict()), dict(before))

    @pytest.mark.parametrize("option", ["skip", "only"])
    def test_that_is_misspelt_is_refused(self, file: Path, option: str) -> None:
        with pytest.raises(UsageError, match=f"{option} 'cf.*' matches no entry"):
            load_frozen(resnet(5), file, **{option: ["fc", "cf.*"]})  # type: ignore[call-overload]

    def test_and_all_but_a_part_is_left(self, file: Path) -> None:
        model = resnet(5)
        report = load_frozen(model, file, only=["conv1", "bn1"], with_report=True)
        assert report.frozen == ("bn1",)
        assert report.loaded == (
            "conv1.weight",
            *(f"bn1.{name}" for name in ("weight", "bias", "running_mean", "running_var")),
        )
        assert len(report.live) == 19
        assert_same_bits(model.bn1(model.conv1(image())), resnet().bn1(resnet().conv1(image())))


class TestUnderAName:
    def test_in_the_model_is_given(self, file: Path) -> None:
        detector = build(
            torchvision.models.detection.FasterRCNN,
            resnet_fpn_backbone(backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d),
            num_classes=3,
        )
        report = load_frozen(detector, file, prefix="backbone.body.", skip="fc", with_report=True)
        assert len(report.frozen) == 20
        assert report.live == ()
        assert all(name.startswith("backbone.body.") for name in report.loaded)
        expected = list(body(resnet(), image()).flatten())
        assert list(detector.backbone.body(image())["3"].flatten()) == expected

    def test_with_or_without_its_full_stop(self, file: Path) -> None:
        model = nn.ModuleDict({"encoder": resnet(), "norm": nn.BatchNorm2d(3)})
        with pytest.warns(UserWarning, match="still live, since .*: norm"):
            report = load_frozen(model, file, prefix="encoder", with_report=True)
        assert report.live == ("norm",)
        assert_same_bits(model["encoder"](image()), resnet()(image()))

    def test_in_the_file_is_taken_off(self, tmp_path: Path) -> None:
        state = nn.ModuleDict({"net": nn.ModuleDict({"encoder": resnet()})}).state_dict()
        path = convert_file(save(tmp_path / "a.pt", state)).output_path
        report = load_frozen(resnet(), path, with_report=True)
        assert report.prefix == "net.encoder."
        assert_same_bits(report.model(image()), resnet()(image()))
        held = nn.ModuleDict({"body": resnet(5)})
        report = load_frozen(held, path, prefix="body", skip="net.encoder.fc", with_report=False)
        assert_same_bits(body(held["body"], image()), body(resnet(), image()))

    def test_that_the_model_lacks_is_refused(self, file: Path) -> None:
        with pytest.raises(UsageError, match=r"prefix 'encoder.' is in front of no entry"):
            load_frozen(resnet(), file, prefix="encoder")


FROZEN: dict[str, Callable[[int], nn.Module]] = {
    "torchvision": TorchvisionFrozenBatchNorm2d,
    "detectron2": Detectron2FrozenBatchNorm2d,
    "timm": lambda channels: timm_freeze(nn.BatchNorm2d(channels)),
    "ours": FrozenBatchNorm2d,
}


class TestFrozenAlready:
    def converted(self, tmp_path: Path, eps: float | None) -> tuple[nn.Module, Path]:
        source = perturb(small_cnn(lambda channels: nn.BatchNorm2d(channels, eps or 1e-5))).eval()
        path = save(tmp_path / "a.pt", source.state_dict())
        return source, convert_file(path, options=ConvertOptions(eps=eps, force=True)).output_path

    @pytest.mark.parametrize("kind", FROZEN.values(), ids=FROZEN.keys())
    def test_is_loaded_with_the_eps_of_the_file(
        self, tmp_path: Path, kind: Callable[[int], nn.Module]
    ) -> None:
        source, path = self.converted(tmp_path, 1e-3)
        model = small_cnn(kind)
        with pytest.warns(UserWarning, match="eps 1e-05 of the model is replaced by 0.001"):
            load_frozen(model, path)
        assert [model[1].eps, model[4].eps] == [1e-3, 1e-3]
        torch.testing.assert_close(model(image()), source(image()), rtol=1e-4, atol=1e-5)

    def test_with_an_eps_in_its_code_is_refused_unless_it_is_the_same(self, tmp_path: Path) -> None:
        class DetrFrozenBatchNorm2d(nn.Module):
            def __init__(self, channels: int) -> None:
                super().__init__()
                for name in ("weight", "bias", "running_mean", "running_var"):
                    self.register_buffer(name, torch.ones(channels))

            def forward(self, x: Tensor) -> Tensor:
                shape = (1, -1, 1, 1)
                scale = self.weight * (self.running_var + 1e-5).rsqrt()
                return (x - self.running_mean.view(shape)) * scale.view(shape) + self.bias.view(
                    shape
                )

            def _load_from_state_dict(self, state: Any, prefix: str, *args: Any) -> None:
                state.pop(prefix + "num_batches_tracked", None)
                super()._load_from_state_dict(state, prefix, *args)

        DetrFrozenBatchNorm2d.__module__ = "transformers.models.detr.modeling_detr"
        source, path = self.converted(tmp_path, 1e-5)
        model = small_cnn(DetrFrozenBatchNorm2d)
        load_frozen(model, path)
        torch.testing.assert_close(model(image()), source(image()), rtol=1e-4, atol=1e-5)
        _, path = self.converted(tmp_path, 1e-3)
        with pytest.raises(UsageError, match=r"eps is fixed in its code.*convert_frozen_to_bn"):
            load_frozen(model, path)


def test_a_model_on_the_meta_device_takes_the_entries_themselves(file: Path) -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet18(num_classes=3).eval()
    load_frozen(model, file)
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert_same_bits(model(image()), resnet()(image()))


def test_what_stays_on_the_meta_device_is_warned_of(file: Path) -> None:
    with torch.device("meta"):
        model = torchvision.models.resnet18(num_classes=5)
    with pytest.warns(UserWarning, match=r"meta device: fc.weight, fc.bias"):
        load_frozen(model, file, skip="fc")


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")])
def test_wrappers_are_looked_through(file: Path, wrap: Callable[[nn.Module], Any]) -> None:
    inner = resnet(5)
    wrapped = wrap(inner)
    assert load_frozen(wrapped, file, skip="fc") is wrapped
    assert type(inner.bn1) is FrozenBatchNorm2d
    assert_same_bits(body(inner, image()), body(resnet(), image()))


def test_affine_may_be_trained(file: Path) -> None:
    model = load_frozen(resnet(), file, trainable_affine=True)
    assert isinstance(model.bn1.weight, nn.Parameter)
    assert_same_bits(model.train()(image()), resnet()(image()))


def test_a_failure_of_the_models_own_code_changes_nothing(tmp_path: Path) -> None:
    class Refuses(nn.Linear):
        def _load_from_state_dict(self, *args: Any) -> None:
            raise RuntimeError("not today")

    def model() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), Refuses(4, 4))

    path = save(tmp_path / "a.pt", perturb(model()).state_dict())
    converted = convert_file(path, options=ConvertOptions()).output_path
    target = model()
    modules, before = list(target.modules()), copy.deepcopy(target.state_dict())
    with pytest.raises((UsageError, RuntimeError), match="not today"):
        load_frozen(target, converted, skip=())
    assert list(target.modules()) == modules
    assert_same_bits(dict(target.state_dict()), dict(before))


class TestOtherFiles:
    def test_of_no_record_name_the_way_out(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.pt", resnet().state_dict())
        with pytest.raises(UnsupportedFileError, match="`frozenbn convert`"):
            load_frozen(resnet(), path)

    @ignores_torchscript_warning
    def test_that_are_models_name_how_to_load_them(self, tmp_path: Path) -> None:
        model = perturb(small_cnn()).eval()
        torch.jit.script(model).save(tmp_path / "a.pt")
        archive = convert_file(tmp_path / "a.pt").output_path
        with pytest.raises(UnsupportedFileError, match=r"load it with torch.jit.load"):
            load_frozen(small_cnn(), archive)

    def test_that_are_exported_name_how_to_load_them(self, tmp_path: Path) -> None:
        program = torch.export.export(convert_bn_to_frozen(perturb(small_cnn())), (image(),))
        torch.export.save(program, tmp_path / "a.pt2")
        with pytest.raises(UnsupportedFileError, match=r"torch\.export\.load"):
            load_frozen(small_cnn(), tmp_path / "a.pt2")
