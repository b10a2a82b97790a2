"""`calibrate_statistics`: what a live model comes to, and what it keeps."""

import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, ResNet

from frozenbn_cli import calibrate_statistics, convert_bn_to_frozen
from frozenbn_cli.calibration.moments import Moments
from frozenbn_cli.errors import (
    FrozenBNError,
    InputError,
    RefusedError,
    UnhealthyStatisticsError,
    UsageError,
)
from samples.backbone import Backbone
from samples.make_samples import SAMPLE_PATH, read_digits
from tests.builders.models import build, small_cnn
from tests.calibration.reference import assert_close, reference


def images(*sizes: int, shape: tuple[int, ...] = (3, 8, 8), seed: int = 0) -> list[Tensor]:
    """Return batches whose examples differ much, so that their statistics do too."""
    generator = torch.Generator().manual_seed(seed)

    def batch(size: int) -> Tensor:
        offsets = torch.randn(size, *(1 for _ in shape), generator=generator)
        return torch.randn(size, *shape, generator=generator) * 0.5 + offsets

    return [batch(size) for size in sizes]


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items() if "running" in name}


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


# What comes out


@pytest.mark.parametrize(
    "builder",
    [
        lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3),
        pytest.param(
            lambda: torchvision.models.mobilenet_v3_small(num_classes=3), marks=pytest.mark.slow
        ),
    ],
    ids=["resnet10", "mobilenet_v3_small"],
)
def test_statistics_are_those_of_a_reference_in_float64(builder: Callable[[], nn.Module]) -> None:
    model = build(builder)
    batches = images(2, 1, shape=(3, 64, 64))
    expected = reference(model, batches)

    found = calibrate_statistics(model, batches)

    assert_close(model, expected)
    assert found.settled
    assert found.batches == 2
    assert found.left == {}
    assert found.passes == len(found.layers) + 1


def test_digits_give_the_statistics_of_a_reference() -> None:
    model = Backbone()
    model.load_state_dict(torch.load(SAMPLE_PATH, weights_only=True))
    batches = [1 - batch for batch in read_digits().train_images[:72].split(40)]
    expected = reference(model, batches)

    found = calibrate_statistics(model, batches)

    assert_close(model, expected)
    assert found.settled
    worst = found.worst_first[0].drift
    assert worst is not None
    assert worst.means > 0.5
    assert worst.variances > 1.2


def test_how_the_data_are_cut_and_sorted_does_not_matter() -> None:
    first, second, third = (build(small_cnn) for _ in range(3))
    data = torch.cat(images(4, 4, 3))
    in_order = data[data.mean((1, 2, 3)).argsort()]

    calibrate_statistics(first, [data])
    calibrate_statistics(second, data.split(4))
    calibrate_statistics(third, in_order.split(1))

    assert_close(second, first, 2e-6)
    assert_close(third, first, 2e-6)


def test_normalised_inputs_have_mean_0_and_variance_1() -> None:
    model = build(small_cnn)
    batches = images(4, 2)
    calibrate_statistics(model, batches)
    layer, given = model[4], []
    layer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))

    with torch.no_grad():
        for batch in batches:
            model(batch)

    normalised = F.batch_norm(
        torch.cat(given), layer.running_mean, layer.running_var, eps=layer.eps
    )
    assert normalised.mean((0, 2, 3)).abs().max() < 1e-6
    variance = layer.running_var
    expected = variance / (variance + layer.eps)
    torch.testing.assert_close(normalised.double().var((0, 2, 3)).float(), expected)


def test_statistics_that_were_broken_or_never_formed_do_no_harm() -> None:
    sound, broken, blank = (build(small_cnn) for _ in range(3))
    for layer in (broken[1], broken[4]):
        layer.running_mean.fill_(torch.nan)
        layer.running_var.fill_(-1)
    for layer in (blank[1], blank[4]):
        layer.reset_running_stats()
    batches = images(1, 4)

    found = calibrate_statistics(broken, batches)
    for model in (sound, blank):
        calibrate_statistics(model, batches)

    assert_equal(statistics(broken), statistics(sound))
    assert_equal(statistics(blank), statistics(sound))
    assert [layer.drift for layer in found.layers] == [None, None]


class Dimensions(nn.Module):
    """A layer of each kind, one of them used twice, one in training alone."""

    def __init__(self) -> None:
        super().__init__()
        self.volume = nn.BatchNorm3d(2)
        self.map = nn.SyncBatchNorm(2)
        self.twice = nn.BatchNorm2d(2)
        self.again = self.twice
        self.sequence = nn.BatchNorm1d(2)
        self.vector = nn.BatchNorm1d(2, affine=False, momentum=None)
        self.plain = nn.BatchNorm2d(2, track_running_stats=False)
        self.auxiliary = nn.BatchNorm2d(2)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.volume(x).flatten(3)
        x = self.dropout(self.map(x))
        x = self.again(torch.sin(self.twice(x)))
        if self.training:
            x = self.auxiliary(x)
        x = self.sequence(self.plain(x).flatten(2))
        return self.vector(x.mean(2))


def test_all_kinds_of_layers_are_calibrated_and_others_named() -> None:
    model = Dimensions().train()
    before = model.auxiliary.running_var.clone()
    batches = images(4, 3, shape=(2, 3, 4, 5))

    found = calibrate_statistics(model, batches)

    assert [layer.names for layer in found.layers] == [
        ("volume",), ("map",), ("twice", "again"), ("sequence",), ("vector",)
    ]  # fmt: skip
    assert found.settled
    assert found.left.keys() == {"plain", "auxiliary"}
    assert "track_running_stats" in found.left["plain"]
    assert "never reached" in found.left["auxiliary"]
    assert torch.equal(model.auxiliary.running_var, before)
    whole = torch.cat(batches).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(model.volume.running_mean.double(), whole.mean(1))
    torch.testing.assert_close(model.volume.running_var.double(), whole.var(1))
    assert [layer.uses for layer in found.layers] == [2, 2, 4, 2, 2]
    assert found.layers[2].elements == 2 * 7 * 3 * 20


def test_a_layer_that_is_used_twice_has_the_statistics_of_both_uses() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(x) + self.bn(3 * x + 1)

    model = Twice()
    (x,) = images(6, shape=(2,))

    found = calibrate_statistics(model, [x[:4], x[4:]])

    both = torch.cat([x, 3 * x + 1]).double()
    torch.testing.assert_close(model.bn.running_mean.double(), both.mean(0))
    torch.testing.assert_close(model.bn.running_var.double(), both.var(0))
    assert found.settled


class Transposing(nn.BatchNorm1d):
    """Takes (N, L, C)."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


class Functional(nn.Module):
    """Normalises with the buffers of a layer that it does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.batch_norm(
            x, None, None, self.bn.running_mean, self.bn.running_var, False, 0.1, 1e-5, False
        )


def test_a_layer_is_measured_where_it_normalises() -> None:
    (x,) = images(4, shape=(5, 3))
    transposing = Transposing(3)
    calibrate_statistics(transposing, [x])
    torch.testing.assert_close(transposing.running_mean, x.mean((0, 1)))

    (x,) = images(4)
    functional = Functional()
    calibrate_statistics(functional, [x])
    torch.testing.assert_close(functional.bn.running_mean, x.mean((0, 2, 3)))

    activating = timm.layers.BatchNormAct2d(3)
    calibrate_statistics(activating, [x])
    torch.testing.assert_close(activating.running_var, x.var((0, 2, 3)))


def test_frozen_and_unselected_layers_stay() -> None:
    model = build(small_cnn)
    model = convert_bn_to_frozen(model, include="1")
    before = {name: value.clone() for name, value in model.state_dict().items()}

    found = calibrate_statistics(model, images(3))

    assert found.left == {"1": "frozen"}
    changed = {name for name, value in model.state_dict().items() if not value.equal(before[name])}
    assert changed == {"4.running_mean", "4.running_var", "4.num_batches_tracked"}
    other = build(small_cnn)
    left = calibrate_statistics(other, images(3), exclude="4").left
    assert left == {"4": "excluded by '4'"}
    with pytest.raises(RefusedError, match="no BatchNorm layer"):
        calibrate_statistics(convert_bn_to_frozen(other), images(3))


def test_layers_that_take_batch_statistics_in_eval_stay() -> None:
    class Always(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return F.batch_norm(input, self.running_mean, self.running_var, training=True)

    model = nn.Sequential(Always(3), nn.BatchNorm2d(3))

    found = calibrate_statistics(model, images(3, 2))

    assert found.left == {"0": "normalises with batch statistics in eval too"}
    assert [layer.names for layer in found.layers] == [("1",)]
    assert model[0].running_mean.eq(0).all()


def test_statistics_that_are_parameters_stay() -> None:
    layer = nn.BatchNorm2d(3)
    del layer.running_mean
    layer.running_mean = nn.Parameter(torch.zeros(3))
    model = nn.Sequential(layer, nn.BatchNorm2d(3))

    found = calibrate_statistics(model, images(3, 2))

    assert found.left.keys() == {"0"}
    assert layer.running_mean.eq(0).all()
    assert layer.running_var.eq(1).all()


def test_half_precision_and_double_are_kept() -> None:
    for dtype in (torch.bfloat16, torch.float64):
        model = build(small_cnn).to(dtype)
        expected = reference(model, images(4, 3))

        found = calibrate_statistics(model, [batch.numpy() for batch in images(4, 3)])

        assert model[1].running_var.dtype == dtype
        assert found.settled
        assert_close(model, expected, 0.02 if dtype == torch.bfloat16 else 1e-12)


# What is kept


def test_nothing_but_statistics_and_counters_changes() -> None:
    class Busy(nn.Module):
        """Changes its own buffers and its input, draws random numbers, and is in mixed modes."""

        def __init__(self) -> None:
            super().__init__()
            self.body = build(small_cnn).train()
            self.body[4].eval()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.calls = self.calls + 1
            x.add_(1).add_(F.dropout(torch.ones_like(x), training=True))
            return self.body(x) + random.random() + np.random.rand() + torch.rand(())

    model = Busy()
    batches = images(4, 3)
    copies = [batch.clone() for batch in batches]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    found = calibrate_statistics(model, batches)

    assert found.settled
    assert {name: module.training for name, module in model.named_modules()} == modes
    after = model.state_dict()
    changed = {name for name, value in before.items() if not value.equal(after[name])}
    tracked = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"body.{layer}.{role}" for layer in (1, 4) for role in tracked}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(map(torch.equal, batches, copies))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    assert model.body[1].num_batches_tracked == 2


def test_a_model_that_overwrites_train_and_eval_gets_its_modes_back() -> None:
    class Merging(nn.Sequential):
        merged = False

        def train(self, mode: bool = True) -> nn.Module:
            self.merged = not mode
            return self

    model = Merging(nn.BatchNorm2d(3), nn.Dropout()).train()
    model[1].training = True

    calibrate_statistics(model, images(2))

    assert not model.merged
    assert model[1].training


# Data


def test_data_may_be_a_list_a_loader_a_generator_or_a_function() -> None:
    batches = images(4, 3, 2)

    def give() -> Iterator[Tensor]:
        reused = torch.empty(4, 3, 8, 8)
        for batch in batches:
            reused[: len(batch)] = batch
            yield reused[: len(batch)]

    kinds: list[Any] = [
        batches,
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.cat(batches)), 4),
        give(),
        give,
        [(batch, torch.zeros(len(batch))) for batch in batches],
        [[batch, None] for batch in batches],
        [{"input": batch} for batch in batches],
        [({"input": batch}, 0) for batch in batches],
    ]

    found = []
    for data in kinds:
        model = build(small_cnn)
        assert calibrate_statistics(model, data).settled
        found.append(model)

    for model in found[1:]:
        assert_close(model, found[0], 1e-6)


def test_a_part_of_the_data_is_enough_if_that_is_wanted() -> None:
    first, second = build(small_cnn), build(small_cnn)

    def endless() -> Iterator[Tensor]:
        yield from images(4, 3)
        raise AssertionError("no more was wanted")

    found = calibrate_statistics(first, endless, max_batches=2)
    calibrate_statistics(second, images(4, 3))

    assert found.batches == 2
    assert_equal(statistics(first), statistics(second))


def test_what_is_drawn_at_random_is_the_same_in_each_pass() -> None:
    model = build(small_cnn)
    (data,) = images(8)

    def shuffled() -> Iterator[Tensor]:
        scale = 1 + np.random.rand() + random.random()
        yield from (data[torch.randperm(8)] * scale).split(3)

    assert calibrate_statistics(model, shuffled).settled


def test_data_that_differ_from_pass_to_pass_are_found_out() -> None:
    generator = torch.Generator().manual_seed(0)

    def noisy() -> Iterator[Tensor]:
        yield torch.randn(4, 3, 8, 8, generator=generator)

    found = calibrate_statistics(build(small_cnn), noisy)

    assert (found.settled, found.steady) == (False, False)
    assert found.apart is not None
    assert found.apart[0] > 1e-3


def test_fewer_passes_say_how_far_they_came() -> None:
    exact, once, few = (build(Backbone) for _ in range(3))
    batches = images(*[8] * 6, shape=(1, 8, 8))
    calibrate_statistics(exact, batches)

    one, five = (
        calibrate_statistics(model, batches, passes=n) for model, n in ((once, 1), (few, 5))
    )

    assert (one.passes, one.settled, one.apart) == (1, False, None)
    assert (five.passes, five.settled) == (5, False)
    assert five.apart is not None
    assert_close(once, exact, 5.0)
    assert_close(few, exact, 5.0)


def test_progress_is_told_pass_by_pass() -> None:
    told: list[tuple[str, int, int]] = []

    def give() -> Iterator[Tensor]:
        yield from images(2, 2)

    calibrate_statistics(build(small_cnn), give, progress=lambda *args: told.append(args))

    assert told[:3] == [("pass 1", 0, 0), ("pass 1", 1, 0), ("pass 1", 2, 0)]
    assert told[-1] == ("pass 3", 2, 2)


# What is refused


def failing() -> Iterator[Tensor]:
    yield from images(2)
    raise ValueError("the disk is on fire\nand more")


def dwindling() -> Callable[[], Iterator[Tensor]]:
    left = [images(2, 2), images(2)]
    return lambda: iter(left.pop(0) if left else [])


NAN = torch.full((2, 3, 8, 8), torch.nan)
REFUSED = {
    "none": ([], InputError, "the data: holds no batch"),
    "empty generator": (lambda: iter(()), InputError, "the data: holds no batch"),
    "NaN": ([*images(2), NAN], InputError, "the data, batch 2: holds NaN or Inf (2x3x8x8)"),
    "a shape": (
        images(2, shape=(5, 8, 8)),
        UsageError,
        "the data, batch 1 of 2x5x8x8: the model fails on it (RuntimeError:",
    ),
    "a name": ([{"image": images(2)[0]}], UsageError, "unexpected keyword argument 'image'"),
    "an exception": (
        failing,
        UsageError,
        "the data, batch 2: making it failed (ValueError: the disk is on fire)",
    ),
    "a number": ([3], InputError, "the data, batch 1: expected a tensor"),
    "a bare tensor": (images(2)[0], UsageError, "the data: expected what gives batches"),
    "no batches": (7, UsageError, "the data: expected what gives batches, found int"),
    "fewer at last": (dwindling(), UsageError, "the data: 2 batches at first, and 1 when"),
    "one value": (images(1, shape=(3, 1, 1)), InputError, "layer '1' gets one value"),
}


@pytest.mark.parametrize(("data", "kind", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_data_are_one_line_and_change_nothing(
    data: Any, kind: type[FrozenBNError], words: str
) -> None:
    model = build(small_cnn).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}

    with pytest.raises(kind) as refused:
        calibrate_statistics(model, data)

    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert model.training
    assert_equal(dict(model.state_dict()), before)


def test_broken_weights_are_not_blamed_on_the_data() -> None:
    model = build(small_cnn)
    with torch.no_grad():
        model[0].weight[0] = torch.inf

    with pytest.raises(UnhealthyStatisticsError, match="layer '1' is given NaN or Inf"):
        calibrate_statistics(model, images(2))


@pytest.mark.parametrize("option", ["passes", "max_batches"])
def test_numbers_below_1_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match=f"{option} 0: expected 1 or more"):
        calibrate_statistics(small_cnn(), images(2), **{option: 0})


# Moments


def test_moments_hold_where_the_mean_is_large() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1000, 2, 3, generator=generator, dtype=torch.float64) * 1e-3 + 1e5
    moments = Moments()

    for part in values.split(7):
        moments.add(part)

    rows = values.transpose(0, 1).flatten(1)
    assert moments.count == 3000
    torch.testing.assert_close(moments.mean, rows.mean(1), rtol=1e-15, atol=0)
    torch.testing.assert_close(moments.variance, rows.var(1), rtol=1e-7, atol=0)


def test_moments_of_nothing_are_none() -> None:
    moments = Moments()
    moments.add(torch.empty(0, 3, 2))
    assert (moments.count, moments.mean, moments.variance) == (0, None, None)


def test_compiled_models_are_measured_as_they_were_written() -> None:
    plain, compiled = build(small_cnn), build(small_cnn)
    batches = images(3, 2)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calibrate_statistics(torch.compile(compiled, backend="eager"), batches)
    calibrate_statistics(plain, batches)

    assert_equal(statistics(compiled), statistics(plain))


def test_the_public_name_imports_no_torch_before_it_is_used() -> None:
    code = "import sys, frozenbn_cli as f; f.CalibrateOptions; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
