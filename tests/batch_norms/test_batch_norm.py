from pathlib import Path

import pytest
import torch
from torch import nn

from frozenbn_cli.batch_norms.batch_norm import BatchNorm, Eps, find_batch_norms
from frozenbn_cli.checkpoints import open_checkpoint
from tests.builders.files import State, batch_norm, nested, save, small_state


def layers_of(tmp_path: Path, state: State, **options: object) -> dict[str, BatchNorm]:
    with open_checkpoint(save(tmp_path / "a.pt", state)) as checkpoint:
        found = find_batch_norms(checkpoint.state_dict(), **options)  # type: ignore[arg-type]
        return {layer.name: layer for layer in found}


def dims(tmp_path: Path, model: nn.Module) -> dict[str, int | None]:
    layers = layers_of(tmp_path, dict(model.state_dict()))
    return {name: layer.spatial_dims for name, layer in layers.items()}


def test_finds_layers_in_the_order_of_the_file(tmp_path: Path) -> None:
    assert list(layers_of(tmp_path, small_state())) == ["bn1", "bn2"]


def test_finds_a_layer_that_is_the_whole_file(tmp_path: Path) -> None:
    layers = layers_of(tmp_path, batch_norm(4))

    assert list(layers) == [""]
    assert layers[""].entry_name("running_mean") == "running_mean"
    assert layers[""].spatial_dims is None


def test_finds_a_layer_without_affine_and_without_count(tmp_path: Path) -> None:
    state = nested(bn={"running_mean": torch.zeros(3), "running_var": torch.full((3,), 2.0)})

    assert set(layers_of(tmp_path, state)["bn"].tensors) == {"running_mean", "running_var"}


def test_takes_no_name_that_merely_ends_alike(tmp_path: Path) -> None:
    assert not layers_of(tmp_path, {"my_running_mean": torch.zeros(3)})


def test_eps_is_assumed_unless_it_is_given_or_stated(tmp_path: Path) -> None:
    stated = {"bn1": Eps(1e-4, "read")}

    assumed = layers_of(tmp_path, small_state(), frozen=stated)
    given = layers_of(tmp_path, small_state(), eps=1e-3)

    assert assumed["bn1"].eps == Eps(1e-4, "read")
    assert assumed["bn1"].frozen_already
    assert assumed["bn2"].eps == Eps(1e-5, "assumed")
    assert given["bn2"].eps == Eps(1e-3, "given")


def test_reads_the_count_of_batches(tmp_path: Path) -> None:
    layers = layers_of(tmp_path, nested(bn=batch_norm(tracked=12), old=batch_norm(tracked=None)))

    assert [layer.batches_tracked for layer in layers.values()] == [12, None]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)), {"1": 2}),
        (nn.Sequential(nn.Conv3d(3, 8, 1), nn.BatchNorm3d(8)), {"1": 3}),
        (nn.Sequential(nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8)), {"1": 1}),
        (nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8)), {"1": 1}),
        (nn.Sequential(nn.ConvTranspose2d(3, 8, 1), nn.BatchNorm2d(8)), {"1": 2}),
        # Normalised before the convolution.
        (nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 1)), {"0": 2}),
    ],
)
def test_infers_dimensions_from_the_weight_beside(
    tmp_path: Path, model: nn.Module, expected: dict[str, int]
) -> None:
    assert dims(tmp_path, model) == expected


def test_infers_dimensions_in_a_model_that_mixes_them(tmp_path: Path) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.points = nn.Sequential(nn.Linear(9, 64), nn.BatchNorm1d(64))
            self.features = nn.Sequential(nn.Conv2d(64, 32, 3), nn.BatchNorm2d(32))
            self.head = nn.Sequential(nn.Linear(32, 16), nn.BatchNorm1d(16), nn.Linear(16, 2))

    assert dims(tmp_path, Mixed()) == {"points.1": 1, "features.1": 2, "head.1": 1}


def test_a_last_norm_before_pooling_is_unknown(tmp_path: Path) -> None:
    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            # The norm sees a concatenation, so no convolution has as many channels.
            self.features = nn.ModuleDict({"conv": nn.Conv2d(3, 8, 1), "norm": nn.BatchNorm2d(11)})
            self.classifier = nn.Linear(11, 2)

    assert dims(tmp_path, Dense()) == {"features.norm": None}


def test_a_linear_layer_beside_is_nearer_than_convolutions_further_in(tmp_path: Path) -> None:
    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))
            self.fc = nn.Linear(32, 8)
            self.features = nn.BatchNorm1d(8)

    assert dims(tmp_path, Embedding()) == {"body.1": 2, "features": 1}


def test_a_convolution_beside_is_nearer_than_others_further_in(tmp_path: Path) -> None:
    class Video(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clips = nn.Sequential(nn.Conv3d(3, 8, 1), nn.Conv3d(8, 8, 1), nn.BatchNorm3d(8))
            self.conv = nn.Conv2d(3, 8, 1)
            self.norm = nn.BatchNorm2d(8)

    assert dims(tmp_path, Video()) == {"clips.2": 3, "norm": 2}


def test_a_norm_between_convolutions_and_classifier_may_be_either(tmp_path: Path) -> None:
    class Neck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
            self.bottleneck = nn.BatchNorm1d(8)
            self.classifier = nn.Linear(8, 2)

    assert dims(tmp_path, Neck()) == {"body.1": 2, "bottleneck": None}
