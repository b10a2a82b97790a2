"""Where PyTorch has no `torch.jit`, all goes on but for running TorchScript, which is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.builders.archives import load, script
from tests.builders.files import save
from tests.builders.models import perturb

# torch.nn.functional asks `is_scripting` itself, so that goes for this package alone.
GONE = """
import sys
import torch, torchvision

asked_by_torch = torch.jit.is_scripting
for name in [name for name in vars(torch.jit) if not name.startswith("_")]:
    delattr(torch.jit, name)
import frozenbn_cli.torch_jit
torch.jit.is_scripting = asked_by_torch
"""
MODEL = """from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
"""


def without_torch_jit(code: str, folder: Path) -> str:
    """Run code in a process whose PyTorch has lost what is public in `torch.jit`."""
    done = subprocess.run(
        [sys.executable, "-c", GONE + code],
        cwd=folder,
        env={"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": "", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def model() -> nn.Module:
    return perturb(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "state.pt", model().state_dict())
    save(tmp_path / "module.pt", model())
    script(model().eval(), tmp_path / "archive.pt")
    (tmp_path / "my_model.py").write_text(MODEL)
    return tmp_path


def test_the_layer_and_live_conversion_work(folder: Path) -> None:
    without_torch_jit(
        """
from frozenbn_cli import convert_bn_to_frozen, convert_frozen_to_bn, survey_batch_norms

model = torchvision.models.resnet18().eval()
x = torch.randn(2, 3, 64, 64, requires_grad=True)
before = model(x)
assert len(survey_batch_norms(model)) == 20
after = convert_bn_to_frozen(model).train()(x)
assert torch.equal(before, after)
after.sum().backward()
convert_frozen_to_bn(model)
""",
        folder,
    )


def test_a_state_dict_is_converted_verified_and_loaded_with_its_model(folder: Path) -> None:
    printed = without_torch_jit(
        """
from frozenbn_cli import load_frozen
from frozenbn_cli.cli import run
from my_model import build

assert run(["convert", "state.pt", "--model", "my_model.py:build"]) == 0
assert run(["verify", "state.pt", "state.frozen.safetensors", "--model", "my_model.py:build"]) == 0
assert run(["convert", "module.pt", "--trust"]) == 0
load_frozen(build(), "state.frozen.safetensors")
""",
        folder,
    )

    assert printed.count("PASSED: contents, layers and model equal") == 3


def test_an_archive_is_converted_and_not_run(folder: Path) -> None:
    printed = without_torch_jit(
        """
from frozenbn_cli.cli import run

assert run(["inspect", "archive.pt"]) == 0
assert run(["convert", "archive.pt"]) == 0
assert run(["verify", "archive.pt", "archive.frozen.pt"]) == 0
""",
        folder,
    )

    assert printed.count("not verified  this PyTorch has no TorchScript") == 2
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(load(folder / "archive.frozen.pt")(x), load(folder / "archive.pt")(x))


def test_torchscript_is_refused_as_an_output(folder: Path) -> None:
    printed = without_torch_jit(
        """
from frozenbn_cli.cli import run

sys.stderr = sys.stdout
assert run(["convert", "state.pt", "--model", "my_model.py:build", "--to", "torchscript"]) == 2
""",
        folder,
    )

    assert "this PyTorch has no TorchScript. Write --to safetensors instead." in printed
    assert not list(folder.glob("*.frozen.*"))
