"""Conversions for loaders whose frozen layers have an eps of their own."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn

from frozenbn_cli import ConvertOptions, convert_file, load_frozen, verify_files
from frozenbn_cli.batch_norms.record import METADATA_KEY
from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.errors import RefusedError, UsageError
from frozenbn_cli.reports.conversions import describe_conversion
from frozenbn_cli.reports.documents import conversion_document
from frozenbn_cli.verification.terms import VerifyOptions
from tests.builders.files import batch_norm, nested, save, small_state
from tests.builders.models import assert_same_bits, perturb, small_cnn


def convert(source: Path, name: str = "out.safetensors", **options: Any) -> Any:
    return convert_file(source, source.parent / name, options=ConvertOptions(**options))


def statuses(result: Any) -> dict[str, str]:
    return {claim.name: claim.status for claim in result.claims}


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    model = perturb(torchvision.models.mobilenet_v3_small()).eval()
    path = tmp_path_factory.mktemp("mobilenet") / "model.pth"
    torch.save(model.state_dict(), path)
    return model, path


@pytest.mark.parametrize("target", [1e-5, 0.0])
def test_the_layers_of_torchvision_give_the_same_scales(
    mobilenet: tuple[nn.Module, Path], target: float
) -> None:
    """MobileNetV3 has 1e-3; torchvision's frozen layer has 1e-5, its COCO detectors' 0."""
    model, path = mobilenet

    result = convert(path, f"{target}.safetensors", target_eps=target)

    assert statuses(result)["layers"] == "equal"
    assert "34 with a rewritten running_var" in result.claims[1].detail
    state = load_file(result.output_path)
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.BatchNorm2d):
            continue
        frozen = torchvision.ops.FrozenBatchNorm2d(layer.num_features, eps=target)
        own = {key: state[f"{name}.{key}"] for key in frozen.state_dict()}
        frozen.load_state_dict(own)
        before = layer.weight * (layer.running_var + layer.eps).rsqrt()
        after = frozen.weight * (frozen.running_var + frozen.eps).rsqrt()
        assert_same_bits(after, before.detach())


def test_load_frozen_and_verify_follow_the_record(mobilenet: tuple[nn.Module, Path]) -> None:
    model, path = mobilenet
    output = convert(path, "follow.safetensors", target_eps=1e-5).output_path

    verified = verify_files(path, output)
    with pytest.warns(UserWarning, match=r"eps of the model is replaced by 1e-05, for which") as w:
        loaded = load_frozen(torchvision.models.mobilenet_v3_small(), output)

    assert (statuses(verified)["contents"], statuses(verified)["layers"]) == ("equal", "equal")
    assert "34 running_var were rewritten, see layers" in verified.claims[0].detail
    assert len(w) == 1
    image = torch.randn(1, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    assert_same_bits(loaded.eval()(image), model(image))


def test_runs_the_whole_model_with_the_target(mobilenet: tuple[nn.Module, Path]) -> None:
    _, path = mobilenet
    model = torchvision.models.mobilenet_v3_small

    result = convert(
        path, "run.pt", to="torch", target_eps=0.0, model=model, input_shapes=((1, 3, 40, 40),)
    )

    assert statuses(result) == dict.fromkeys(("contents", "layers", "model"), "equal")
    with open_checkpoint(result.output_path) as written:
        record = json.loads(written.metadata[METADATA_KEY])
    assert record["layers"]["features.0.1"] == {"eps": 0.0, "eps_source": "given"}
    assert record["rewritten"]["features.0.1"] == {"eps": 1e-3, "eps_source": "read"}
    assert record["options"]["target_eps"] == 0.0
    options = VerifyOptions(model=model, input_shapes=((1, 3, 40, 40),))
    verified = verify_files(path, result.output_path, options=options)
    assert set(statuses(verified).values()) == {"equal"}


def test_a_pickled_module_and_a_checkpoint_convert(tmp_path: Path) -> None:
    model = perturb(small_cnn()).eval()
    torch.save(model, tmp_path / "module.pt")
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "last.ckpt")

    module = convert(tmp_path / "module.pt", "a.safetensors", target_eps=0.0)
    checkpoint = convert(tmp_path / "last.ckpt", "b.safetensors", target_eps=0.0, eps=1e-5)

    assert statuses(module)["layers"] == statuses(checkpoint)["layers"] == "equal"
    first, second = load_file(module.output_path), load_file(checkpoint.output_path)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_layers_that_share_a_variance_share_what_it_becomes(tmp_path: Path) -> None:
    state = nested(a=batch_norm(4), b=batch_norm(4))
    state["b.running_var"] = state["a.running_var"]
    source = save(tmp_path / "tied.pt", state)

    output = convert(source, "tied.out.pt", to="torch", target_eps=0.0, eps=1e-3).output_path

    written = torch.load(output)
    assert written["a.running_var"].data_ptr() == written["b.running_var"].data_ptr()
    assert torch.equal(written["a.running_var"], state["a.running_var"] + 1e-3)


def test_says_which_channels_have_no_such_variance(tmp_path: Path) -> None:
    state = small_state()
    state["bn1.running_var"][2] = 1e-4
    source = save(tmp_path / "a.pt", state)

    with pytest.raises(RefusedError, match=r"bn1 \(1 channel: 2\)") as caught:
        convert(source, eps=1e-5, target_eps=1e-3)

    assert caught.value.exit_code == 1
    assert "atol" in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()
    document = conversion_document(caught.value.result)
    assert document["outcome"] == "inexact"
    assert document["target_eps"]["inexact"] == {"bn1": [2]}


def test_a_tolerance_allows_what_remains_and_the_report_says_how_much(tmp_path: Path) -> None:
    state = small_state()
    state["bn1.running_var"][2] = 9e-4
    source = save(tmp_path / "a.pt", state)

    result = convert(source, eps=1e-5, target_eps=1e-3, rtol=0.1, atol=1.0)

    assert load_file(result.output_path)["bn1.running_var"][2] == 0
    layers = result.claims[1]
    assert (layers.status, len(layers.differences)) == ("equal", 1)
    assert "within atol 1, rtol 0.1" in layers.detail
    notes = describe_conversion(result).parts[0].notes
    assert any("off by up to 0.046" in note for note in notes)
    with pytest.raises(RefusedError, match="layers"):
        convert(source, "less.safetensors", eps=1e-5, target_eps=1e-3, rtol=1e-9)


def test_statistics_in_half_precision_are_named(tmp_path: Path) -> None:
    state = {name: tensor.half() for name, tensor in small_state().items()}

    with pytest.raises(RefusedError, match="of 2 layers"):
        convert(save(tmp_path / "half.pt", state), eps=1e-3, target_eps=1e-5)


def test_a_guess_is_not_written_for_good(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not hold the eps .* bn1, bn2. Give it with eps"):
        convert(save(tmp_path / "a.pt", small_state()), target_eps=0.0)


def test_a_second_target_is_told(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pt", small_state())
    first = convert(source, "first.safetensors", eps=1e-3, target_eps=1e-5).output_path
    other = convert(source, "other.safetensors", eps=1e-3, target_eps=0.0).output_path

    with pytest.raises(RefusedError, match=r"2 layers frozen already, with eps 1e-05: bn1, bn2"):
        convert(first, "second.safetensors", target_eps=0.0)

    assert statuses(verify_files(first, other))["layers"] == "equal"


def test_verify_finds_a_variance_that_was_not_rewritten_right(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pt", small_state())
    output = convert(source, eps=1e-3, target_eps=1e-5).output_path
    with open_checkpoint(output) as file:
        metadata = dict(file.metadata)
    state = load_file(output)
    state["bn2.running_var"][0] *= 1 + 1e-6
    save_file(state, output, metadata)

    claims = {claim.name: claim for claim in verify_files(source, output).claims}

    assert claims["contents"].status == "equal"
    assert claims["layers"].status == "different"
    assert "bn2" in claims["layers"].detail


def test_what_holds_its_own_eps_is_refused(tmp_path: Path) -> None:
    torch.save(small_cnn(), tmp_path / "a.pt")

    with pytest.raises(UsageError, match="whose code holds the eps"):
        convert(tmp_path / "a.pt", "a.out.pt", to="torchscript", trust=True, target_eps=0.0)
    with pytest.raises(UsageError, match="nothing differs without target_eps"):
        ConvertOptions(atol=1e-3)
    with pytest.raises(UsageError, match="target_eps -1"):
        ConvertOptions(target_eps=-1.0)
