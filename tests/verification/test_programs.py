"""The claim on the model, where one of two files is an exported program."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frozenbn_cli.conversion.convert import ConversionResult, ConvertOptions, convert_file
from frozenbn_cli.selection import Selection
from frozenbn_cli.verification.claims import Claim
from frozenbn_cli.verification.files import verify_files
from frozenbn_cli.verification.terms import VerifyOptions
from tests.builders import programs
from tests.builders.archives import script
from tests.builders.files import save
from tests.builders.hostile_programs import Document, edited, export
from tests.builders.models import perturb

BATCH = torch.rand(4, 3, 8, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.other = nn.BatchNorm2d(4)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.other(self.bn(self.conv(x)).relu()))


def net() -> nn.Module:
    torch.manual_seed(0)
    return perturb(Net().eval())


def program(path: Path, model: nn.Module | None = None) -> Path:
    return export(model or net(), path, BATCH)


def model_claim(result: Any) -> Claim:
    return next(claim for claim in result.claims if claim.name == "model")


def convert(path: Path, **options: Any) -> ConversionResult:
    return convert_file(path, options=ConvertOptions(**options))


def verify(original: Path, converted: Path, **options: Any) -> Claim:
    return model_claim(verify_files(original, converted, options=VerifyOptions(**options)))


def test_a_program_against_the_one_that_it_becomes(tmp_path: Path) -> None:
    path = program(tmp_path / "a.pt2")
    result = convert(path)
    assert model_claim(result).detail == (
        "outputs on 4x3x8x8 of float32; frozen layers do not change, and an exported program has "
        "no other mode"
    )
    assert verify(path, result.output_path).status == "equal"


def test_another_program_is_different(tmp_path: Path) -> None:
    path = program(tmp_path / "a.pt2")
    other = net()
    other.get_parameter("conv.bias").data += 1
    converted = convert(program(tmp_path / "b.pt2", other)).output_path
    claim = verify(path, converted)
    assert claim.status == "different"
    assert claim.detail.startswith("output: 576 of 576 elements differ")


def test_one_in_training_mode_against_its_layers_in_eval(tmp_path: Path) -> None:
    path = program(tmp_path / "a.pt2", net().train())
    result = convert(path)
    assert model_claim(result).status == "equal"
    # The dropout stays in the graph, and is the same in both.
    outputs = torch.export.load(result.output_path).module()(BATCH)
    assert (outputs == 0).float().mean() > 0.3
    assert verify(path, result.output_path).status == "equal"


def test_a_layer_that_is_left_in_training_mode_is_left_in_both(tmp_path: Path) -> None:
    path = program(tmp_path / "a.pt2", net().train())
    result = convert(path, selection=Selection.of("bn"))
    assert model_claim(result).status == "equal"
    before = torch.export.load(result.output_path)
    mean = before.state_dict["other.running_mean"].clone()
    before.module()(BATCH)
    assert not torch.equal(before.state_dict["other.running_mean"], mean)


def test_one_in_training_mode_is_no_match_for_a_model_in_eval(tmp_path: Path) -> None:
    path = program(tmp_path / "a.pt2", net().train())
    claim = model_claim(convert(path, to="safetensors", model=Net))
    assert claim.status == "not verified"
    assert claim.detail.startswith("the program was exported in training mode")


@pytest.mark.parametrize("model", [Net, None])
def test_a_program_against_a_state_dict(tmp_path: Path, model: Any) -> None:
    result = convert(program(tmp_path / "a.pt2"), to="safetensors", model=model)
    claim = model_claim(result)
    assert claim.status == ("equal" if model else "not verified")
    again = verify(tmp_path / "a.pt2", result.output_path, model=model)
    assert again.status == claim.status


def test_a_state_dict_and_torchscript_against_a_program(tmp_path: Path) -> None:
    converted = convert(program(tmp_path / "a.pt2")).output_path
    state = save(tmp_path / "state.pt", net().state_dict())
    assert verify(state, converted, model=Net).status == "equal"
    assert verify(state, converted).status == "not verified"
    claim = verify(script(net(), tmp_path / "scripted.pt"), converted)
    assert claim.status == "equal"
    # What the program takes is known, and the archive takes it too.
    assert claim.detail.startswith("outputs on 4x3x8x8")


def test_a_program_of_another_device_is_run_on_the_cpu(tmp_path: Path) -> None:
    def on_cuda(document: Document) -> None:
        for meta in document["graph_module"]["graph"]["tensor_values"].values():
            meta["device"] = {"type": "cuda", "index": 0}

    path = edited(program(tmp_path / "plain.pt2"), tmp_path / "cuda.pt2", on_cuda)
    result = convert(path)
    assert model_claim(result).status == "equal"
    assert b'"cuda"' in result.output_path.read_bytes()


def test_one_that_pytorch_cannot_load_is_not_verified(tmp_path: Path) -> None:
    def lacking(document: Document) -> None:
        document["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.none.default"

    path = edited(program(tmp_path / "plain.pt2"), tmp_path / "lacking.pt2", lacking)
    claim = model_claim(convert(path))
    assert claim.status == "not verified"
    assert claim.detail.startswith("PyTorch cannot load the input here: ")


@pytest.mark.slow
@pytest.mark.parametrize("decomposed", [False, True], ids=["training IR", "decomposed"])
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize(
    "make",
    [
        programs.Plain,
        programs.Twice,
        programs.SharedWeight,
        programs.WithoutGradient,
        programs.Autocast,
        programs.ReadStatistics,
        programs.ReadCount,
        programs.Unused,
        programs.half,
    ],
)
def test_the_original_shows_what_the_rewriting_has_to_come_to(
    tmp_path: Path, make: Any, mode: str, decomposed: bool
) -> None:
    path = tmp_path / "a.pt2"
    path.write_bytes(programs.program_of(make, mode, decomposed=decomposed))
    assert model_claim(convert(path)).status == "equal"
