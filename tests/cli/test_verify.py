"""The command line of `verify`, and what `--model` adds to the others."""

import json
from pathlib import Path

import pytest
import torch

from frozenbn_cli.cli.app import run
from tests.builders.files import save
from tests.builders.models import perturb, small_cnn

MODEL = """
import torch
from tests.builders.models import perturb, small_cnn

def build(channels=4, seed=0):
    torch.manual_seed(seed)
    return perturb(small_cnn()).eval()
"""


class TestVerify:
    @pytest.fixture
    def files(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "model.py").write_text(MODEL)
        torch.manual_seed(0)
        save(tmp_path / "a.pt", perturb(small_cnn()).state_dict())
        assert run(["convert", "a.pt", "--model", "model.py:build", "--quiet"]) == 0
        return "a.pt", "a.frozen.safetensors"

    def test_equal_files(self, files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
        code = run(["verify", *files, "--model", "model.py:build", "--input-shape", "1x3x9x9"])

        printed = capsys.readouterr()
        assert code == 0
        assert printed.out.endswith("\nPASSED: contents, layers and model equal\n")
        assert "outputs on 1x3x9x9 of float32" in printed.out
        assert printed.err == ""

    def test_different_files(
        self, files: tuple[str, str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        code = run(["verify", "a.pt", "a.pt"])

        assert code == 1
        assert capsys.readouterr().out.endswith("\nFAILED: layers different; model not verified\n")

    @pytest.mark.parametrize("same", [False, True])
    def test_one_document(
        self, files: tuple[str, str], capsys: pytest.CaptureFixture[str], same: bool
    ) -> None:
        code = run(["verify", "a.pt", files[not same], "--json"])

        document = json.loads(capsys.readouterr().out)
        assert code == same
        assert (document["command"], document["outcome"]) == (
            "verify",
            "failed" if same else "passed",
        )
        assert [claim["name"] for claim in document["claims"]] == ["contents", "layers", "model"]

    def test_quiet_prints_nothing(
        self, files: tuple[str, str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["verify", "a.pt", "a.pt", "--quiet"]) == 1
        assert capsys.readouterr().out == ""

    def test_inputs_of_a_file(
        self, files: tuple[str, str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        torch.save(torch.rand(2, 3, 7, 7), "x.pt")

        code = run(["verify", *files, "--model", "model.py:build", "--inputs", "x.pt"])

        assert code == 0
        assert "outputs on x.pt (2x3x7x7, run in float32)" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (["--model", "model.py:none"], 2, "model.py has no none"),
            (["--model", "model.py:build", "--inputs", "none.pt"], 3, "inputs none.pt"),
            (["--inputs", "x.pt", "--runs", "2"], 2, "also by shapes, runs or a seed"),
            (["--atol", "-1"], 2, "--atol: expected a number, 0 or more"),
            (["--key", "ema"], 2, "no state dict at key 'ema'"),
            (["--include", "nothing*"], 2, "matches no BatchNorm layer"),
        ],
    )
    def test_wrong_usage(
        self,
        files: tuple[str, str],
        capsys: pytest.CaptureFixture[str],
        arguments: list[str],
        code: int,
        message: str,
    ) -> None:
        assert run(["verify", *files, *arguments]) == code

        printed = capsys.readouterr()
        assert message in printed.err
        assert printed.err.count("\n") == 1
        assert printed.out == ""

    def test_a_damaged_file(
        self, files: tuple[str, str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        whole = Path("a.frozen.safetensors").read_bytes()
        Path("b.safetensors").write_bytes(whole[: len(whole) // 2])

        assert run(["verify", "a.pt", "b.safetensors"]) == 3
        assert capsys.readouterr().err.startswith("frozenbn: b.safetensors")

    def test_inspect_with_a_model(
        self, files: tuple[str, str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert run(["inspect", "a.pt", "--model", "model.py:build"]) == 0

        printed = capsys.readouterr().out
        assert "model model.py:build" in printed
        assert "1e-05 read" in printed
