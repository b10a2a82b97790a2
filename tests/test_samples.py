"""The committed sample is what the README says it is, and its script still runs."""

import copy
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR

from frozenbn_cli import convert_bn_to_frozen
from frozenbn_cli.nn import FrozenBatchNorm2d
from samples.backbone import Backbone
from samples.make_samples import (
    PROGRAM_PATH,
    SAMPLE_PATH,
    SCRIPTED_PATH,
    Digits,
    accuracy,
    batches,
    read_digits,
    save_program,
    save_scripted,
    train_epoch,
)
from tests.builders.archives import assert_freezes, load, records
from tests.builders.models import assert_same_bits
from tests.builders.programs import convert, of_newest_layout, outputs
from tests.builders.programs import load as load_program


@pytest.fixture(scope="module")
def digits() -> Digits:
    return read_digits()


@pytest.fixture
def state() -> dict[str, Tensor]:
    return torch.load(SAMPLE_PATH, weights_only=True)


@pytest.fixture
def trained(state: dict[str, Tensor]) -> Backbone:
    model = Backbone()
    model.load_state_dict(state)
    return model.eval()


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    return model(images)


@pytest.mark.parametrize("path", [SAMPLE_PATH, SCRIPTED_PATH, PROGRAM_PATH])
def test_committed_sample_is_small(path: Path):
    assert path.stat().st_size < 1_500_000


def test_committed_archive_is_the_sample_and_names_no_folder(
    state: dict[str, Tensor], digits: Digits, trained: Backbone
):
    scripted = load(SCRIPTED_PATH)

    assert_same_bits(dict(scripted.state_dict()), state)
    assert torch.equal(logits(scripted, digits.test_images), logits(trained, digits.test_images))
    assert b"site-packages" not in b"".join(records(SCRIPTED_PATH).values())


def test_committed_archive_is_frozen(tmp_path: Path, digits: Digits):
    path = shutil.copy(SCRIPTED_PATH, tmp_path / "a.pt")

    assert_freezes(path, digits.test_images[:2])


@of_newest_layout
def test_committed_program_is_the_sample_and_is_frozen(
    tmp_path: Path, digits: Digits, trained: Backbone
):
    assert b"site-packages" not in PROGRAM_PATH.read_bytes()

    result = convert(Path(shutil.copy(PROGRAM_PATH, tmp_path)))

    assert len(result.plan.frozen) == 23
    images, expected = digits.test_images, logits(trained, digits.test_images)
    for path in (PROGRAM_PATH, result.output_path):
        assert torch.equal(outputs(load_program(path), images), expected)


def test_a_sample_is_exported_again(tmp_path: Path, trained: Backbone, digits: Digits):
    save_program(trained, tmp_path / "again.pt2")

    images = digits.test_images[:2]
    again = outputs(load_program(tmp_path / "again.pt2"), images)
    assert torch.equal(again, logits(trained, images))


def test_a_sample_is_scripted_again(tmp_path: Path, trained: Backbone, digits: Digits):
    save_scripted(trained, tmp_path / "again.pt")

    images = digits.test_images[:2]
    assert torch.equal(logits(load(tmp_path / "again.pt"), images), logits(trained, images))


def test_committed_sample_classifies_digits(trained: Backbone, digits: Digits):
    assert accuracy(trained, digits.test_images, digits.test_labels) > 0.95


def test_committed_statistics_are_well_formed(trained: Backbone):
    layers = batch_norms(trained)

    assert len(layers) == 23
    for layer in layers:
        assert layer.num_batches_tracked >= 300
        assert layer.running_var.min() > 100 * layer.eps
        assert layer.weight.abs().min() > 0.1


def test_converted_sample_gives_identical_logits(trained: Backbone, digits: Digits):
    before = logits(trained, digits.test_images)

    frozen = convert_bn_to_frozen(copy.deepcopy(trained)).train()

    assert not batch_norms(frozen)
    assert torch.equal(logits(frozen, digits.test_images), before)
    assert accuracy(frozen, digits.test_images, digits.test_labels) > 0.95


def test_backbone_made_of_frozen_layers_takes_the_same_state(
    trained: Backbone, state: dict[str, Tensor], digits: Digits
):
    frozen = Backbone(norm_layer=FrozenBatchNorm2d)
    frozen.load_state_dict(state, strict=True)

    assert not batch_norms(frozen)
    assert torch.equal(logits(frozen, digits.test_images), logits(trained, digits.test_images))


# Creating and calling scripted modules is deprecated as of PyTorch 2.14, and still in use.
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("norm_layer", [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_backbone_can_be_scripted(norm_layer, state: dict[str, Tensor], digits: Digits):
    model = Backbone(norm_layer=norm_layer).eval()
    model.load_state_dict(state)
    images = digits.test_images[:16]

    assert torch.equal(logits(torch.jit.script(model), images), logits(model, images))


@pytest.mark.parametrize("norm_layer", [nn.BatchNorm2d, FrozenBatchNorm2d])
def test_an_epoch_trains_and_moves_only_live_statistics(norm_layer, digits: Digits):
    model = Backbone(norm_layer=norm_layer)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    first = {name: entry.clone() for name, entry in model.state_dict().items()}

    few = list(batches(digits.train_images, digits.train_labels))[:3]
    train_epoch(model, few, optimizer, ConstantLR(optimizer, 1.0))

    moved = {name for name, entry in model.state_dict().items() if not entry.equal(first[name])}
    assert {"classifier.weight", "stem.conv.weight"} <= moved
    frozen = norm_layer is FrozenBatchNorm2d
    assert {"stem.norm.running_mean", "norm.weight"}.isdisjoint(moved) == frozen


def test_continuous_integration_runs_the_second_command_of_the_readme():
    root = SAMPLE_PATH.parent.parent
    readme = (root / "README.md").read_text(encoding="utf-8")
    commands = [line for line in readme.splitlines() if line.startswith("python -m venv .venv")]

    assert len(commands) == 2
    assert commands[1] in (root / ".ci" / "run").read_text(encoding="utf-8").splitlines()
