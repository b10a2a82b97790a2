"""Freezing and thawing what torchvision and timm offer, with random weights and statistics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from frozenbn_cli import convert_bn_to_frozen, convert_frozen_to_bn, survey_batch_norms
from frozenbn_cli.freezing.frozen_elsewhere import is_ours
from tests.builders.marks import slow_except
from tests.builders.models import assert_same_bits, build, leaves, perturb

WITHOUT_BATCH_NORM = ("alexnet", "convnext", "squeezenet", "swin", "vit_", "vgg", "ssd300")
# 2.6 GB, in blocks that smaller ones have too.
TOO_LARGE = "regnet_y_128gf"
# Beyond this a training step costs seconds, and a forward pass in train mode has to do.
LARGEST_TRAINED_PARAMETERS = 50_000_000

# The smallest input that a model takes, where that is not 64 pixels.
TORCHVISION_PIXELS = {"inception_v3": 299, "maxvit_t": 224}
TIMM_PIXELS = {
    "bat_resnext26ts": 256,
    "botnet26t_256": 256,
    "coatnet_nano_rw_224": 224,
    "efficientformer_l1": 224,
    "efficientformerv2_s0": 224,
    "efficientvit_m0": 224,
    "halonet26t": 256,
    "inception_resnet_v2": 96,
    "inception_v3": 96,
    "inception_v4": 96,
    "levit_128s": 224,
    "levit_conv_128s": 224,
    "maxvit_pico_rw_256": 256,
    "visformer_tiny": 224,
}
TIMM_NAMES = """
    bat_resnext26ts botnet26t_256 coatnet_nano_rw_224 convmixer_768_32 cs3darknet_focus_s
    cs3darknet_s cspdarknet53 cspresnet50 cspresnet50d darknet17 darknetaa53 densenet121
    densenetblur121d dla34 dla46_c dla60_res2next dpn48b dpn68 eca_resnext26ts ecaresnet26t
    efficientformer_l1 efficientformerv2_s0 efficientnet_b0 efficientnet_lite0
    efficientnetv2_rw_t efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim
    ese_vovnet19b_slim_dw fasternet_t0 fastvit_t8 fbnetc_100 fbnetv3_b gcresnext26ts gernet_s
    ghostnet_050 ghostnetv2_100 halonet26t hardcorenas_a hgnet_tiny hgnetv2_b0 hrnet_w18_small
    inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lambda_resnet26t
    lcnet_050 legacy_seresnet18 legacy_xception levit_128s levit_conv_128s maxvit_pico_rw_256
    mixnet_s mnasnet_small mobilenetv1_100 mobilenetv2_035 mobilenetv3_large_075
    mobilenetv3_small_050 mobilenetv4_conv_small mobilenetv4_hybrid_medium mobileone_s1
    mobilevit_xxs mobilevitv2_050 nextvit_small regnetv_040 regnetx_002 regnety_002
    regnetz_005 repghostnet_050 repvgg_a0 repvit_m0_9 res2net50_14w_8s resnest14d resnet10t
    resnet18 resnet26t resnetaa34d resnetblur50 resnext26ts rexnet_100 selecsls42 semnasnet_075
    seresnet18 shvit_s1 skresnet18 spnasnet_100 starnet_s1 swiftformer_xs test_byobnet
    test_efficientnet test_resnet tf_efficientnet_b0 tf_efficientnetv2_b0 tf_mixnet_s
    tf_mobilenetv3_small_minimal_100 tiny_vit_5m_224 tinynet_e tresnet_m visformer_tiny
    vovnet39a xception41 xception41p xcit_nano_12_p16_224
""".split()  # noqa: SIM905

# Under random weights every proposal is a detection, so that there is something to compare.
DETECTOR_SIZES = {
    "num_classes": 3,
    "box_score_thresh": 0.0,
    "box_detections_per_img": 5,
    "box_batch_size_per_image": 8,
    "rpn_pre_nms_top_n_train": 20,
    "rpn_pre_nms_top_n_test": 20,
    "rpn_post_nms_top_n_train": 10,
    "rpn_post_nms_top_n_test": 10,
}
DENSE_DETECTOR_SIZES = {"num_classes": 3, "score_thresh": 0.0, "detections_per_img": 5}


def torchvision_names(module: Any) -> list[str]:
    return torchvision.models.list_models(module=module)


def with_batch_norm(names: list[str]) -> list[str]:
    return [
        name for name in names if not name.startswith(WITHOUT_BATCH_NORM) or name.endswith("_bn")
    ]


def build_torchvision(name: str, **kwargs: Any) -> nn.Module:
    kwargs.setdefault("num_classes", 5)
    if name in ("googlenet", "inception_v3"):
        kwargs["init_weights"] = False
    return build(torchvision.models.get_model, name, weights=None, **kwargs)


def image(pixels: int, *, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, pixels, pixels, generator=generator)


def floating_leaves(output: Any) -> Iterator[Tensor]:
    for _, leaf in leaves(output):
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            yield leaf


def frozen_layers(model: nn.Module) -> list[nn.Module]:
    return [layer for layer in model.modules() if is_ours(layer)]


def assert_freezing_changes_nothing_else(
    model: nn.Module, *inputs: Any, training_inputs: tuple[Any, ...] = ()
) -> None:
    """Freeze ``model``, which is in eval mode, and hold every promise against the original."""
    expected_frozen = [item for item in survey_batch_norms(model, dims=(1, 2, 3)) if item.frozen]
    original_state = model.state_dict()
    with torch.no_grad():
        expected = model(*inputs)
    # Attention has other kernels where a gradient is needed.
    expected_with_gradient = model(*inputs)
    outputs = list(floating_leaves(expected))
    assert outputs
    assert all(leaf.isfinite().all() and leaf.numel() > 0 for leaf in outputs)

    assert convert_bn_to_frozen(model, dims=(1, 2, 3)) is model
    assert len(frozen_layers(model)) == len(expected_frozen) > 0
    assert_same_bits(model(*inputs), expected_with_gradient)

    for layer in frozen_layers(model):
        layer.training = True
    with torch.no_grad():
        assert_same_bits(model(*inputs), expected)

    frozen_state = model.state_dict()
    assert_training_leaves_statistics(model, training_inputs or inputs)
    model.load_state_dict(original_state, strict=True)
    assert_states_agree(model.state_dict(), original_state)

    convert_frozen_to_bn(model)
    assert list(model.state_dict()) == list(original_state)
    perturb(model, seed=1)
    model.load_state_dict(frozen_state, strict=True)
    assert_states_agree(frozen_state, model.state_dict())


def assert_training_leaves_statistics(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    """Take one training step, or run forward alone if the model is very large."""
    before = {
        (index, name): buffer.clone()
        for index, layer in enumerate(frozen_layers(model))
        for name, buffer in layer.named_buffers(recurse=False)
    }
    model.train()
    if sum(parameter.numel() for parameter in model.parameters()) > LARGEST_TRAINED_PARAMETERS:
        with torch.no_grad():
            model(*inputs)
    else:
        sum(leaf.mean() for leaf in floating_leaves(model(*inputs))).backward()
        first = next(parameter for parameter in model.parameters() if parameter.grad is not None)
        assert first.grad.count_nonzero() > 0
        torch.optim.SGD(model.parameters(), lr=1e-6).step()
    for index, layer in enumerate(frozen_layers(model)):
        for name, buffer in layer.named_buffers(recurse=False):
            assert_same_bits(buffer, before[index, name])


def assert_states_agree(frozen: dict[str, Tensor], original: dict[str, Tensor]) -> None:
    """Compare all entries of ``frozen``; the original has counts of batches besides."""
    for name in original.keys() - frozen.keys():
        assert name.endswith(".num_batches_tracked")
    for name, entry in frozen.items():
        assert_same_bits(entry, original[name])


@pytest.mark.parametrize(
    "name",
    slow_except(
        "resnet18 mobilenet_v2 googlenet",
        [
            name
            for name in with_batch_norm(torchvision_names(torchvision.models))
            if name != TOO_LARGE
        ],
    ),
)
def test_freezes_torchvision_classifier(name: str) -> None:
    model = build_torchvision(name)
    assert_freezing_changes_nothing_else(model, image(TORCHVISION_PIXELS.get(name, 64)))


@pytest.mark.parametrize(
    "name",
    slow_except("lraspp_mobilenet_v3_large", torchvision_names(torchvision.models.segmentation)),
)
def test_freezes_torchvision_segmentation(name: str) -> None:
    auxiliary = {} if name.startswith("lraspp") else {"aux_loss": True}
    model = build_torchvision(name, weights_backbone=None, **auxiliary)
    assert_freezing_changes_nothing_else(model, image(64))


@pytest.mark.parametrize(
    "name",
    slow_except(
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        with_batch_norm(torchvision_names(torchvision.models.detection)),
    ),
)
def test_freezes_torchvision_detector(name: str) -> None:
    assert_freezing_changes_nothing_else(
        build_detector(name), [image(96)[0]], training_inputs=detection_training_inputs()
    )


def build_detector(name: str) -> nn.Module:
    kwargs: dict[str, Any] = {"weights_backbone": None}
    if name.startswith("ssdlite"):
        kwargs |= {"num_classes": 3, "score_thresh": 0.0, "detections_per_img": 5}
    elif name.startswith(("retinanet", "fcos")):
        kwargs |= {**DENSE_DETECTOR_SIZES, "min_size": 96, "max_size": 96}
    else:
        kwargs |= {**DETECTOR_SIZES, "min_size": 96, "max_size": 96}
    if name.startswith("keypointrcnn"):
        kwargs |= {"num_classes": 2, "num_keypoints": 4}
    return build_torchvision(name, **kwargs)


def detection_training_inputs() -> tuple[Any, ...]:
    mask = torch.zeros(1, 96, 96, dtype=torch.uint8)
    mask[:, 10:60, 10:60] = 1
    target = {
        "boxes": torch.tensor([[10.0, 10.0, 60.0, 60.0]]),
        "labels": torch.tensor([1]),
        "masks": mask,
        "keypoints": torch.tensor([[[20.0, 20.0, 1.0]] * 4]),
    }
    return [*image(96)], [target, target]


def build_torchvision_frozen_detector() -> nn.Module:
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18",
        weights=None,
        norm_layer=TorchvisionFrozenBatchNorm2d,
        trainable_layers=5,
    )
    return FasterRCNN(backbone, min_size=96, max_size=96, **DETECTOR_SIZES)


def test_thaws_and_freezes_detector_with_torchvisions_frozen_layers() -> None:
    model = build(build_torchvision_frozen_detector)
    original_state = model.state_dict()
    layer_count = sum(isinstance(layer, TorchvisionFrozenBatchNorm2d) for layer in model.modules())
    assert survey_batch_norms(model) == ()

    convert_frozen_to_bn(model).eval()
    assert len(survey_batch_norms(model)) == layer_count == 20
    assert_states_agree(original_state, model.state_dict())
    assert_freezing_changes_nothing_else(
        model, [image(96)[0]], training_inputs=detection_training_inputs()
    )


@pytest.mark.parametrize("name", torchvision_names(torchvision.models.video))
def test_leaves_torchvision_video_model_alone_unless_told(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    modules = list(model.modules())
    decisions = survey_batch_norms(model)
    reasons = {item.reason for item in decisions}
    assert reasons <= {"BatchNorm3d, not BatchNorm2d (dims=(2, 3) takes it in)"}
    assert convert_bn_to_frozen(model, dims=(2,)) is model
    assert list(model.modules()) == modules
    convert_bn_to_frozen(model, dims=(3,))
    assert len(frozen_layers(model)) == len(decisions)


@pytest.mark.parametrize("name", slow_except("mc3_18", ["mc3_18", "s3d"]))
def test_freezes_torchvision_video_model(name: str) -> None:
    model = build_torchvision(name)
    pixels = 224 if name == "s3d" else 16
    frames = 14 if name == "s3d" else 2
    video = image(pixels)[:1, :, None].repeat(1, 1, frames, 1, 1)
    assert_freezing_changes_nothing_else(model, video)


@pytest.mark.parametrize(
    "name",
    sorted(
        set(torchvision_names(torchvision.models))
        - set(with_batch_norm(torchvision_names(torchvision.models)))
    ),
)
def test_torchvision_classifier_without_batch_norm_is_known_as_such(name: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    assert survey_batch_norms(model) == ()


@pytest.mark.parametrize(
    "name", slow_except("resnet18 test_byobnet test_efficientnet test_resnet", TIMM_NAMES)
)
def test_freezes_timm_classifier(name: str) -> None:
    model = build(timm.create_model, name, pretrained=False, num_classes=5)
    assert_freezing_changes_nothing_else(model, image(TIMM_PIXELS.get(name, 64)))


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "hrnet_w18_small"])
def test_freezes_timm_backbone_with_several_outputs(name: str) -> None:
    model = build(timm.create_model, name, pretrained=False, features_only=True)
    assert_freezing_changes_nothing_else(model, image(64))
