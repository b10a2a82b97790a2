"""Ordinary mistakes in a command line are answered with what to type instead, in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from frozenbn_cli.cli import run
from tests.builders.files import batch_norm, nested, save, small_state


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "model.pth", small_state())
    deep = nested(**{f"layer{n}.{m}.bn1": batch_norm() for n in range(2) for m in range(2)})
    states = {f"optimizer.{n}": {"exp_avg": batch_norm()["weight"]} for n in range(20)}
    save(tmp_path / "last.ckpt", {"model": deep, "model_ema": deep, **states})
    (tmp_path / "net.py").write_text("def build(): ...\n")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("convrt model.pth", "there is no command 'convrt'. Is it 'convert'?"),
        ("model.pth", "'model.pth' is a file, and a command comes first. `frozenbn inspect model."),
        ("convert model.pth --inclde x", "there is no option --inclde. Is it --include or --exclu"),
        ("convert model.pth --zzz", "there is no option --zzz. See `frozenbn convert --help`."),
        ("convert", "CHECKPOINT is missing. See `frozenbn convert --help`."),
        ("verify model.pth", "CONVERTED is missing. See `frozenbn verify --help`."),
        ("verify a b c", "more arguments than it takes: c. See `frozenbn verify --help`."),
        ("convert model.pth --key", "--key needs a value. See `frozenbn convert --help`."),
        ("convert model.pth --eps abc", "--eps: expected a number, 0 or more, found 'abc'. See `"),
        ("convert model.pth --seed x", "--seed: expected a whole number, found 'x'. See `frozen"),
        ("convert model.pth --jobs x", "--jobs: expected a whole number, found 'x'. See `frozen"),
        ("convert model.pth --to torhc", "--to: there is no format 'torhc'. Is it 'torch'?"),
        ("convert model.pth --to onnx", "--to: there is no format 'onnx'. There are safetensors"),
        ("convert model.pth --input-shape 3", None),
        ("convert modle.pth", "modle.pth: there is no such file. Is it 'model.pth'?"),
        ("convert last.ckpt --key modle_ema", "no state dict at key 'modle_ema'. Is it 'model_ema"),
        (
            "convert last.ckpt --key zz",
            "no state dict at key 'zz'. There are 'model', 'model_ema'.",
        ),
        (
            "convert last.ckpt --key model --include layer",
            "matches no BatchNorm layer. Is it 'laye",
        ),
        ("convert model.pth --include b1", "matches no BatchNorm layer. Is it 'bn1'?"),
        ("convert model.pth --model torchvision.resnet50", "Is it torchvision:resnet50?"),
        ("convert model.pth --model resnet5", "Is it torchvision:resnet50 or timm:resnet50?"),
        ("convert model.pth --model auot", "Is it auto?"),
        ("convert model.pth --model net.py", "Name a function in it: net.py:FUNCTION."),
        ("convert model.pth --model net.py:biuld", "net.py has no biuld. Is it 'build'?"),
        ("convert model.pth --require modl", "no claim is called 'modl': expected contents or"),
    ],
)
def test_a_mistake_is_answered_in_one_line(
    folder: Path, line: str, said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(line.split())

    printed = capsys.readouterr()
    assert code == (3 if "modle.pth" in line else 2)
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert said is None or said in printed.err
    for words in ("Value error", "parse string", "Input should", "Invalid value", "Missing"):
        assert words not in printed.err
    assert sorted(path.name for path in folder.iterdir() if "frozen" in path.name) == []


@pytest.mark.parametrize("command", ["", "inspect", "convert", "verify"])
def test_help_shows_no_types(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*command.split(), "--help"]) == 0

    shown = capsys.readouterr().out
    for word in ("<bool>", "<path>", "<list", "<int>", "<float>", "<str>"):
        assert word not in shown


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_shells_get_the_completion_that_the_docs_name(shell: str) -> None:
    docs = Path(__file__).parents[2] / "docs/questions.md"
    assert f"source_{shell}" in docs.read_text(encoding="utf-8")

    done = subprocess.run(
        [Path(sys.executable).with_name("frozenbn")],
        env={**os.environ, "_FROZENBN_COMPLETE": f"source_{shell}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert "_FROZENBN_COMPLETE" in done.stdout


def test_the_version_has_a_short_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["-V"]) == 0
    assert capsys.readouterr().out.startswith("frozenbn ")
