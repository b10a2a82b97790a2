"""Where PyTorch has no `torch.jit`, all goes on but for running TorchScript, which is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.builders.archives import load, script
from tests.builders.files import save
from tests.builders.models import perturb

# Every process that Python starts in the folder runs this, also the one that runs archives.
# torch.nn.functional asks `is_scripting` itself, so that goes for this package alone.
GONE = """
import torch, torchvision

asked_by_torch = torch.jit.is_scripting
for name in [name for name in vars(torch.jit) if not name.startswith("_")]:
    delattr(torch.jit, name)
import frozenbn_cli.torch_jit
torch.jit.is_scripting = asked_by_torch
"""
# One process does it all, as PyTorch takes seconds to import: it runs each of the pieces of code
# that it is given, and tells what each printed and raised.
RUN_PIECES = """
import contextlib, io, json, sys, traceback
import torch, torchvision

told = {}
for name, code in json.load(sys.stdin).items():
    printed, raised = io.StringIO(), ""
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            exec(code, {"torch": torch, "torchvision": torchvision})
        except Exception:
            raised = traceback.format_exc()
    told[name] = printed.getvalue(), raised
print(json.dumps(told))
"""
PIECES = {
    "live": """
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
    "state dict": """
from frozenbn_cli import load_frozen
from frozenbn_cli.cli import run
from my_model import build

assert run(["convert", "state.pt", "--model", "my_model.py:build"]) == 0
assert run(["verify", "state.pt", "state.frozen.safetensors", "--model", "my_model.py:build"]) == 0
assert run(["convert", "module.pt", "--trust"]) == 0
load_frozen(build(), "state.frozen.safetensors")
""",
    "archive": """
from frozenbn_cli.cli import run

assert run(["inspect", "archive.pt"]) == 0
assert run(["convert", "archive.pt"]) == 0
assert run(["verify", "archive.pt", "archive.frozen.pt"]) == 0
""",
    "output": """
from frozenbn_cli.cli import run

given = ["state.pt", "--model", "my_model.py:build", "-o", "refused.pt"]
assert run(["convert", *given, "--to", "torchscript"]) == 2
""",
}
MODEL = """from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
"""


def model() -> nn.Module:
    return perturb(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    save(folder / "state.pt", model().state_dict())
    save(folder / "module.pt", model())
    script(model().eval(), folder / "archive.pt")
    (folder / "my_model.py").write_text(MODEL)
    (folder / "sitecustomize.py").write_text(GONE)
    return folder


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, tuple[str, str]]:
    """Run the pieces in a process whose PyTorch has lost what is public in `torch.jit`."""
    path = str(folder), str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", RUN_PIECES],
        input=json.dumps(PIECES),
        cwd=folder,
        env={"PYTHONPATH": os.pathsep.join(path), "PATH": "", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: (printed, raised) for name, (printed, raised) in json.loads(done.stdout).items()}


def test_the_layer_and_live_conversion_work(told: dict[str, tuple[str, str]]) -> None:
    assert not told["live"][1]


def test_a_state_dict_is_converted_verified_and_loaded_with_its_model(
    told: dict[str, tuple[str, str]],
) -> None:
    printed, raised = told["state dict"]

    assert not raised
    assert printed.count("PASSED: contents, layers and model equal") == 3


def test_an_archive_is_converted_and_not_run(
    told: dict[str, tuple[str, str]], folder: Path
) -> None:
    printed, raised = told["archive"]

    assert not raised
    assert printed.count("not verified  this PyTorch has no TorchScript") == 2
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(load(folder / "archive.frozen.pt")(x), load(folder / "archive.pt")(x))


def test_torchscript_is_refused_as_an_output(
    told: dict[str, tuple[str, str]], folder: Path
) -> None:
    printed, raised = told["output"]

    assert not raised
    assert "this PyTorch has no TorchScript. Write --to safetensors instead." in printed
    assert not (folder / "refused.pt").exists()
