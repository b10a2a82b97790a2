"""A run that is frozen by its checkpoint goes on as one that is frozen live, to the last bit."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from frozenbn_cli import ConvertOptions, convert_file, freeze_batch_norms, load_frozen
from tests.builders.models import assert_same_bits

Build = Callable[[Any], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Build] = {
    "sgd": lambda given: torch.optim.SGD(given, lr=0.05),
    "momentum": lambda given: torch.optim.SGD(given, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda given: torch.optim.Adam(given, lr=1e-2),
    "adamw": lambda given: torch.optim.AdamW(given, lr=1e-2),
    "amsgrad": lambda given: torch.optim.Adam(given, lr=1e-2, amsgrad=True),
    "rmsprop": lambda given: torch.optim.RMSprop(given, lr=1e-3, momentum=0.9, centered=True),
    "adagrad": lambda given: torch.optim.Adagrad(given, lr=1e-2),
}


class Network(nn.Module):
    """Convolutions with and without a bias as wide as its layers, a layer twice, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.head = nn.Linear(16, 8)

    def forward(self, images: Any) -> Any:
        return self.head(self.body(self.stem(images)).mean((2, 3)))


def one_group(model: nn.Module) -> Any:
    return model.parameters()


def by_decay(model: nn.Module) -> Any:
    """Part parameters as timm does."""
    flat = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    return [{"params": flat, "weight_decay": 0.0}, {"params": others, "weight_decay": 0.02}]


def by_part(model: Any) -> Any:
    """Let the head learn faster."""
    backbone = [*model.stem.parameters(), *model.body.parameters()]
    return [{"params": backbone}, {"params": list(model.head.parameters()), "lr": 0.1}]


GROUPS = {"one": one_group, "decay": by_decay, "part": by_part}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    model.train()
    for step in steps:
        images = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()


def new_run(build: Build, groups: Any) -> tuple[Network, torch.optim.Optimizer]:
    torch.manual_seed(7)
    model = Network()
    return model, build(groups(model))


CASES = [
    *((optimizer, groups, False) for optimizer in OPTIMIZERS for groups in GROUPS),
    ("momentum", "one", True),
    ("adamw", "decay", True),
]


@pytest.mark.parametrize(
    ("optimizer", "groups", "legacy"),
    CASES,
    ids=[f"{one}-{groups}{'-legacy' * legacy}" for one, groups, legacy in CASES],
)
def test_goes_on_as_if_it_had_been_frozen_live(
    tmp_path: Path, optimizer: str, groups: str, legacy: bool
) -> None:
    build, parted = OPTIMIZERS[optimizer], GROUPS[groups]
    model, own = new_run(build, parted)
    scheduler = torch.optim.lr_scheduler.StepLR(own, 3, 0.5)
    train(model, own, range(2))
    checkpoint = {
        "epoch": 2,
        "state_dict": model.state_dict(),
        "optimizer": own.state_dict(),
        "scheduler": scheduler.state_dict(),
    }
    torch.save(checkpoint, tmp_path / "last.pt", _use_new_zipfile_serialization=not legacy)

    # Frozen live.
    freeze_batch_norms(model, own)
    live_state = copy.deepcopy(own.state_dict())
    train(model, own, range(2, 4))

    # Frozen by its checkpoint.
    options = ConvertOptions(to="checkpoint", model=Network)
    result = convert_file(tmp_path / "last.pt", tmp_path / "frozen.pt", options=options)
    loaded = torch.load(tmp_path / "frozen.pt")
    resumed = load_frozen(Network(), tmp_path / "frozen.pt")
    again = build(parted(resumed))
    again.load_state_dict(loaded["optimizer"])
    assert loaded["epoch"] == 2
    assert loaded["scheduler"] == scheduler.state_dict()
    assert_same_bits(again.state_dict()["state"], live_state["state"])
    train(resumed, again, range(2, 4))

    assert [claim.status for claim in result.claims[:2]] == ["equal", "equal"]
    assert_same_bits(resumed.state_dict(), model.state_dict())
    assert_same_bits(again.state_dict(), own.state_dict())
