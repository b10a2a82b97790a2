from __future__ import annotations

import sys
from pathlib import Path

import pytest
from torch import nn

from frozenbn_cli.cli.option_values import parse_model
from frozenbn_cli.errors import UsageError
from frozenbn_cli.live_models.building import build
from frozenbn_cli.live_models.target import ModelTarget, name_of_model
from tests.builders.files import save, small_state

SOURCE = """
from dataclasses import dataclass
from torch import nn
from beside import CHANNELS

print("a word from the model")

@dataclass
class Settings:
    channels: int = CHANNELS

class Model(nn.Sequential):
    @classmethod
    def small(cls, channels=CHANNELS, bias=True):
        return cls(nn.Conv2d(channels, 4, 3, bias=bias), nn.BatchNorm2d(4))

def number():
    return 3

def failing():
    raise ZeroDivisionError("no layers")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_model.py").write_text(SOURCE)
    (tmp_path / "beside.py").write_text("CHANNELS = 5\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [
        name for name in sys.modules if name.endswith(("my_model", "late")) or name == "beside"
    ]:
        del sys.modules[name]


@pytest.mark.parametrize("module", ["my_model", "my_model.py", "./my_model.py"])
def test_builds_from_a_module_or_a_file(folder: Path, module: str) -> None:
    path_before = list(sys.path)

    model = build(ModelTarget(f"{module}:Model.small", {"bias": False}))

    assert model[0].in_channels == 5
    assert model[0].bias is None
    assert not model.training
    assert sys.path == path_before


@pytest.mark.parametrize("module", ["late", "late.py"])
def test_what_lies_beside_it_may_be_imported_late(folder: Path, module: str) -> None:
    (folder / "late.py").write_text(
        "def model():\n    from my_model import Model\n    return Model.small()\n"
    )

    assert build(ModelTarget(f"{module}:model"))[0].in_channels == 5


def test_builds_from_an_installed_package() -> None:
    assert isinstance(build(ModelTarget("torch.nn:Linear", {"in_features": 1, "out_features": 1})),
                      nn.Linear)  # fmt: skip


def test_what_a_model_prints_is_no_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build(ModelTarget("my_model.py:Model.small"))

    printed = capsys.readouterr()
    assert printed.out == ""
    assert "a word from the model" in printed.err


def test_each_build_is_seeded(folder: Path) -> None:
    target = ModelTarget("my_model:Model.small")

    assert build(target)[0].weight.equal(build(target)[0].weight)


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("my_model", {}, "expected package.module:callable or path/file.py:callable"),
        (":Model", {}, "expected package.module:callable"),
        ("no.such.module:Model", {}, "no.such.module cannot be imported (No module named 'no')"),
        ("none.py:Model", {}, "there is no file"),
        ("broken.py:Model", {}, "cannot be imported (expected ':'"),
        ("my_model:Other", {}, "my_model has no Other"),
        ("my_model:__name__", {}, "expected __name__ to be callable, found str"),
        ("my_model:number", {}, "expected a torch.nn.Module, found int"),
        ("my_model:failing", {}, "building the model failed (ZeroDivisionError: no layers)"),
        ("my_model:Model.small", {"depth": 3}, "unexpected keyword argument 'depth'"),
    ],
)
def test_says_what_is_wrong_with_a_target(
    folder: Path, target: str, arguments: dict[str, object], message: str
) -> None:
    (folder / "broken.py").write_text("class Model\n")

    with pytest.raises(UsageError) as caught:
        build(ModelTarget(target, arguments))

    assert message in str(caught.value)
    assert target in str(caught.value)


def test_arguments_are_json_or_words() -> None:
    texts = ["classes=10", "aux=false", "name=resnet50.a1", "sizes=[1, 2]", "none=null", 'q="3"']

    target = parse_model("a:b", texts)

    assert target is not None
    assert target.arguments == {
        "classes": 10, "aux": False, "name": "resnet50.a1", "sizes": [1, 2], "none": None, "q": "3",
    }  # fmt: skip


def test_arguments_without_a_model_are_refused() -> None:
    with pytest.raises(UsageError, match="no model"):
        parse_model(None, ["a=1"])


def test_names_a_model() -> None:
    assert name_of_model(None) == ""
    assert name_of_model(ModelTarget("a.b:c")) == "a.b:c"
    assert name_of_model(small_state) == "small_state"


class TestCommandLine:
    def run(self, *arguments: str) -> tuple[int, str]:
        from frozenbn_cli.cli.app import run

        return run(list(arguments))

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ("depth", "'depth' is no NAME=VALUE"),
            ("a b=1", "'a b=1' is no NAME=VALUE"),
            ("aux=False", "write it in JSON, such as true, false, null"),
        ],
    )
    def test_arguments_that_are_none(
        self, folder: Path, capsys: pytest.CaptureFixture[str], argument: str, message: str
    ) -> None:
        save(folder / "a.pt", small_state())

        code = self.run("inspect", "a.pt", "--model", "my_model:Model", "--model-arg", argument)

        assert code == 2
        assert message in capsys.readouterr().err
