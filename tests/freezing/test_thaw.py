"""Thawing gives back what freezing took, chooses by names, and knows the layers of others."""

from __future__ import annotations

import copy
import sys
import warnings
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers import SyncBatchNormAct
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.fx.experimental import optimization

from frozenbn_cli import (
    FrozenBatchNorm1d,
    FrozenBatchNorm2d,
    FrozenBatchNorm3d,
    FrozenBatchNormNd,
    convert_bn_to_frozen,
    convert_frozen_to_bn,
)
from frozenbn_cli.errors import UsageError
from tests.builders.models import assert_same_bits, build, perturb, small_cnn


class Renamed(nn.BatchNorm2d):
    def __init__(self, channels: int, note: str = "") -> None:
        super().__init__(channels, momentum=0.3)
        self.note = note


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class TestGivesBack:
    @pytest.mark.parametrize(
        "layer",
        [
            lambda: nn.BatchNorm1d(3),
            lambda: nn.BatchNorm2d(3, 1e-3, None),
            lambda: nn.BatchNorm2d(3, momentum=0.01, affine=False),
            lambda: nn.BatchNorm3d(3),
            lambda: nn.SyncBatchNorm(3),
            lambda: Renamed(3, "kept"),
            lambda: SyncBatchNormAct(3),
        ],
    )
    def test_the_layer_as_it_was(self, layer: Any) -> None:
        model = perturb(nn.Sequential(layer())).eval()
        if (weight := model[0].weight) is not None:
            weight.requires_grad_(False)
        original = copy.deepcopy(model[0])
        thawed = convert_frozen_to_bn(convert_bn_to_frozen(model, dims=(1, 2, 3)))[0]
        assert type(thawed) is type(original)
        assert repr(thawed) == repr(original)
        assert getattr(thawed, "note", None) == getattr(original, "note", None)
        assert vars(thawed).keys() == vars(original).keys()
        assert_same_bits(dict(thawed.state_dict()), dict(original.state_dict()))
        assert [(name, each.requires_grad) for name, each in thawed.named_parameters()] == [
            (name, each.requires_grad) for name, each in original.named_parameters()
        ]

    def test_the_momentum_that_is_asked_for(self) -> None:
        model = perturb(nn.Sequential(nn.BatchNorm2d(3, momentum=0.3)))
        assert convert_frozen_to_bn(convert_bn_to_frozen(model), momentum=0.01)[0].momentum == 0.01

    def test_eps_and_values_of_the_frozen_layer(self) -> None:
        model = convert_bn_to_frozen(perturb(nn.Sequential(nn.BatchNorm2d(3))))
        model[0].eps = 1e-3
        model[0].running_mean.fill_(5)
        thawed = convert_frozen_to_bn(model)[0]
        assert thawed.eps == 1e-3
        assert (thawed.running_mean == 5).all()

    @pytest.mark.parametrize(
        ("frozen", "live"),
        [
            (FrozenBatchNorm1d, nn.BatchNorm1d),
            (FrozenBatchNorm2d, nn.BatchNorm2d),
            (FrozenBatchNorm3d, nn.BatchNorm3d),
            (FrozenBatchNormNd, nn.SyncBatchNorm),
        ],
    )
    def test_the_class_that_a_new_layer_stands_in_for(self, frozen: Any, live: Any) -> None:
        assert type(convert_frozen_to_bn(nn.Sequential(frozen(3)))[0]) is live

    def test_trained_affine_as_the_same_parameters(self) -> None:
        model = perturb(nn.Sequential(nn.BatchNorm2d(3)))
        weight = model[0].weight
        convert_bn_to_frozen(model, trainable_affine=True)
        assert model[0].weight is weight
        assert convert_frozen_to_bn(model)[0].weight is weight

    def test_is_not_stored_in_the_state_dict_nor_lost_by_a_copy(self) -> None:
        model = convert_bn_to_frozen(perturb(nn.Sequential(nn.SyncBatchNorm(3))))
        assert list(model.state_dict()) == [
            f"0.{name}" for name in ("weight", "bias", "running_mean", "running_var")
        ]
        assert type(convert_frozen_to_bn(copy.deepcopy(model))[0]) is nn.SyncBatchNorm


class TestSelecting:
    def test_by_submodule_and_pattern(self) -> None:
        model = convert_bn_to_frozen(build(torchvision.models.resnet18, num_classes=3))
        convert_frozen_to_bn(model, include=["layer4", "bn1"], exclude="*.bn2")
        live = [name for name, layer in model.named_modules() if type(layer) is nn.BatchNorm2d]
        assert live == ["bn1", "layer4.0.bn1", "layer4.0.downsample.1", "layer4.1.bn1"]

    def test_of_nothing_is_refused_and_changes_nothing(self) -> None:
        model = nn.Sequential(FrozenBatchNorm2d(3))
        with pytest.raises(UsageError, match="matches no frozen layer"):
            convert_frozen_to_bn(model, include="layer4")
        assert type(model[0]) is FrozenBatchNorm2d


def test_an_eps_of_zero_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="thawed with eps 0, .*: 0"):
        convert_frozen_to_bn(nn.Sequential(FrozenBatchNorm2d(3, 0.0)))


def test_thaws_a_subclass_that_only_renames() -> None:
    class Own(FrozenBatchNorm2d):
        pass

    assert type(convert_frozen_to_bn(nn.Sequential(Own(3)))[0]) is nn.BatchNorm2d


class TestTransformers:
    """Their layers have no eps attribute: it is a number in their forward."""

    def layer(self, source: str) -> nn.Module:
        module = ModuleType("transformers.models.detr.modeling_detr")
        exec(
            "import torch\n"
            "class DetrFrozenBatchNorm2d(torch.nn.Module):\n"
            "    def __init__(self, n):\n"
            "        super().__init__()\n"
            "        for name in ('weight', 'bias', 'running_mean', 'running_var'):\n"
            "            self.register_buffer(name, torch.ones(n))\n"
            f"    def forward(self, x):\n{source}",
            module.__dict__,
        )
        return module.DetrFrozenBatchNorm2d(3)

    def test_layers_are_thawed_with_the_eps_of_their_code(self) -> None:
        layer = self.layer(
            "        weight = self.weight.reshape(1, -1, 1, 1)\n"
            "        epsilon = 1e-3\n"
            "        scale = weight * (self.running_var.reshape(1, -1, 1, 1) + epsilon).rsqrt()\n"
            "        return (x - self.running_mean.reshape(1, -1, 1, 1)) * scale + 1\n"
        )
        x = image()
        expected = layer(x)
        model = convert_frozen_to_bn(nn.Sequential(layer)).eval()
        assert model[0].eps == 1e-3
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)

    def test_layers_whose_eps_is_unknown_are_left_and_named(self) -> None:
        layer = self.layer("        return x * 2.0 + 1e-3\n")
        with pytest.warns(UserWarning, match=r"left frozen: 0 \(its eps is unknown\)"):
            convert_frozen_to_bn(nn.Sequential(layer))


class TestGraphs:
    def test_of_a_frozen_model_are_thawed(self) -> None:
        model = perturb(small_cnn()).eval()
        convert_bn_to_frozen(model)
        traced = torch.fx.symbolic_trace(model)
        x = image()
        expected = model(x)
        convert_frozen_to_bn(traced, momentum=0.2)
        layers = [layer for layer in traced.modules() if type(layer) is nn.BatchNorm2d]
        assert [(layer.num_features, layer.momentum) for layer in layers] == [(4, 0.2), (6, 0.2)]
        assert_same_bits(traced.eval()(x), expected)
        before = layers[0].running_mean.clone()
        traced.train()(x)
        assert (layers[0].running_mean != before).all()
        traced.graph.lint()

    def test_are_chosen_by_name_too(self) -> None:
        traced = nn.Sequential(
            torch.fx.symbolic_trace(convert_bn_to_frozen(perturb(small_cnn()).eval()))
        )
        convert_frozen_to_bn(traced, include="0.4")
        assert [name for name, each in traced.named_modules() if type(each) is nn.BatchNorm2d] == [
            "0.4"
        ]

    def test_keep_the_activation_behind_the_layer(self) -> None:
        model = build(timm.create_model, "regnetz_005", num_classes=3)
        convert_bn_to_frozen(model)
        x = torch.randn(1, 3, 64, 64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traced = torch.fx.symbolic_trace(model)
        expected = model(x)
        convert_frozen_to_bn(traced)
        assert_same_bits(traced.eval()(x), expected)


class TestFusing:
    """The recipe: thaw, then fuse. A frozen layer is not what these helpers look for."""

    def frozen(self) -> nn.Sequential:
        torch.manual_seed(0)
        return convert_bn_to_frozen(perturb(small_cnn()).eval())

    def test_refuses_or_leaves_a_frozen_layer(self) -> None:
        with pytest.raises((NotImplementedError, AssertionError), match="fuse"):
            torch.ao.quantization.fuse_modules(self.frozen(), ["0", "1"])
        x = image()
        fused = optimization.fuse(self.frozen())
        torch.testing.assert_close(fused(x), self.frozen()(x))

    def test_works_on_a_thawed_model(self) -> None:
        x = image()
        expected = self.frozen()(x)
        thawed = convert_frozen_to_bn(self.frozen()).eval()
        eager = torch.ao.quantization.fuse_modules(thawed, [["0", "1"], ["3", "4"]])
        graph = optimization.fuse(thawed)
        for fused in (eager, graph):
            assert not any(isinstance(layer, nn.BatchNorm2d) for layer in fused.modules())
            torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-5)

    def test_timm_reparameterises_a_thawed_model(self) -> None:
        model = build(timm.create_model, "repvgg_a0", num_classes=3)
        x = torch.randn(1, 3, 64, 64)
        expected = convert_bn_to_frozen(model)(x)
        fused = reparameterize_model(convert_frozen_to_bn(model))
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in fused.modules())
        torch.testing.assert_close(fused(x), expected, rtol=1e-3, atol=1e-3)


def test_importing_needs_neither_timm_nor_transformers() -> None:
    assert "frozenbn_cli.freezing.thaw" in sys.modules
    assert "transformers" not in sys.modules
