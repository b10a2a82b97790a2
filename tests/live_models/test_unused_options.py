"""An option that would have no effect is refused, with the reason."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from frozenbn_cli import ConvertOptions, VerifyOptions, convert_file, verify_files
from frozenbn_cli.cli import run
from frozenbn_cli.errors import UsageError
from frozenbn_cli.many_files.batch import convert_files
from tests.builders.archives import script
from tests.builders.files import save
from tests.builders.models import perturb
from tests.many_files.test_batch import Here

STATE_DICT = "a state dict holds no model that could be run; --model names one"


def model() -> nn.Module:
    return perturb(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "state.pth", model().state_dict())
    torch.save(model(), tmp_path / "module.pt")
    script(model(), tmp_path / "archive.pt")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("state.pth", {"input_shapes": ((1, 3, 7, 7),)}, f"-shape has no effect: {STATE_DICT}"),
        ("state.pth", {"inputs": Path("x.npz")}, f"--inputs has no effect: {STATE_DICT}"),
        ("state.pth", {"runs": 2}, f"--runs has no effect: {STATE_DICT}"),
        ("state.pth", {"seed": 2}, f"--seed has no effect: {STATE_DICT}"),
        ("state.pth", {"trust": True}, "--trust has no effect: nothing in the file is executed"),
        ("state.pth", {"timeout": 2.0}, "--timeout has no effect: nothing in the file"),
        ("module.pt", {"runs": 2}, "--runs has no effect: a pickled module is run with --trust"),
        ("module.pt", {"trust": True, "model": model}, "--trust has no effect: the code of"),
        ("archive.pt", {"runs": 2, "verify": False}, "--runs has no effect: --no-verify runs"),
        ("module.pt", {"trust": True, "verify": False}, "--trust has no effect: --no-verify runs"),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_refused(
    folder: Path, name: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        convert_file(folder / name, options=ConvertOptions(**options))

    assert said in f"{caught.value.problem}"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("module.pt", {"trust": True, "verify": False, "to": "torchscript"}),
        ("module.pt", {"trust": True, "runs": 2, "timeout": 200.0, "dry_run": True}),
        ("state.pth", {"model": model, "verify": False, "to": "torchscript", "seed": 3}),
        ("archive.pt", {"runs": 2, "timeout": 200.0, "trust": True, "dry_run": True}),
    ],
)
def test_what_has_an_effect_is_taken(folder: Path, name: str, options: dict[str, Any]) -> None:
    assert convert_file(folder / name, options=ConvertOptions(**options)).plan.frozen


def test_verifying_state_dicts_runs_nothing(folder: Path) -> None:
    output = convert_file(folder / "state.pth").output_path

    with pytest.raises(UsageError, match="runs has no effect"):
        verify_files(folder / "state.pth", output, options=VerifyOptions(runs=2))
    with pytest.raises(UsageError, match="runs has no effect"):
        verify_files(folder / "archive.pt", output, options=VerifyOptions(runs=2))
    options = VerifyOptions(runs=2, model=model)
    assert verify_files(folder / "state.pth", output, options=options).verdict == "passed"


def test_among_several_files_an_option_may_be_for_another(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ConvertOptions(runs=2)
    results = convert_files(
        [folder / "state.pth", folder / "archive.pt"], output_dir=folder / "out", options=options,
        executor=Here(),
    )  # fmt: skip

    assert [result.state for result in results] == ["done", "done"]
    assert run(["convert", str(folder), "--output-dir", "out", "--no-verify", "--runs", "2"]) == 2
    assert "--runs has no effect: --no-verify runs nothing" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--skip-existing", "--recursive", "--jobs=2"])
def test_what_is_for_many_files_is_refused_of_one(
    folder: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", str(folder / "state.pth"), option]) == 2
    assert f"{option.partition('=')[0]} has no effect on one file" in capsys.readouterr().err


def test_a_typing_error_is_told_before_an_output_that_is_there(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert_file(folder / "state.pth", options=ConvertOptions(verify=False))
    source = str(folder / "state.pth")

    assert run(["convert", source, "--include", "typo"]) == 2
    assert "'typo' matches no" in capsys.readouterr().err
    assert run(["convert", source, "-o", source]) == 2
    assert "is the input" in capsys.readouterr().err
    assert run(["convert", source]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_dry_run_needs_no_force_and_says_what_will(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert_file(folder / "state.pth", options=ConvertOptions(verify=False))

    assert run(["convert", str(folder / "state.pth"), "--dry-run"]) == 0
    assert "exists already; --force replaces it" in capsys.readouterr().out
