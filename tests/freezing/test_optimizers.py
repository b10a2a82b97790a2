"""Freezing in the middle of training keeps the optimizer going."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from frozenbn_cli import FrozenBatchNorm2d, convert_bn_to_frozen, freeze_batch_norms
from frozenbn_cli.errors import UsageError
from tests.builders.models import assert_same_bits, perturb, small_cnn


def images() -> torch.Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(images()).square().sum().backward()
        optimizer.step()


def trained(optimizer: Any = torch.optim.AdamW) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = perturb(small_cnn())
    made = optimizer(model.parameters(), lr=1e-3)
    train(model, made)
    return model, made


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [each for group in optimizer.param_groups for each in group["params"]]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_the_optimizer_forgets_what_is_gone_and_nothing_else(kind: Any) -> None:
    model, optimizer = trained(kind)
    kept = {id(each): copy.deepcopy(optimizer.state[each]) for each in parameters_of(optimizer)}
    assert freeze_batch_norms(model, optimizer) is model
    assert [id(each) for each in parameters_of(optimizer)] == [id(p) for p in model.parameters()]
    assert set(optimizer.state) <= set(model.parameters())
    for parameter in model.parameters():
        assert_same_bits(dict(optimizer.state[parameter]), dict(kept[id(parameter)]))
    before = copy.deepcopy(model.state_dict())
    train(model.train(), optimizer)
    for name, entry in model.state_dict().items():
        assert torch.equal(entry, before[name]) == name.startswith(("1.", "4.")), name


def test_groups_keep_their_place_and_a_scheduler_goes_on() -> None:
    model = perturb(small_cnn())
    norms = [each for layer in (model[1], model[4]) for each in layer.parameters()]
    others = [each for each in model.parameters() if all(each is not norm for norm in norms)]
    optimizer = torch.optim.SGD(
        [{"params": norms, "weight_decay": 0.0}, {"params": others, "lr": 0.2}], lr=0.1
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    train(model, optimizer)
    freeze_batch_norms(model, optimizer)
    train(model, optimizer)
    scheduler.step()
    assert [len(group["params"]) for group in optimizer.param_groups] == [0, len(others)]
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.1]


def test_names_of_parameters_go_with_them() -> None:
    model = perturb(small_cnn())
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    freeze_batch_norms(model, optimizer)
    (group,) = optimizer.param_groups
    assert group["param_names"] == [name for name, _ in model.named_parameters()]


def test_a_parameter_that_another_module_has_too_stays() -> None:
    model = perturb(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.GroupNorm(1, 3)))
    model[2].weight = model[1].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    freeze_batch_norms(model, optimizer)
    assert any(each is model[2].weight for each in parameters_of(optimizer))


def test_trained_affine_stays_in_the_optimizer_with_its_momentum() -> None:
    model, optimizer = trained()
    weight, state = model[1].weight, optimizer.state[model[1].weight]
    freeze_batch_norms(model, optimizer, trainable_affine=True)
    assert model[1].weight is weight
    assert optimizer.state[weight] is state
    before = copy.deepcopy(model.state_dict())
    train(model.train(), optimizer)
    for name, entry in model.state_dict().items():
        assert torch.equal(entry, before[name]) == ("running_" in name), name


def test_resumes_from_a_checkpoint_that_was_saved_afterwards() -> None:
    model, optimizer = trained()
    freeze_batch_norms(model, optimizer)
    train(model, optimizer)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer)

    resumed = convert_bn_to_frozen(perturb(small_cnn()))
    resumed.load_state_dict(saved[0], strict=True)
    its_optimizer = torch.optim.AdamW(resumed.parameters(), lr=1e-3)
    its_optimizer.load_state_dict(saved[1])
    train(resumed, its_optimizer)
    assert_same_bits(dict(resumed.state_dict()), dict(model.state_dict()))


def test_takes_several_optimizers_and_a_selection() -> None:
    model = perturb(small_cnn())
    first = torch.optim.SGD(model[:3].parameters(), lr=0.1)
    second = torch.optim.SGD(model[3:].parameters(), lr=0.1)
    freeze_batch_norms(model, [first, second], include="4")
    assert [len(parameters_of(each)) for each in (first, second)] == [4, 4]
    assert type(model[4]) is FrozenBatchNorm2d


@pytest.mark.parametrize(
    ("model", "optimizer", "because"),
    [
        (small_cnn, torch.optim.LBFGS, "LBFGS keeps one state"),
        (lambda: nn.BatchNorm2d(3), torch.optim.SGD, "the model itself is a BatchNorm layer"),
    ],
)
def test_refuses_what_it_cannot_do_and_changes_nothing(
    model: Any, optimizer: Any, because: str
) -> None:
    built = model()
    before = list(built.modules())
    with pytest.raises(UsageError, match=because):
        freeze_batch_norms(built, optimizer(built.parameters(), lr=0.1))
    assert list(built.modules()) == before


def test_warns_where_it_is_called() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    with pytest.warns(UserWarning, match="left live: 1: BatchNorm1d") as caught:
        freeze_batch_norms(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert caught[0].filename == __file__
