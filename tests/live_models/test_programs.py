"""Exported programs say what they take, and can be put in eval layer by layer."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frozenbn_cli.live_models.inputs import Inputs, candidate_inputs, dtype_of
from frozenbn_cli.live_models.programs import load_program, takes_of
from frozenbn_cli.live_models.run_options import RunOptions
from frozenbn_cli.verification.loaders import ProgramLoader
from frozenbn_cli.verification.running import verify_model
from tests.builders.hostile_programs import export
from tests.builders.models import perturb

BATCH = torch.rand(4, 3, 8, 8)


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor, places: Tensor, *, scale: Tensor, power: float = 2.0) -> Tensor:
        return self.bn(x).flatten(1)[:, places] * scale**power


@pytest.fixture
def several(tmp_path: Path) -> Path:
    inputs = (BATCH, torch.tensor([3, 1]))
    shapes = {
        "x": {0: torch.export.Dim("batch", max=64)},
        "places": None,
        "scale": None,
        "power": None,
    }
    keywords = {"scale": torch.ones(1, dtype=torch.float64), "power": 2.0}
    return export(
        Several().eval(), tmp_path / "a.pt2", *inputs, kwargs=keywords, dynamic_shapes=shapes
    )


def inputs_of(path: Path, **options: Any) -> list[Inputs] | str:
    found = candidate_inputs(load_program(path), RunOptions(**options))
    return found if isinstance(found, str) else [each for runs in found for each in runs]


def test_inputs_are_those_of_its_signature(several: Path) -> None:
    found = inputs_of(several, runs=2)
    assert not isinstance(found, str)
    first, second = found
    assert [tuple(value.shape) for value in first.arguments] == [(4, 3, 8, 8), (2,)]
    assert first.arguments[1].dtype == torch.int64
    assert set(first.arguments[1].tolist()) <= {0, 1}
    assert first.keywords["scale"].dtype == torch.float64
    assert first.keywords["power"] == 2.0
    assert not torch.equal(first.arguments[0], second.arguments[0])
    assert first.shown == "4x3x8x8, 2, 1 of float32"


def test_shapes_may_be_given(several: Path) -> None:
    found = inputs_of(several, input_shapes=((2, 3, 8, 8), (2,), (1,)))
    assert not isinstance(found, str)
    assert tuple(found[0].arguments[0].shape) == (2, 3, 8, 8)
    said = inputs_of(several, input_shapes=((2, 3, 8, 8),))
    assert said == "the program takes 3 tensors, and 1 shape given"


def test_a_file_of_inputs_may_name_what_it_takes_by_position(several: Path, tmp_path: Path) -> None:
    named = {"scale": torch.ones(1), "places": torch.tensor([0]), "x": BATCH}
    torch.save(named, tmp_path / "inputs.pt")
    found = inputs_of(several, inputs=tmp_path / "inputs.pt")
    assert not isinstance(found, str)
    assert [tuple(value.shape) for value in found[0].arguments] == [(4, 3, 8, 8), (1,)]
    assert list(found[0].keywords) == ["scale"]


def test_its_dtype_is_that_of_its_inputs(tmp_path: Path) -> None:
    class Rounding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(3).half()

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(x.half())

    path = export(Rounding().eval(), tmp_path / "a.pt2", BATCH)
    assert dtype_of(load_program(path)) == torch.float32


def test_it_has_one_mode(several: Path) -> None:
    program = load_program(several)
    assert takes_of(program) is not None
    assert program.train() is program
    assert program.eval() is program
    assert takes_of(nn.BatchNorm2d(3)) is None


def test_another_model_than_the_first_may_be_loaded(tmp_path: Path) -> None:
    package = pytest.importorskip("torch.export.pt2_archive._package")
    programs = {
        name: torch.export.export(nn.BatchNorm2d(3, eps=eps).eval(), (BATCH,), strict=False)
        for name, eps in (("a", 1.0), ("b", 100.0))
    }
    package.package_pt2(tmp_path / "both.pt2", exported_programs=programs)
    first, second = (load_program(tmp_path / "both.pt2", name)(BATCH) for name in "ab")
    assert torch.allclose(first * 2**0.5, second * 101**0.5)


# Modes


class Regions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.inner = nn.BatchNorm2d(4, affine=False)
        self.drop = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        with torch.no_grad():
            y = self.inner(y)
        return self.drop(self.bn(y))


def trained(path: Path, *, decomposed: bool = False) -> tuple[nn.Module, Path]:
    """Save a program in training mode, and return the model of it."""
    model = perturb(Regions().train())
    program = torch.export.export(copy.deepcopy(model), (BATCH,), strict=False)
    torch.export.save(program.run_decompositions() if decomposed else program, path)
    return model, path


def expected_of(model: nn.Module, in_eval: list[str]) -> Tensor:
    for name in in_eval:
        model.get_submodule(name).eval()
    torch.manual_seed(1)
    return model(BATCH)


@pytest.mark.parametrize("decomposed", [False, True], ids=["training IR", "decomposed"])
@pytest.mark.parametrize("names", [["bn"], ["inner"], ["bn", "inner"], []])
def test_layers_are_put_in_eval(tmp_path: Path, decomposed: bool, names: list[str]) -> None:
    model, path = trained(tmp_path / "a.pt2", decomposed=decomposed)
    program = load_program(path, in_eval=frozenset(names))
    before = {name: buffer.clone() for name, buffer in program.named_buffers()}

    torch.manual_seed(1)
    found = program(BATCH)

    assert torch.equal(found, expected_of(model, names))
    after = dict(program.named_buffers())
    changed = {name for name, buffer in before.items() if not torch.equal(after[name], buffer)}
    assert {name.rpartition(".")[0] for name in changed} == {"bn", "inner"} - set(names)
    buffers = dict(model.named_buffers())
    assert all(torch.equal(buffers[name], buffer) for name, buffer in after.items())


def test_a_program_in_training_mode_is_no_equal_of_itself_in_eval(tmp_path: Path) -> None:
    _, path = trained(tmp_path / "a.pt2")
    layers = frozenset({"bn", "inner"})
    original, in_eval = ProgramLoader(path), ProgramLoader(path, in_eval=layers)
    assert verify_model(original, in_eval, layers, RunOptions()).status == "different"
    claim = verify_model(in_eval, in_eval, layers, RunOptions())
    assert claim.status == "equal"
    assert claim.detail == (
        "outputs on 4x3x8x8 of float32; frozen layers do not change, and an exported program has "
        "no other mode"
    )


def test_a_frozen_layer_that_changes_is_different(tmp_path: Path) -> None:
    _, path = trained(tmp_path / "a.pt2")
    claim = verify_model(ProgramLoader(path), ProgramLoader(path), ["bn"], RunOptions())
    assert claim.status == "different"
    assert "bn.running_mean is changed by a run" in claim.detail.replace(":", "")
