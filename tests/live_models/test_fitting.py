"""Models of torchvision and timm, found and built for the file that they belong to."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import timm
import torch
import torchvision
from torch import nn

from frozenbn_cli import ConvertOptions, VerifyOptions, convert_file, load_frozen, verify_files
from frozenbn_cli.batch_norms.batch_norm import Eps
from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.cli.option_values import parse_model
from frozenbn_cli.errors import UsageError
from frozenbn_cli.inspection import inspect_file
from frozenbn_cli.live_models.fitting import FittedModel
from frozenbn_cli.live_models.known_models import KnownModel
from frozenbn_cli.live_models.resolving import fitted_to
from frozenbn_cli.live_models.target import ModelTarget
from tests.builders.files import save
from tests.builders.models import perturb

IMAGE = ((1, 3, 64, 64),)


@pytest.fixture(autouse=True)
def no_network() -> Iterator[None]:
    with mock.patch.object(socket.socket, "connect", side_effect=AssertionError("a download")):
        yield


def on_meta(build: object, *arguments: object, **keywords: object) -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = build(*arguments, **keywords)  # type: ignore[operator]
    return model


def fitted(tmp_path: Path, model: nn.Module, target: str = "auto", prefix: str = "") -> FittedModel:
    """Return what is found for the state dict of a model, whose values do not matter."""
    state = {
        prefix + name: torch.zeros((), dtype=entry.dtype).expand(entry.shape)
        for name, entry in model.state_dict().items()
    }
    with open_checkpoint(save(tmp_path / "a.pth", state)) as checkpoint:
        found = fitted_to(checkpoint.state_dict(), KnownModel(target))
    assert isinstance(found, FittedModel)
    return found


def test_the_number_of_classes_is_that_of_the_file(tmp_path: Path) -> None:
    found = fitted(tmp_path, on_meta(torchvision.models.resnet18, num_classes=7))

    assert str(found) == f"torchvision resnet18 ({found.architecture.version}), recognised"
    assert found.arguments == {"num_classes": 7}
    assert found().fc.out_features == 7


def test_a_file_that_fits_needs_no_arguments(tmp_path: Path) -> None:
    assert fitted(tmp_path, on_meta(torchvision.models.mnasnet0_5)).arguments == {}


@pytest.mark.parametrize("keywords", [{"in_chans": 1}, {"num_classes": 0}, {"num_classes": 1}])
def test_channels_and_a_head_that_is_not_there_are_found(
    tmp_path: Path, keywords: dict[str, int]
) -> None:
    found = fitted(tmp_path, on_meta(timm.create_model, "resnet10t", **keywords))

    assert found.architecture.library == "timm"
    assert found.arguments == keywords


def test_auxiliary_heads_are_those_of_the_file(tmp_path: Path) -> None:
    with_head = on_meta(
        torchvision.models.segmentation.deeplabv3_mobilenet_v3_large,
        weights_backbone=None, num_classes=5, aux_loss=True,
    )  # fmt: skip
    without = on_meta(torchvision.models.googlenet, aux_logits=False, init_weights=False)

    assert fitted(tmp_path, with_head).arguments == {"aux_loss": True, "num_classes": 5}
    assert fitted(tmp_path, without).arguments["aux_logits"] is False


def test_a_prefix_that_all_entries_have_does_not_matter(tmp_path: Path) -> None:
    model = on_meta(torchvision.models.resnet18, num_classes=3)

    assert fitted(tmp_path, model, prefix="net.").arguments == {"num_classes": 3}


def test_a_name_decides_between_architectures(tmp_path: Path) -> None:
    model = on_meta(timm.create_model, "efficientnet_b0", num_classes=4)
    found = fitted(tmp_path, model, "timm:tf_efficientnet_b0")

    assert found.arguments == {"num_classes": 4}
    assert found().bn1.eps == 1e-3
    assert not found.is_recognised


def test_architectures_that_fit_and_differ_in_eps_are_listed(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        fitted(tmp_path, on_meta(timm.create_model, "efficientnet_b0"))

    version = timm.__version__
    assert f"timm efficientnet_b0 ({version}) with eps 1e-05" in caught.value.problem
    assert f"timm tf_efficientnet_b0 ({version}) with eps 0.001" in caught.value.problem
    assert "--model timm:tf_efficientnet_b0" in caught.value.advice


@pytest.mark.parametrize("target", ["auto", "torchvision:retinanet_resnet50_fpn"])
def test_a_detector_whose_weights_have_another_eps_is_not_guessed(
    tmp_path: Path, target: str
) -> None:
    build = torchvision.models.detection.retinanet_resnet50_fpn
    with pytest.raises(UsageError, match="eps"):
        fitted(tmp_path, on_meta(build, weights=None, weights_backbone=None), target)


@pytest.mark.parametrize(
    ("target", "advice"),
    [("timm:resnet81d", "resnet18d"), ("torchvision:resnt18", "Is it 'resnet18'")],
)
def test_a_typo_names_what_is_near(tmp_path: Path, target: str, advice: str) -> None:
    with pytest.raises(UsageError, match="has no model") as caught:
        fitted(tmp_path, nn.BatchNorm2d(3), target)

    assert advice in caught.value.advice


def test_another_model_does_not_fit(tmp_path: Path) -> None:
    model = on_meta(torchvision.models.resnet18)
    with pytest.raises(UsageError, match=r"does not fit it: .* missing in the file"):
        fitted(tmp_path, model, "torchvision:resnet34")


def test_a_model_that_only_contains_an_architecture_is_none(tmp_path: Path) -> None:
    model = nn.Module()
    model.backbone = on_meta(torchvision.models.resnet18)
    model.head = on_meta(nn.Linear, 3, 4)
    with pytest.raises(UsageError, match="found none that is known"):
        fitted(tmp_path, model)

    more = on_meta(torchvision.models.resnet18)
    more.extra = on_meta(nn.Linear, 3, 4)
    with pytest.raises(UsageError, match="no architecture fits the file: torchvision resnet18"):
        fitted(tmp_path, more)


def test_targets_are_told_apart() -> None:
    assert isinstance(parse_model("auto", None), KnownModel)
    assert isinstance(parse_model("timm:resnet18", ["num_classes=3"]), KnownModel)
    assert isinstance(parse_model("timm:create_model", None), ModelTarget)
    assert isinstance(parse_model("torchvision.models:resnet18", None), ModelTarget)


# In the commands


@pytest.fixture
def shufflenet(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = perturb(torchvision.models.shufflenet_v2_x0_5(num_classes=3))
    return save(tmp_path / "shufflenet.pth", model.state_dict())


def test_convert_runs_what_was_recognised(shufflenet: Path) -> None:
    options = ConvertOptions(model=KnownModel("auto"), input_shapes=IMAGE)
    result = convert_file(shufflenet, options=options)
    again = verify_files(
        shufflenet,
        result.output_path,
        options=VerifyOptions(model=KnownModel("auto"), input_shapes=IMAGE),
    )

    assert [claim.status for claim in result.claims] == ["equal"] * 3
    assert [claim.status for claim in again.claims] == ["equal"] * 3
    assert result.model.startswith("torchvision shufflenet_v2_x0_5 (")
    assert result.model.endswith("), recognised")
    assert {item.layer.eps for item in result.plan.layers} == {Eps(1e-5, "recognised")}
    load_frozen(torchvision.models.shufflenet_v2_x0_5(num_classes=3), result.output_path)


def test_what_is_named_is_read_and_not_recognised(shufflenet: Path) -> None:
    found = inspect_file(shufflenet, model=KnownModel("torchvision:shufflenet_v2_x0_5"))
    (part,) = found.state_dicts

    assert {item.layer.eps for item in part.plan.layers} == {Eps(1e-5, "read")}
    assert not part.plan.matches
    assert "recognised" not in found.model


def test_without_a_model_the_way_to_one_is_named(shufflenet: Path) -> None:
    claim = convert_file(shufflenet).claims[-1]

    assert claim.status == "not verified"
    assert claim.detail.endswith("--model auto builds torchvision shufflenet_v2_x0_5 and runs it")
