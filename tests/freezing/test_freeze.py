"""Freezing and thawing live modules: what is replaced, what is kept, what is left alone."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import (
    BatchNormAct2d,
    SyncBatchNormAct,
)
from timm.layers import FrozenBatchNormAct2d as TimmFrozenBatchNormAct2d
from timm.layers import convert_sync_batchnorm as timm_convert_sync_batchnorm
from timm.layers import freeze_batch_norm_2d as timm_freeze
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from frozenbn_cli import convert_bn_to_frozen, convert_frozen_to_bn, survey_batch_norms
from frozenbn_cli.errors import DependencyError, UsageError
from frozenbn_cli.nn import FrozenBatchNorm2d, FrozenBatchNormAct2d, FrozenBatchNormNd
from tests.builders.models import Detectron2FrozenBatchNorm2d, assert_same_bits, perturb, small_cnn

ignores_torchscript_warning = pytest.mark.filterwarnings(
    "ignore:`torch.jit.* is deprecated:FutureWarning"
)
ignores_lazy_warning = pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")

pytestmark = pytest.mark.filterwarnings("ignore:(?s).*statistics that mean nothing")

STATE_NAMES = ["weight", "bias", "running_mean", "running_var"]


def image(channels: int = 3, *, requires_grad: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, 8, 8, generator=generator).requires_grad_(requires_grad)


def batch_norm(channels: int = 3, **kwargs: Any) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels, **kwargs)
    perturb(layer)
    return layer.eval()


def cnn(normalisation: Callable[[int], nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    model = small_cnn(normalisation)
    perturb(model)
    model.eval()
    return model


def reason(layer: nn.Module) -> str | None:
    """Return why ``layer`` is left alone; it is the only one in its model."""
    (decision,) = survey_batch_norms(nn.Sequential(OrderedDict(layer=layer)))
    assert decision.names == ("layer",)
    return decision.reason


def assert_left_alone(layer: nn.Module, *, because: str, channels: int = 3) -> None:
    """Convert a model with ``layer`` and a BatchNorm2d; only the latter may change."""
    found = reason(layer)
    assert found is not None
    assert because in found
    model = nn.Sequential(layer, nn.BatchNorm2d(channels))
    state = copy.deepcopy(stored_entries(layer))
    with pytest.warns(UserWarning, match="1 BatchNorm layer left live: 0: ") as caught:
        assert convert_bn_to_frozen(model) is model
    assert because in str(caught[0].message)
    assert model[0] is layer
    assert type(model[1]) is FrozenBatchNorm2d
    assert_same_bits(stored_entries(layer), state)


def stored_entries(layer: nn.Module) -> dict[str, Tensor]:
    """Return the state dict without the entries of a lazy layer that have no shape yet."""
    return {
        name: entry for name, entry in layer.state_dict().items() if not nn.parameter.is_lazy(entry)
    }


class TestFreezing:
    def test_replaces_in_place_and_keeps_outputs(self) -> None:
        model = cnn()
        x = image(requires_grad=True)
        expected = model(x)
        assert convert_bn_to_frozen(model) is model
        assert [type(layer) for layer in model].count(FrozenBatchNorm2d) == 2
        assert not any(isinstance(layer, nn.BatchNorm2d) for layer in model)
        assert_same_bits(model(x), expected)
        assert_same_bits(model.train()(x), expected)
        with torch.no_grad():
            assert_same_bits(model(x), expected)

    def test_returns_a_new_layer_for_a_root(self) -> None:
        layer = batch_norm()
        frozen = convert_bn_to_frozen(layer)
        assert type(frozen) is FrozenBatchNorm2d
        assert type(layer) is nn.BatchNorm2d
        assert_same_bits(frozen(image()), layer(image()))

    def test_reaches_every_kind_of_container(self) -> None:
        model = nn.ModuleDict(
            {
                "list": nn.ModuleList([nn.BatchNorm2d(1), nn.Sequential(nn.BatchNorm2d(2))]),
                "dict": nn.ModuleDict({"deep": nn.ModuleDict({"norm": nn.BatchNorm2d(3)})}),
            }
        )
        model.register_module("absent", None)
        convert_bn_to_frozen(model)
        layers = [layer for layer in model.modules() if not list(layer.children())]
        assert [type(layer) for layer in layers] == [FrozenBatchNorm2d] * 3
        assert [layer.num_features for layer in layers] == [1, 2, 3]

    def test_reaches_a_graph_module(self) -> None:
        model = torch.fx.symbolic_trace(cnn())
        expected = model(image())
        convert_bn_to_frozen(model)
        assert survey_batch_norms(model) == ()
        assert_same_bits(model(image()), expected)

    @pytest.mark.parametrize("eps", [0.0, 1e-3, 0.1 + 0.2])
    def test_keeps_eps_and_variance_apart(self, eps: float) -> None:
        layer = batch_norm(eps=eps)
        with torch.no_grad():
            layer.running_var[0] = 1e-9
        frozen = convert_bn_to_frozen(layer)
        assert frozen.eps == eps
        assert_same_bits(frozen.running_var, layer.running_var)
        assert_same_bits(frozen(image()), layer(image()))

    def test_leaves_no_parameter_in_the_layer(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        convert_bn_to_frozen(model)
        assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]
        assert [name for name, _ in model.named_buffers()] == [f"1.{n}" for n in STATE_NAMES]

    def test_state_lacks_only_the_counts(self) -> None:
        model = cnn()
        before = model.state_dict()
        after = convert_bn_to_frozen(model).state_dict()
        kept = [name for name in before if not name.endswith("num_batches_tracked")]
        assert list(after) == kept
        assert_same_bits(dict(after), {name: before[name] for name in kept})

    def test_shares_no_storage_with_the_original(self) -> None:
        layer = batch_norm()
        frozen = convert_bn_to_frozen(nn.Sequential(layer))[0]
        for name in STATE_NAMES:
            ours, original = getattr(frozen, name), getattr(layer, name)
            assert ours.untyped_storage().data_ptr() != original.untyped_storage().data_ptr()
        expected = frozen(image())
        layer.train()(image())
        assert_same_bits(frozen(image()), expected)

    def test_twice_is_once(self) -> None:
        model = convert_bn_to_frozen(cnn())
        layers = list(model.modules())
        assert survey_batch_norms(model) == ()
        assert list(convert_bn_to_frozen(model).modules()) == layers

    @pytest.mark.parametrize("absent", [(), ("bias",), ("weight",), ("weight", "bias")])
    def test_keeps_which_of_weight_and_bias_there_are(self, absent: tuple[str, ...]) -> None:
        layer = batch_norm()
        for name in absent:
            layer.register_parameter(name, None)
        x = image(requires_grad=True)
        frozen = convert_bn_to_frozen(layer)
        assert [name for name in STATE_NAMES if getattr(frozen, name) is None] == [*absent]
        assert_same_bits(frozen(x), layer(x))

    def test_keeps_affine_false(self) -> None:
        layer = batch_norm(affine=False)
        frozen = convert_bn_to_frozen(layer)
        assert not frozen.affine
        assert list(frozen.state_dict()) == ["running_mean", "running_var"]
        assert_same_bits(frozen(image()), layer(image()))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_keeps_dtype(self, dtype: torch.dtype) -> None:
        layer = batch_norm(dtype=dtype)
        frozen = convert_bn_to_frozen(layer)
        assert {buffer.dtype for buffer in frozen.buffers()} == {dtype}
        assert_same_bits(frozen(image().to(dtype)), layer(image().to(dtype)))

    def test_keeps_device(self) -> None:
        frozen = convert_bn_to_frozen(nn.BatchNorm2d(3, device="meta"))
        assert {buffer.device.type for buffer in frozen.buffers()} == {"meta"}

    def test_keeps_each_training_flag(self) -> None:
        model = nn.Sequential(nn.BatchNorm2d(1), nn.BatchNorm2d(2))
        model[1].eval()
        convert_bn_to_frozen(model)
        assert [layer.training for layer in (model, *model)] == [True, True, False]

    def test_freezes_sync_batch_norm(self) -> None:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(cnn())
        expected = model(image())
        convert_bn_to_frozen(model)
        assert type(model[1]) is FrozenBatchNormNd
        assert_same_bits(model(image()), expected)

    @ignores_lazy_warning
    def test_freezes_lazy_layer_that_ran(self) -> None:
        model = nn.Sequential(nn.LazyBatchNorm2d(eps=1e-3))
        model(image())
        expected = model.eval()(image())
        convert_bn_to_frozen(model)
        assert type(model[0]) is FrozenBatchNorm2d
        assert_same_bits(model(image()), expected)


class TestCompilers:
    @ignores_torchscript_warning
    @pytest.mark.parametrize("trainable_affine", [False, True])
    @pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d])
    def test_script_trace_and_export_what_was_frozen(
        self, kind: Callable[[int], nn.Module], trainable_affine: bool, tmp_path: Path
    ) -> None:
        model = cnn(kind)
        expected = model(image())
        convert_bn_to_frozen(model, trainable_affine=trainable_affine)
        scripted, traced = torch.jit.script(model), torch.jit.trace(model, image())
        scripted.save(tmp_path / "scripted.pt")
        exported = torch.export.export(model, (image(),)).module()
        for compiled in (scripted, torch.jit.load(tmp_path / "scripted.pt"), traced, exported):
            assert_same_bits(compiled(image()), expected)
        assert b"origin" not in (tmp_path / "scripted.pt").read_bytes()


class TestTies:
    def test_layer_under_several_names_stays_one(self) -> None:
        shared = batch_norm()
        model = nn.Sequential(OrderedDict(first=shared, between=nn.ReLU(), second=shared))
        model.extra = nn.Sequential(shared)
        expected = model(image())
        (decision,) = survey_batch_norms(model)
        assert decision.names == ("first", "second", "extra.0")
        convert_bn_to_frozen(model)
        assert type(model.first) is FrozenBatchNorm2d
        assert model.first is model.second is model.extra[0]
        assert_same_bits(model(image()), expected)

    def test_block_under_several_names_stays_one(self) -> None:
        block = nn.Sequential(batch_norm(), nn.ReLU())
        model = convert_bn_to_frozen(nn.Sequential(block, block))
        assert model[0] is model[1] is block
        assert type(block[0]) is FrozenBatchNorm2d

    @pytest.mark.parametrize("name", STATE_NAMES)
    def test_tied_tensors_stay_tied(self, name: str) -> None:
        model = nn.Sequential(batch_norm(), batch_norm())
        setattr(model[1], name, getattr(model[0], name))
        convert_bn_to_frozen(model)
        for each in STATE_NAMES:
            assert (getattr(model[0], each) is getattr(model[1], each)) == (each == name)

    def test_parameter_tied_to_another_module_stays_trainable_there(self) -> None:
        model = nn.Sequential(batch_norm(), nn.GroupNorm(1, 3))
        model[1].weight = model[0].weight
        shared = model[0].weight
        convert_bn_to_frozen(model)
        assert model[1].weight is shared
        assert shared.requires_grad
        assert model[0].weight.data_ptr() != shared.data_ptr()


class TestHooks:
    def test_are_kept_and_still_removable(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 3, 1), batch_norm())
        calls: list[str] = []

        def recorder(name: str) -> Callable[..., None]:
            return lambda *args: calls.append(f"{name}: {len(args)} arguments")

        layer = model[1]
        handles = [
            layer.register_forward_pre_hook(recorder("before")),
            layer.register_forward_pre_hook(recorder("before, keywords"), with_kwargs=True),
            layer.register_forward_hook(recorder("after")),
            layer.register_forward_hook(recorder("after, keywords"), with_kwargs=True),
            layer.register_full_backward_pre_hook(recorder("before backward")),
            layer.register_full_backward_hook(recorder("after backward")),
            layer.register_state_dict_pre_hook(recorder("before state")),
            layer.register_state_dict_post_hook(recorder("after state")),
            layer.register_load_state_dict_pre_hook(recorder("before load")),
            layer.register_load_state_dict_post_hook(recorder("after load")),
        ]
        expected = [
            "before: 2 arguments",
            "before, keywords: 3 arguments",
            "after: 3 arguments",
            "after, keywords: 4 arguments",
            "before backward: 2 arguments",
            "after backward: 3 arguments",
            "before state: 3 arguments",
            "after state: 4 arguments",
            "before load: 8 arguments",
            "after load: 2 arguments",
        ]

        def use_everything() -> None:
            model(image()).sum().backward()
            model.load_state_dict(model.state_dict())

        use_everything()
        assert calls == expected
        calls.clear()

        convert_bn_to_frozen(model)
        del layer
        use_everything()
        assert calls == expected
        calls.clear()

        for handle in handles:
            handle.remove()
        use_everything()
        assert calls == []

    def test_that_are_always_called_still_are(self) -> None:
        model = nn.Sequential(batch_norm())
        calls: list[object] = []
        model[0].register_forward_hook(lambda *args: calls.append(args), always_call=True)
        convert_bn_to_frozen(model)
        with pytest.raises(ValueError, match="4 dimensions"):
            model(torch.zeros(3))
        assert len(calls) == 1

    def test_get_the_frozen_layer(self) -> None:
        model = nn.Sequential(batch_norm())
        seen: list[nn.Module] = []
        model[0].register_forward_hook(lambda layer, *_: seen.append(layer))
        model[0].register_load_state_dict_pre_hook(lambda layer, *_: seen.append(layer))
        convert_bn_to_frozen(model)
        model(image())
        model.load_state_dict(model.state_dict())
        assert seen == [model[0], model[0]]

    def test_that_change_the_output_still_do(self) -> None:
        model = nn.Sequential(batch_norm())
        model[0].register_forward_hook(lambda layer, inputs, output: output + 1)
        expected = model(image())
        assert_same_bits(convert_bn_to_frozen(model)(image()), expected)


class OwnForward(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class TestLeavingAlone:
    @pytest.mark.parametrize(
        ("layer", "because"),
        [
            (nn.BatchNorm1d(3), "BatchNorm1d, not BatchNorm2d"),
            (nn.BatchNorm3d(3), "BatchNorm3d, not BatchNorm2d"),
            (nn.BatchNorm2d(3, track_running_stats=False), "no running statistics"),
            (nn.SyncBatchNorm(3, track_running_stats=False), "no running statistics"),
            (OwnForward(3), "subclass tests.freezing.test_freeze.OwnForward"),
        ],
        ids=lambda value: value if isinstance(value, str) else type(value).__name__,
    )
    def test_layer_that_is_something_else(self, layer: nn.Module, because: str) -> None:
        assert_left_alone(layer, because=because)

    @pytest.mark.parametrize("name", ["running_mean", "running_var"])
    def test_layer_with_half_of_its_statistics(self, name: str) -> None:
        layer = nn.BatchNorm2d(3)
        setattr(layer, name, None)
        assert_left_alone(layer, because="no running statistics")

    @ignores_lazy_warning
    @pytest.mark.parametrize("layer_class", [nn.LazyBatchNorm2d, nn.LazyBatchNorm1d])
    def test_lazy_layer_that_never_ran(self, layer_class: type[nn.Module]) -> None:
        assert_left_alone(layer_class(), because="lazy layer that never ran")

    def test_parametrised_layer(self) -> None:
        class Doubled(nn.Module):
            def forward(self, weight: Tensor) -> Tensor:
                return 2 * weight

        layer = nn.BatchNorm2d(3)
        parametrize.register_parametrization(layer, "weight", Doubled())
        assert_left_alone(layer, because="parametrised")

    def test_layer_with_weight_norm(self) -> None:
        layer = parametrizations.weight_norm(nn.BatchNorm2d(3), dim=None)
        assert_left_alone(layer, because="parametrised")

    @pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
    def test_layer_with_weight_norm_of_the_old_kind(self) -> None:
        layer = nn.utils.weight_norm(nn.BatchNorm2d(3), dim=None)
        assert_left_alone(layer, because="weight_g, weight_v")

    def test_pruned_layer(self) -> None:
        layer = prune.l1_unstructured(nn.BatchNorm2d(3), "weight", amount=1)
        assert_left_alone(layer, because="weight_orig")

    def test_layer_with_computed_weight(self) -> None:
        layer = nn.BatchNorm2d(3)
        del layer.weight
        layer.weight = torch.ones(3)
        assert_left_alone(layer, because="computed instead of stored: weight")

    def test_layer_with_forward_replaced_on_the_instance(self) -> None:
        layer = nn.BatchNorm2d(3)
        original = layer.forward
        layer.forward = lambda x: 2 * original(x)
        assert_left_alone(layer, because="forward was replaced on the instance")

    @pytest.mark.parametrize(
        "add",
        [
            lambda layer: layer.register_buffer("extra", torch.zeros(1)),
            lambda layer: layer.register_parameter("extra", nn.Parameter(torch.zeros(1))),
            lambda layer: layer.register_module("extra", nn.Linear(1, 1)),
        ],
        ids=["buffer", "parameter", "module"],
    )
    def test_layer_with_an_entry_of_its_own(self, add: Callable[[nn.Module], None]) -> None:
        layer = nn.BatchNorm2d(3)
        add(layer)
        assert_left_alone(layer, because="entries of its own that would be lost: extra")

    @ignores_torchscript_warning
    @pytest.mark.parametrize(
        "compiled",
        [torch.jit.script, lambda model: torch.jit.trace(model, image())],
        ids=["script", "trace"],
    )
    def test_layer_in_torchscript(self, compiled: Callable[[nn.Module], nn.Module]) -> None:
        model = nn.Sequential(compiled(cnn()), batch_norm(2))
        decisions = survey_batch_norms(model)
        assert [decision.names for decision in decisions] == [("0.1",), ("0.4",), ("1",)]
        assert [decision.frozen for decision in decisions] == [False, False, True]
        assert "frozenbn convert" in str(decisions[0].reason)
        expected = model[0](image())
        with pytest.warns(UserWarning, match="frozenbn convert"):
            convert_bn_to_frozen(model)
        assert type(model[1]) is FrozenBatchNorm2d
        assert_same_bits(model[0](image()), expected)

    def test_other_normalisations_are_not_even_listed(self) -> None:
        model = nn.Sequential(
            nn.InstanceNorm2d(3, track_running_stats=True),
            nn.GroupNorm(1, 3),
            nn.LayerNorm(3),
            TorchvisionFrozenBatchNorm2d(3),
            FrozenBatchNorm2d(3),
        )
        layers = list(model)
        assert survey_batch_norms(model) == ()
        assert list(convert_bn_to_frozen(model)) == layers


@pytest.mark.usefixtures("process_group")
def test_refuses_a_model_in_distributed_data_parallel() -> None:
    model = cnn()
    wrapped = nn.parallel.DistributedDataParallel(model)
    for root in (wrapped, nn.Sequential(wrapped)):
        with pytest.raises(UsageError, match="Convert first, then wrap"):
            convert_bn_to_frozen(root)
    assert type(model[1]) is nn.BatchNorm2d


class TestSurvey:
    def test_changes_nothing_and_says_what_would_happen(self) -> None:
        model = nn.Sequential(
            OrderedDict(a=nn.BatchNorm2d(1), b=nn.Conv2d(1, 1, 1), c=nn.BatchNorm1d(1))
        )
        layers = list(model.modules())
        first, second = survey_batch_norms(model)
        assert list(model.modules()) == layers
        assert (first.names, first.reason, first.frozen) == (("a",), None, True)
        assert first.type_name == "torch.nn.modules.batchnorm.BatchNorm2d"
        assert second.names == ("c",)
        assert not second.frozen

    def test_calls_the_root_by_an_empty_name(self) -> None:
        (decision,) = survey_batch_norms(nn.BatchNorm2d(1))
        assert decision.names == ("",)

    def test_agrees_with_the_conversion(self) -> None:
        model = nn.Sequential(cnn(), OwnForward(2), nn.BatchNorm1d(2))
        decisions = survey_batch_norms(model, exclude="0.1")
        with pytest.warns(UserWarning, match="2 BatchNorm layers left live: 1: .*; 2: "):
            convert_bn_to_frozen(model, exclude="0.1")
        for decision in decisions:
            layer = model.get_submodule(decision.names[0])
            assert isinstance(layer, FrozenBatchNorm2d) == decision.frozen


def frozen_names(model: nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, FrozenBatchNorm2d)]


def backbone_and_head() -> nn.Module:
    return nn.ModuleDict(
        {
            "backbone": nn.ModuleDict({"bn1": nn.BatchNorm2d(1), "bn2": nn.BatchNorm2d(2)}),
            "head": nn.ModuleDict({"bn1": nn.BatchNorm2d(3)}),
        }
    )


class TestSelecting:
    @pytest.mark.parametrize(
        ("include", "exclude", "expected"),
        [
            ("backbone.*", (), ["backbone.bn1", "backbone.bn2"]),
            (["*.bn2", "head.bn?"], (), ["backbone.bn2", "head.bn1"]),
            ((), "head.*", ["backbone.bn1", "backbone.bn2"]),
            ("backbone.*", "*.bn1", ["backbone.bn2"]),
            (iter(["*"]), iter(["*.bn[2-9]"]), ["backbone.bn1", "head.bn1"]),
            ("*", "*", []),
            ("backbone", (), ["backbone.bn1", "backbone.bn2"]),
            (["backbone.bn1", "head"], (), ["backbone.bn1", "head.bn1"]),
            ((), "backbone", ["head.bn1"]),
        ],
    )
    def test_by_names(self, include: Any, exclude: Any, expected: list[str]) -> None:
        model = backbone_and_head()
        convert_bn_to_frozen(model, include=include, exclude=exclude)
        assert frozen_names(model) == expected

    def test_gives_the_pattern_as_the_reason(self) -> None:
        model = backbone_and_head()
        reasons = [item.reason for item in survey_batch_norms(model, exclude="*.bn2")]
        assert reasons == [None, "excluded by '*.bn2'", None]
        reasons = [item.reason for item in survey_batch_norms(model, include=["head.*", "*.bn2"])]
        assert reasons == ["not included by 'head.*' or '*.bn2'", None, None]

    @pytest.mark.parametrize("pattern", ["first", "second"])
    def test_knows_a_shared_layer_by_all_its_names(self, pattern: str) -> None:
        shared = nn.BatchNorm2d(1)
        model = nn.ModuleDict({"first": shared, "second": shared, "third": nn.BatchNorm2d(1)})
        convert_bn_to_frozen(model, include=pattern)
        assert type(model["first"]) is FrozenBatchNorm2d
        assert model["first"] is model["second"]
        assert type(model["third"]) is nn.BatchNorm2d

    @pytest.mark.parametrize("option", ["include", "exclude"])
    @pytest.mark.parametrize(
        ("pattern", "named"),
        [
            ("backbonne.*", "backbone"),
            ("backbon", "Is it 'backbone"),
            ("Head.*", "head"),
            ("head.conv", "Is it 'head.bn1'"),
        ],
    )
    def test_without_effect_is_refused(self, option: str, pattern: str, named: str) -> None:
        model = backbone_and_head()
        for function in (convert_bn_to_frozen, survey_batch_norms):
            with pytest.raises(UsageError) as caught:
                function(model, **{option: ["*", pattern]})
            assert f"{option} pattern {pattern!r} matches no BatchNorm layer" in str(caught.value)
            assert named in str(caught.value)
        assert frozen_names(model) == []

    def test_in_a_model_without_batch_norm_is_refused(self) -> None:
        with pytest.raises(UsageError, match="matches no BatchNorm layer"):
            convert_bn_to_frozen(nn.Linear(1, 1), include="*")
        convert_bn_to_frozen(nn.Linear(1, 1))


def batch_norm_act(**kwargs: Any) -> nn.Module:
    layer = BatchNormAct2d(3, act_layer=nn.Hardswish, drop_layer=nn.Dropout, **kwargs)
    perturb(layer)
    return layer.eval()


class TestTimm:
    def test_activation_and_dropout_are_kept(self) -> None:
        model = nn.Sequential(batch_norm_act(eps=1e-3))
        activation, dropout = model[0].act, model[0].drop
        expected = model(image())
        convert_bn_to_frozen(model)
        assert type(model[0]) is FrozenBatchNormAct2d
        assert model[0].act is activation
        assert model[0].drop is dropout
        assert model[0].eps == 1e-3
        assert_same_bits(model(image()), expected)

    def test_layer_without_activation_is_kept_so(self) -> None:
        layer = BatchNormAct2d(3, apply_act=False)
        perturb(layer).eval()
        assert (layer(image()) < 0).any()
        assert_same_bits(convert_bn_to_frozen(layer)(image()), layer(image()))

    def test_synchronised_layer_is_frozen(self) -> None:
        model = timm_convert_sync_batchnorm(nn.Sequential(batch_norm_act())).eval()
        assert type(model[0]) is SyncBatchNormAct
        expected = model(image())
        convert_bn_to_frozen(model)
        assert type(model[0]) is FrozenBatchNormAct2d
        assert_same_bits(model(image()), expected)

    def test_synchronised_layer_may_lack_activation_and_dropout(self) -> None:
        model = nn.Sequential(SyncBatchNormAct(3))
        perturb(model).eval()
        expected = model(image())
        assert_same_bits(convert_bn_to_frozen(model)(image()), expected)

    def test_layer_without_statistics_is_left_alone(self) -> None:
        assert_left_alone(
            BatchNormAct2d(3, track_running_stats=False), because="no running statistics"
        )

    def test_subclass_with_a_forward_of_its_own_is_left_alone(self) -> None:
        class Own(BatchNormAct2d):
            def forward(self, x: Tensor) -> Tensor:
                return 2 * super().forward(x)

        assert_left_alone(Own(3), because="subclass")

    def test_round_trip_keeps_outputs_and_state(self) -> None:
        model = nn.Sequential(batch_norm_act(eps=1e-3))
        before, expected = model.state_dict(), model(image())
        convert_frozen_to_bn(convert_bn_to_frozen(model))
        assert type(model[0]) is BatchNormAct2d
        assert_same_bits(model(image()), expected)
        assert list(model.state_dict()) == list(before)

    def test_own_frozen_layer_is_thawed(self) -> None:
        model = nn.Sequential(TimmFrozenBatchNormAct2d(3, eps=1e-3, act_layer=nn.Hardswish))
        perturb(model)
        activation = model[0].act
        expected = model(image())
        convert_frozen_to_bn(model.eval())
        assert type(model[0]) is BatchNormAct2d
        assert model[0].act is activation
        assert model[0].eps == 1e-3
        torch.testing.assert_close(model(image()), expected, rtol=1e-6, atol=1e-6)

    def test_is_asked_for_when_an_activation_is_thawed_without_it(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = nn.Sequential(FrozenBatchNorm2d(3), FrozenBatchNormAct2d(3, act=nn.ReLU()))
        monkeypatch.setitem(sys.modules, "timm.layers", None)
        with pytest.raises(DependencyError, match="pip install timm"):
            convert_frozen_to_bn(model)
        assert type(model[0]) is FrozenBatchNorm2d

    def test_is_not_imported_by_the_conversion(self) -> None:
        program = (
            "import sys, torch; from frozenbn_cli import convert_bn_to_frozen as convert;"
            "convert(torch.nn.Sequential(torch.nn.BatchNorm2d(1)));"
            "sys.exit(bool({'timm', 'torchvision', 'detectron2'} & set(sys.modules)))"
        )
        assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


FROZEN_KINDS: dict[str, Callable[[], nn.Module]] = {
    "own": lambda: FrozenBatchNorm2d(3, 1e-3),
    "torchvision": lambda: TorchvisionFrozenBatchNorm2d(3, 1e-3),
    "timm": lambda: timm_freeze(nn.BatchNorm2d(3, 1e-3)),
    "detectron2": lambda: Detectron2FrozenBatchNorm2d(3, 1e-3),
}


class TestThawing:
    @pytest.mark.parametrize("kind", FROZEN_KINDS.values(), ids=FROZEN_KINDS.keys())
    def test_gives_a_live_batch_norm(self, kind: Callable[[], nn.Module]) -> None:
        frozen = kind()
        perturb(frozen)
        model = nn.Sequential(frozen).eval()
        expected = dict(copy.deepcopy(frozen.state_dict()))
        assert convert_frozen_to_bn(model) is model
        layer = model[0]
        assert type(layer) is nn.BatchNorm2d
        assert layer.eps == 1e-3
        assert layer.momentum == 0.1
        assert layer.affine
        assert layer.track_running_stats
        assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
        assert layer.weight.requires_grad
        assert layer.num_batches_tracked == 0
        state = {name: entry for name, entry in layer.state_dict().items() if name in expected}
        assert_same_bits(dict(sorted(state.items())), dict(sorted(expected.items())))
        torch.testing.assert_close(layer(image()), frozen(image()), rtol=1e-6, atol=1e-6)

        before = layer.running_mean.clone()
        layer.train()(image() + 1)
        assert (layer.running_mean != before).all()
        assert layer.num_batches_tracked == 1

    @pytest.mark.parametrize("kind", FROZEN_KINDS.values(), ids=FROZEN_KINDS.keys())
    def test_shares_no_storage_with_the_frozen_layer(self, kind: Callable[[], nn.Module]) -> None:
        frozen = kind()
        thawed = convert_frozen_to_bn(frozen)
        assert thawed is not frozen
        for name in STATE_NAMES:
            assert getattr(thawed, name).data_ptr() != getattr(frozen, name).data_ptr()

    def test_keeps_layer_under_several_names_one(self) -> None:
        shared = FrozenBatchNorm2d(3)
        model = convert_frozen_to_bn(nn.Sequential(shared, nn.Sequential(shared)))
        assert type(model[0]) is nn.BatchNorm2d
        assert model[0] is model[1][0]

    @pytest.mark.parametrize("name", STATE_NAMES)
    def test_keeps_tied_tensors_tied(self, name: str) -> None:
        model = nn.Sequential(FrozenBatchNorm2d(3), TorchvisionFrozenBatchNorm2d(3))
        setattr(model[1], name, getattr(model[0], name))
        convert_frozen_to_bn(model)
        for each in STATE_NAMES:
            assert (getattr(model[0], each) is getattr(model[1], each)) == (each == name)

    @pytest.mark.parametrize("affine", [True, False])
    @pytest.mark.parametrize("eps", [0.0, 1e-5, 0.1 + 0.2])
    def test_undoes_freezing(self, eps: float, affine: bool) -> None:
        model = cnn(lambda channels: nn.BatchNorm2d(channels, eps, affine=affine))
        fresh = copy.deepcopy(model)
        expected = model(image())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "thawed with eps 0")
            convert_frozen_to_bn(convert_bn_to_frozen(model))
        assert [type(layer) for layer in model] == [type(layer) for layer in fresh]
        assert_same_bits(model(image()), expected)
        fresh.load_state_dict(model.state_dict(), strict=True)
        assert_same_bits(fresh(image()), expected)
        for layer in (model[1], model[4]):
            assert (layer.eps, layer.affine) == (eps, affine)

    def test_undoes_freezing_of_one_without_bias(self) -> None:
        layer = batch_norm()
        layer.register_parameter("bias", None)
        model = convert_frozen_to_bn(convert_bn_to_frozen(nn.Sequential(layer)))
        assert list(model.state_dict()) == list(nn.Sequential(layer).state_dict())
        assert_same_bits(model.eval()(image()), layer(image()))

    @pytest.mark.parametrize("momentum", [0.01, None])
    def test_takes_momentum(self, momentum: float | None) -> None:
        assert convert_frozen_to_bn(FrozenBatchNorm2d(3), momentum=momentum).momentum == momentum

    @pytest.mark.parametrize("training", [True, False])
    def test_keeps_training_flag_hooks_dtype_and_device(self, training: bool) -> None:
        model = nn.Sequential(FrozenBatchNorm2d(3, dtype=torch.float64, device="meta"))
        model.train(training)
        calls: list[nn.Module] = []
        handle = model[0].register_forward_hook(lambda layer, *_: calls.append(layer))
        convert_frozen_to_bn(model)
        assert model[0].training == training
        assert {(entry.dtype, entry.device.type) for entry in model.state_dict().values()} == {
            (torch.float64, "meta"),
            (torch.int64, "meta"),
        }
        model(torch.zeros(2, 3, 4, 4, dtype=torch.float64, device="meta"))
        assert calls == [model[0]]
        handle.remove()
        model(torch.zeros(2, 3, 4, 4, dtype=torch.float64, device="meta"))
        assert len(calls) == 1

    def test_leaves_everything_else_alone(self) -> None:
        class Own(FrozenBatchNorm2d):
            def forward(self, input: Tensor) -> Tensor:
                return 2 * super().forward(input)

        class FrozenBatchNorm2dOfNoKnownPackage(nn.Module):
            pass

        FrozenBatchNorm2dOfNoKnownPackage.__name__ = "FrozenBatchNorm2d"
        model = nn.Sequential(
            nn.BatchNorm2d(3), Own(3), FrozenBatchNorm2dOfNoKnownPackage(), nn.Conv2d(3, 3, 1)
        )
        layers = list(model)
        with pytest.warns(UserWarning, match=r"left frozen: 1 \(a subclass"):
            assert list(convert_frozen_to_bn(model)) == layers
