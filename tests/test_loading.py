from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from frozenbn_cli import FrozenBatchNorm2d, convert_file, load_frozen
from frozenbn_cli.batch_norms.record import METADATA_KEY
from frozenbn_cli.conversion.convert import ConvertOptions
from frozenbn_cli.errors import DamagedFileError, UnsupportedFileError, UsageError
from frozenbn_cli.selection import Selection
from tests.builders.files import save
from tests.builders.models import perturb


def model(eps: float = 1e-5) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, eps)
    )
    with torch.no_grad():
        layers.train()(torch.randn(8, 3, 9, 9))
    return layers.eval()


def converted(tmp_path: Path, source: nn.Module, **options: object) -> Path:
    path = save(tmp_path / "a.pt", source.state_dict())
    return convert_file(path, options=ConvertOptions(**options)).output_path  # type: ignore[arg-type]


def outputs(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network(torch.ones(1, 3, 9, 9))


def test_loads_into_a_fresh_model_with_the_same_outputs(tmp_path: Path) -> None:
    source = model(eps=1e-3)

    loaded = load_frozen(model(eps=1e-3), converted(tmp_path, source, eps=1e-3)).train()

    assert [type(layer) for layer in loaded][1::2] == [FrozenBatchNorm2d] * 2
    assert torch.equal(outputs(loaded), outputs(source))


def test_an_assumed_eps_does_not_override_the_model(tmp_path: Path) -> None:
    source = model(eps=1e-3)

    loaded = load_frozen(model(eps=1e-3), converted(tmp_path, source))

    assert loaded[1].eps == 1e-3
    assert torch.equal(outputs(loaded), outputs(source))


def test_a_given_eps_replaces_the_model_s_with_a_warning(tmp_path: Path) -> None:
    path = converted(tmp_path, model(), eps=1e-3)

    with pytest.warns(UserWarning, match="eps 1e-05 of the model is replaced by 0.001") as caught:
        loaded = load_frozen(model(), path)

    assert loaded[1].eps == 1e-3
    assert caught[0].filename == __file__


def test_freezes_what_the_file_froze_and_nothing_else(tmp_path: Path) -> None:
    path = converted(tmp_path, model(), selection=Selection.of(include="1"))

    with pytest.warns(UserWarning, match="still live, since the file froze no layer .*: 3"):
        loaded = load_frozen(model(), path)

    assert isinstance(loaded[1], FrozenBatchNorm2d)
    assert isinstance(loaded[3], nn.BatchNorm2d)


def test_takes_a_model_that_is_frozen_already(tmp_path: Path) -> None:
    path = converted(tmp_path, model())
    frozen = load_frozen(model(), path)

    assert load_frozen(frozen, path) is frozen


def test_loads_a_plain_state_dict_too(tmp_path: Path) -> None:
    source = model(eps=1e-3)

    loaded = load_frozen(model(eps=1e-3), converted(tmp_path, source, eps=1e-3, to="torch"))

    assert torch.equal(outputs(loaded), outputs(source))


@pytest.mark.parametrize("to", ["safetensors", "torch"])
def test_loads_a_model_that_insists_on_its_version(tmp_path: Path, to: str) -> None:
    source = perturb(torchvision.models.mnasnet0_5(num_classes=3)).eval()

    loaded = load_frozen(
        torchvision.models.mnasnet0_5(num_classes=3), converted(tmp_path, source, to=to)
    ).train()

    image = torch.ones(1, 3, 32, 32)
    loaded.classifier.eval()
    with torch.no_grad():
        assert torch.equal(loaded(image), source(image))


def test_another_model_is_refused(tmp_path: Path) -> None:
    path = converted(tmp_path, model())

    with pytest.raises(UsageError, match=r"10 not in the model: 1.weight, .*skip=.*prefix="):
        load_frozen(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), path)
    with pytest.raises(UsageError, match="size mismatch"):
        load_frozen(
            nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1), nn.BatchNorm2d(5)
            ),
            path,
        )


def test_a_file_of_somebody_else_is_refused(tmp_path: Path) -> None:
    save_file(model().state_dict(), tmp_path / "a.safetensors")

    with pytest.raises(UnsupportedFileError, match="did not write this file"):
        load_frozen(model(), tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "record",
    [
        "no json",
        "[]",
        "{}",
        *(
            f'{{"frozenbn": "1", "source": {{}}, "verified": [], "layers": {{"1": {layer}}}}}'
            for layer in (
                '{"eps": -1, "eps_source": "read"}',
                '{"eps": true, "eps_source": "read"}',
                '{"eps": Infinity, "eps_source": "read"}',
                '{"eps": 1, "eps_source": "guessed"}',
            )
        ),
    ],
)
def test_a_record_that_is_none_is_refused(tmp_path: Path, record: str) -> None:
    save_file(model().state_dict(), tmp_path / "a.safetensors", {METADATA_KEY: record})

    with pytest.raises(DamagedFileError, match="expected a record of frozenbn"):
        load_frozen(model(), tmp_path / "a.safetensors")
