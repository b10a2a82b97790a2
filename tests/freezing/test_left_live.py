"""Nothing stays live in silence: what is frozen after all, what is warned of, what is refused."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from frozenbn_cli import (
    FrozenBatchNorm1d,
    FrozenBatchNorm2d,
    FrozenBatchNorm3d,
    FrozenBatchNormNd,
    convert_bn_to_frozen,
    survey_batch_norms,
)
from frozenbn_cli.errors import UsageError
from tests.builders.models import assert_same_bits, build, perturb


def heard(model: nn.Module, **selection: Any) -> list[str]:
    """Freeze, and return what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        convert_bn_to_frozen(model, **selection)
    assert {item.filename for item in caught} <= {__file__}
    return [str(item.message) for item in caught]


def three() -> nn.ModuleDict:
    return perturb(
        nn.ModuleDict(
            {"one": nn.BatchNorm1d(3), "two": nn.BatchNorm2d(3), "three": nn.BatchNorm3d(3)}
        )
    )


class Renamed(nn.BatchNorm2d):
    pass


class AnyDims(nn.BatchNorm1d):
    def _check_input_dim(self, input: Tensor) -> None:
        return


class Lightnings(_BatchNorm):
    """As Lightning's `_BatchNormXd`."""

    def _check_input_dim(self, input: Tensor) -> None:
        return


class TestDims:
    def test_of_two_are_frozen_by_default_and_the_others_warned_of(self) -> None:
        model = three()
        (text,) = heard(model)
        assert type(model["two"]) is FrozenBatchNorm2d
        assert text.startswith("2 BatchNorm layers left live: one: BatchNorm1d, not BatchNorm2d")
        assert "dims=(1, 2) takes it in" in text
        assert "three: BatchNorm3d" in text

    @pytest.mark.parametrize("dims", [(1,), (3,), (1, 2), (1, 2, 3)])
    def test_that_are_chosen_are_frozen_and_the_others_no_news(self, dims: tuple[int, ...]) -> None:
        model = three()
        assert heard(model, dims=dims) == []
        kinds = (FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d)
        frozen = {i for i, kind in enumerate(kinds, 1) if type(list(model.values())[i - 1]) is kind}
        assert frozen == set(dims)

    @pytest.mark.parametrize("dims", [(), (0,), (2, 4)])
    def test_that_there_are_none_of_are_refused(self, dims: tuple[int, ...]) -> None:
        with pytest.raises(UsageError, match="expected some of 1, 2 and 3"):
            convert_bn_to_frozen(three(), dims=dims)

    def test_of_a_layer_of_other_dims_may_be_excluded_or_not_included(self) -> None:
        assert heard(three(), exclude=["one", "three"]) == []
        assert heard(three(), include="two") == []

    @pytest.mark.parametrize("synchronised", [False, True])
    def test_of_a_video_model_keep_its_outputs(self, synchronised: bool) -> None:
        model = build(torchvision.models.video.r3d_18, num_classes=3)
        if synchronised:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model).eval()
        x = torch.randn(1, 3, 2, 16, 16)
        expected = model(x)
        dims = None if synchronised else (3,)
        assert heard(model, dims=dims) == []
        assert not any(isinstance(layer, _BatchNorm) for layer in model.modules())
        assert_same_bits(model.train()(x), expected)

    def test_of_a_point_cloud_network_keep_its_outputs(self) -> None:
        points = nn.Sequential(
            nn.Conv1d(3, 8, 1),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.AdaptiveMaxPool1d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
            nn.BatchNorm1d(4),
        )
        perturb(points).eval()
        x = torch.randn(2, 3, 32)
        expected = points(x)
        assert heard(points, dims=(1,)) == []
        assert_same_bits(points.train()(x), expected)


class TestSubclasses:
    @pytest.mark.parametrize(
        ("layer", "frozen", "shapes"),
        [
            (Renamed, FrozenBatchNorm2d, [(2, 3, 4, 4)]),
            (AnyDims, FrozenBatchNormNd, [(2, 3), (2, 3, 4, 4)]),
            (Lightnings, FrozenBatchNormNd, [(2, 3), (2, 3, 4), (2, 3, 4, 4, 4)]),
            (nn.SyncBatchNorm, FrozenBatchNormNd, [(2, 3), (2, 3, 4, 4)]),
        ],
    )
    def test_that_inherit_their_forward_are_frozen(
        self, layer: Callable[[int], nn.Module], frozen: type, shapes: list[tuple[int, ...]]
    ) -> None:
        model = perturb(nn.Sequential(layer(3))).eval()
        original = copy.deepcopy(model)
        assert heard(model, dims=(1, 2)) == []
        assert type(model[0]) is frozen
        for shape in shapes:
            x = torch.randn(shape)
            assert_same_bits(model.train()(x), original(x))

    @pytest.mark.parametrize("name", ["forward", "__call__", "state_dict", "_load_from_state_dict"])
    def test_that_do_something_of_their_own_are_left_with_the_reason(self, name: str) -> None:
        def own(self: Any, *args: Any, **keywords: Any) -> Any:
            return getattr(nn.BatchNorm2d, name)(self, *args, **keywords)

        layer = type("Own", (nn.BatchNorm2d,), {name: own})(3)
        (text,) = heard(nn.Sequential(perturb(layer)))
        assert "left live: 0: subclass" in text
        assert name in text

    def test_a_class_that_is_no_batch_norm_and_keeps_statistics_is_named(self) -> None:
        class InPlace(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("running_mean", torch.zeros(3))
                self.register_buffer("running_var", torch.ones(3))

            def forward(self, x: Tensor) -> Tensor:
                return x

        (text,) = heard(nn.Sequential(InPlace()))
        assert "InPlace, no BatchNorm" in text


def test_one_warning_names_all_layers_and_reasons() -> None:
    model = nn.Sequential(
        nn.BatchNorm1d(3), nn.BatchNorm2d(3, track_running_stats=False), nn.BatchNorm1d(3)
    )
    (text,) = heard(perturb(model))
    assert text == (
        "3 BatchNorm layers left live: "
        "0, 2: BatchNorm1d, not BatchNorm2d (dims=(1, 2) takes it in); "
        "1: no running statistics (track_running_stats=False). "
        "In train() they update their statistics; exclude= says that this is meant."
    )


class TestStatistics:
    @pytest.mark.parametrize(
        ("spoil", "named"),
        [
            (lambda layer: layer.reset_running_stats(), "never formed"),
            (lambda layer: layer.running_mean.fill_(float("nan")), "NaN or Inf"),
            (lambda layer: layer.running_var[:1].fill_(-1.0), "negative variance"),
            (lambda layer: layer.weight.data[:1].fill_(float("inf")), "NaN or Inf"),
        ],
    )
    def test_that_mean_nothing_are_warned_of(
        self, spoil: Callable[[Any], object], named: str
    ) -> None:
        model = perturb(nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3)))
        spoil(model[1])
        (text,) = heard(model)
        assert f"{named}" in text
        assert ": 1." in text
        assert type(model[1]) is FrozenBatchNorm2d

    def test_on_the_meta_device_are_not_looked_at(self) -> None:
        assert heard(nn.Sequential(nn.BatchNorm2d(3, device="meta"))) == []


class Holding(nn.Module):
    """Runs its layer by way of something beside the module tree."""

    def __init__(self, hold: Callable[[nn.Module], Any], get: Callable[[Any], Any]) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.held = hold(self.bn)
        self.get = get

    def forward(self, x: Tensor) -> Tensor:
        return self.get(self.held)(x)


def closure(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: layer(x) + 0


class Slotted:
    __slots__ = ("norm",)

    def __init__(self, norm: nn.Module) -> None:
        self.norm = norm


class Unregistered(nn.Module):
    """Holds blocks that are in no module tree."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.blocks = [*blocks]


class TestInNoTree:
    """Layers that no module registers are warned of: neither freezing nor eval() reaches them."""

    def test_are_named(self) -> None:
        model = Unregistered(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3)), nn.BatchNorm1d(3))

        (text,) = heard(perturb(model))
        assert text.startswith("1 BatchNorm layer left live, since no module registers what holds")
        assert "the model.blocks[0].1. Put them into an nn.ModuleList" in text
        (text,) = heard(model, dims=(1, 2, 3))
        assert "the model.blocks[0].1, the model.blocks[1]." in text

    def test_are_not_where_they_are_in_eval_or_others_were_selected(self) -> None:
        assert heard(perturb(Unregistered(nn.BatchNorm2d(3).eval()))) == []
        assert heard(perturb(Unregistered(nn.BatchNorm2d(3))), include="bn") == []

    def test_what_a_model_is_a_part_of_is_not_held_by_it(self) -> None:
        whole = nn.Sequential(Unregistered(), nn.BatchNorm2d(3))
        whole[0].blocks.append(whole)

        assert heard(perturb(whole[0])) == []


class TestHeldOutsideTheTree:
    @pytest.mark.parametrize(
        ("hold", "get"),
        [
            (lambda bn: [bn], lambda held: held[0]),
            (lambda bn: {"a": {"b": bn}}, lambda held: held["a"]["b"]),
            (lambda bn: [bn.forward], lambda held: held[0]),
            (lambda bn: bn.forward, lambda held: held),
            (closure, lambda held: held),
            (lambda bn: SimpleNamespace(norm=bn), lambda held: held.norm),
            (lambda bn: [weakref.ref(bn)], lambda held: held[0]()),
            (lambda bn: lambda x, layer=bn: layer(x), lambda held: held),
            (lambda bn: lambda x, *, layer=bn: layer(x), lambda held: held),
            (Slotted, lambda held: held.norm),
        ],
        ids=[
            "list",
            "dict",
            "bound method in a list",
            "bound method",
            "closure",
            "object",
            "weak reference",
            "default of a function",
            "default by name",
            "object with slots",
        ],
    )
    def test_is_replaced_there(
        self, hold: Callable[[nn.Module], Any], get: Callable[[Any], Any]
    ) -> None:
        model = perturb(Holding(hold, get)).eval()
        x = torch.randn(2, 3, 4, 4)
        expected = model(x)
        assert heard(model) == []
        model.bn.running_mean.add_(1)
        assert not torch.equal(model.train()(x), expected)
        model.bn.running_mean.sub_(1)
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("hold", "where"),
        [
            (lambda bn: (bn,), "the model.held[0]"),
            (functools.partial, "the model.held"),
            (lambda bn: {bn}, "the model.held"),
            (lambda bn: {bn: 1}, "a key of the model.held"),
        ],
        ids=["tuple", "partial", "set", "key"],
    )
    def test_is_warned_of_where_it_cannot_be(
        self, hold: Callable[[nn.Module], Any], where: str
    ) -> None:
        (text,) = heard(perturb(Holding(hold, lambda held: held)))
        assert f"also held by {where}, where it stays in use" in text

    def test_is_no_matter_outside_the_model(self) -> None:
        model = perturb(nn.Sequential(nn.BatchNorm2d(3)))
        mine = list(model)
        assert heard(model) == []
        assert type(mine[0]) is nn.BatchNorm2d


class TestRefused:
    def refuses(self, model: nn.Module) -> None:
        before = list(model.modules())
        with pytest.raises(UsageError, match="Convert first, then"):
            convert_bn_to_frozen(model)
        assert list(model.modules()) == before

    @pytest.mark.usefixtures("process_group")
    def test_fully_sharded_model(self) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model = perturb(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        self.refuses(model)

    @pytest.mark.skipif(
        torch.__version__.startswith("2.6"), reason="PyTorch 2.6 cannot shard on the CPU"
    )
    @pytest.mark.usefixtures("process_group")
    @pytest.mark.parametrize("trainable_affine", [False, True])
    def test_but_a_frozen_model_is_sharded_and_trained(self, trainable_affine: bool) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model = perturb(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
        convert_bn_to_frozen(model, trainable_affine=trainable_affine)
        x = torch.randn(2, 3, 4, 4)
        expected, before = model(x), [buffer.clone() for buffer in model.buffers()]
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        output = model(x)
        output.square().sum().backward()
        optimizer.step()
        assert_same_bits(output, expected)
        assert not torch.equal(model(x), expected)
        assert_same_bits(list(model.buffers()), before)

    @pytest.mark.parametrize("hook", ["_hf_hook", "_diffusers_hook"])
    def test_offloaded_model(self, hook: str) -> None:
        model = perturb(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
        setattr(model[0], hook, object())
        self.refuses(model)


class TestGraphs:
    def test_calls_that_use_batch_statistics_are_warned_of(self) -> None:
        class Everything(torch.fx.Tracer):
            def is_leaf_module(self, module: nn.Module, name: str) -> bool:
                return False

        model = perturb(nn.Sequential(nn.BatchNorm2d(3)))
        inner = model[0].eval()
        inner.forward = lambda x: nn.functional.batch_norm(  # type: ignore[method-assign]
            x, inner.running_mean, inner.running_var, training=True
        )
        traced = torch.fx.GraphModule(model, Everything().trace(model))
        (text,) = heard(nn.Sequential(traced))
        assert "0.batch_norm: called in a traced graph" in text

    def test_of_exported_models_are_warned_of_where_they_are_live(self) -> None:
        model = perturb(nn.Sequential(nn.BatchNorm2d(3)))
        x = (torch.randn(2, 3, 4, 4),)
        assert "called in a traced graph" in heard(torch.export.export(model, x).module())[0]
        assert heard(torch.export.export(model.eval(), x).module()) == []

    def test_of_fx_keep_their_layers_which_are_frozen(self) -> None:
        traced = torch.fx.symbolic_trace(perturb(nn.Sequential(nn.BatchNorm2d(3))).eval())
        x = torch.randn(2, 3, 4, 4)
        expected = traced(x)
        assert heard(traced) == []
        assert survey_batch_norms(traced) == ()
        assert_same_bits(traced.train()(x), expected)


def test_freezes_in_inference_mode_what_is_trained_with_later() -> None:
    model = perturb(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    with torch.inference_mode():
        assert heard(model) == []
    model(torch.randn(2, 3, 4, 4)).sum().backward()
    assert model[0].weight.grad is not None


def test_freezes_a_compiled_model() -> None:
    torch._dynamo.reset()
    model = perturb(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))).eval()
    compiled = torch.compile(model, backend="eager")
    x = torch.randn(2, 3, 4, 4)
    expected = compiled(x)
    assert heard(compiled) == []
    assert_same_bits(compiled.train()(x), expected)
    torch._dynamo.reset()


def test_needs_no_distributed_package() -> None:
    program = (
        "import torch; torch.distributed.is_available = lambda: False;"
        "from frozenbn_cli import convert_bn_to_frozen as convert;"
        "convert(torch.nn.Sequential(torch.nn.BatchNorm2d(1)))"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=False)
    assert run.returncode == 0
