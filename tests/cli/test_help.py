"""The help of each command, its examples, and the completion that shells ask for."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision

from frozenbn_cli.cli.app import run
from frozenbn_cli.cli.options import examples
from tests.builders.files import save
from tests.builders.models import build

EXAMPLES = {
    "inspect": examples.INSPECT_EXAMPLES,
    "convert": examples.CONVERT_EXAMPLES,
    "verify": examples.VERIFY_EXAMPLES,
}


def commands(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()[1:] if line]


@pytest.mark.parametrize("command", EXAMPLES)
def test_help_is_in_panels_and_ends_in_examples(
    capsys: pytest.CaptureFixture[str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERMINAL_WIDTH", "120")

    assert run([command, "--help"]) == 0

    shown = capsys.readouterr().out
    for panel in ("Arguments", "Layers", "Model", "Report"):
        assert f"─ {panel} ─" in shown
    lines = [line.strip() for line in shown.splitlines()]
    for example in commands(EXAMPLES[command]):
        assert example in lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples speak of, made of a model that is not so large."""
    folder = tmp_path_factory.mktemp("examples")
    model = build(torchvision.models.resnet18)
    state = model.state_dict()
    save(folder / "model.pth", state)
    save(folder / "last.ckpt", {"model": state, "model_ema": state})
    nested = {f"backbone.{name}": tensor for name, tensor in state.items()}
    save(folder / "nested.pth", nested)
    save(folder / "float32.safetensors", {"a": torch.ones(2)})
    (folder / "my_model.py").write_text("from torchvision.models import resnet18 as build\n")
    return folder


@pytest.mark.parametrize(
    "example",
    [
        *commands(examples.INSPECT_EXAMPLES)[:2],
        *commands(examples.CONVERT_EXAMPLES)[:4],
        commands(examples.CONVERT_EXAMPLES)[5].replace("model.pth", "nested.pth"),
        *commands(examples.VERIFY_EXAMPLES)[:2],
    ],
)
def test_examples_work_as_they_are_typed(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    example: str,
) -> None:
    monkeypatch.chdir(folder)
    # One of the examples names it.
    monkeypatch.setattr(torchvision.models, "resnet50", torchvision.models.resnet18)
    if example.startswith("frozenbn convert"):
        for output in [*folder.glob("*frozen*")]:
            output.unlink()
    if example.startswith("frozenbn verify"):
        to = ["--to", "torch"] if ".pt " in example else []
        output = example.split()[3]
        arguments = ["convert", "model.pth", "--model", "my_model.py:build", "-o", output]
        assert run([*arguments, "--no-verify", "--quiet", "--force", *to]) == 0
        capsys.readouterr()

    code = run(shlex.split(example)[1:])

    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")


EXPECTED = {
    "frozenbn ": {"inspect", "convert", "verify"},
    "frozenbn con": {"convert"},
    "frozenbn convert --to t": {"torch", "torchscript"},
    "frozenbn verify --mod": {"--model", "--model-arg"},
}
QUICK = {"bash": "frozenbn ", "zsh": "frozenbn convert --to t", "fish": "frozenbn verify --mod"}


@pytest.mark.parametrize(
    ("shell", "words"),
    [
        pytest.param(shell, words, marks=() if words == quick else pytest.mark.slow)
        for shell, quick in QUICK.items()
        for words in EXPECTED
    ],
)
def test_shells_are_told_how_a_line_goes_on(shell: str, words: str) -> None:
    environment = {**os.environ, "_FROZENBN_COMPLETE": f"complete_{shell}"}
    if shell == "bash":
        environment |= {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    else:
        environment |= {"_TYPER_COMPLETE_ARGS": words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}

    done = subprocess.run(
        [Path(sys.executable).with_name("frozenbn")],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip

    for word in EXPECTED[words]:
        assert word in done.stdout
    assert "--quiet" not in done.stdout
