"""`frozenbn calibrate` on the command line: its words, its documents, its exit codes."""

import json
import re
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

from tests.builders.files import save
from tests.calibration.net import Net
from tests.cli.test_app import run_here

NET = Path(__file__).parents[1] / "calibration" / "net.py"
SCHEMA = json.loads(
    files("frozenbn_cli.reports").joinpath("schema.json").read_text(encoding="utf-8")
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save(tmp_path / "model.pt", Net().state_dict())


def arguments(model: Path, data: str = f"{NET}:batches") -> tuple[object, ...]:
    return "calibrate", model, "--model", f"{NET}:Net", "--data", data


def test_says_what_moved_the_worst_first(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_here(capsys, *arguments(model))

    assert (code, err) == (0, "")
    assert out.startswith(f"{model} → {model.with_name('model.calibrated.pt')}\n")
    assert "calibrated · 3 of 4 BatchNorm layers formed anew · 1 left alone" in out
    assert f"data {NET}:batches · 3 batches · 4 passes" in out
    before, _, now = out.partition("\nNow\n")
    assert "statistics were never formed" in before
    assert "(4 layers)" in before
    factors = [float(found) for found in re.findall(r"×([\d.]+)  ×", now)]
    assert len(factors) == 3
    assert factors == sorted(factors, reverse=True)
    assert "settled: a last pass measured in each layer" in now
    assert "left alone: auxiliary: never reached" in now
    assert "num_batches_tracked is now 3" in now
    assert "PASSED: contents equal" in now


def test_json_follows_the_schema(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_here(capsys, *arguments(model), "--json", "--passes", "1")

    document = json.loads(out)
    jsonschema.validate(document, SCHEMA)
    assert (code, err, document["command"], document["outcome"]) == (
        0, "", "calibrate", "calibrated"
    )  # fmt: skip
    assert (document["batches"], document["passes"], document["settled"]) == (3, 1, False)
    assert document["apart"] is None
    assert document["layers"][0]["name"] == "bn3"
    assert {item["name"] for item in document["left"]} == {"auxiliary"}
    assert document["layers"][0]["findings_before"][0]["code"] == "never_formed"
    assert document["layers"][0]["findings"] == []
    assert document["verdict"] == "passed"


@pytest.mark.parametrize("suffix", ["html", "md", "json"])
def test_writes_a_report(
    model: Path, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / f"report.{suffix}"

    code, out, _ = run_here(capsys, *arguments(model), "--report", report, "--quiet")

    assert (code, out) == (0, "")
    text = report.read_text(encoding="utf-8")
    assert "never_formed" in text or "never formed" in text
    if suffix == "html":
        assert "How far the running means of each layer moved" in text
        assert "What the running variances of each layer, with eps, were multiplied by" in text
        assert text.count("<svg") >= 4
        assert text.index("<td>bn3<td>") < text.index("<td>bn1<td>")


def test_layers_that_were_broken_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = Net().state_dict()
    state["bn1.running_var"].fill_(torch.nan)
    state["bn2.running_var"][0] = -1
    report = tmp_path / "a.html"

    code, out, _ = run_here(
        capsys, *arguments(save(tmp_path / "a.pt", state)), "--report", report, "--json"
    )

    assert code == 0
    jsonschema.validate(json.loads(out), SCHEMA)
    layers = {layer["name"]: layer for layer in json.loads(out)["layers"]}
    assert layers["bn1"]["drift"] is None
    assert layers["bn2"]["drift"]["broken_channels"] == 1
    assert "no drift, since the statistics were broken: bn1" in report.read_text("utf-8")


def test_options_reach_the_data(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", np.random.default_rng(0).normal(size=(11, 1, 8, 8)))

    code, out, _ = run_here(
        capsys, *arguments(model, str(tmp_path / "x.npz")), "--batch-size", "4", "--batches", "2",
        "--exclude", "bn1", "-o", tmp_path / "b.pt", "--json",
    )  # fmt: skip

    document = json.loads(out)
    assert code == 0
    assert document["batches"] == 2
    assert document["data"] == "x.npz: 11x1x8x8"
    assert {"name": "bn1", "reason": "excluded by 'bn1'"} in document["left"]
    assert (tmp_path / "b.pt").exists()


@pytest.mark.parametrize(
    ("given", "code", "words"),
    [
        (["--data", f"{NET}:failing"], 2, "batch 2: making it failed (ValueError: no more)"),
        (["--data", "missing.npz"], 3, "cannot be read (No such file or directory)"),
        (["--data", f"{NET}:ending"], 2, "the code of the data or of the model ends with"),
        (["--data", f"{NET}:interrupted"], 130, "interrupted; nothing unfinished was left"),
        (["--data", "x", "--image-size", "0"], 2, "'0' is no size such as 224 or 224x320"),
        (["--data", "x", "--std", "0.5,0"], 2, "must be numbers above 0"),
        (["--data", "x", "--mean", "half"], 2, "'half' is no list of numbers"),
        (["--data", "x", "--mean", "nan"], 2, "must be finite numbers"),
        (["--data", f"{NET}:batches", "--include", "bnn"], 2, "matches no BatchNorm layer"),
        (["--data", f"{NET}:batches", "--include", "auxiliary"], 1, "reach no BatchNorm layer"),
    ],
)
def test_refusals_are_one_line_and_write_nothing(
    model: Path,
    given: list[str],
    code: int,
    words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found, out, err = run_here(capsys, "calibrate", model, "--model", f"{NET}:Net", *given)

    assert (found, out) == (code, "")
    assert words in err
    assert err.count("\n") == 1
    assert [path.name for path in model.parent.iterdir()] == ["model.pt"]


def test_a_model_has_to_be_named(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run_here(capsys, "calibrate", model, "--data", f"{NET}:batches")

    assert (code, err) == (
        2, "frozenbn: calibrate runs the model of the file. Name it with --model.\n"
    )  # fmt: skip


def test_what_the_data_print_does_not_get_into_the_document(
    model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data.py").write_text(
        "import os, torch\n"
        "def give():\n"
        "    os.system('echo loading')\n"
        "    yield torch.randn(4, 1, 8, 8)\n"
    )

    code, out, err = run_here(capfd, *arguments(model, f"{tmp_path}/data.py:give"), "--json")

    assert code == 0
    assert json.loads(out)["settled"]
    assert "loading" in err


def test_a_folder_of_images_needs_pillow_and_says_so(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)

    code, _, err = run_here(capsys, *arguments(model, str(tmp_path)))

    assert code == 2
    assert "pip install 'frozenbn-cli[images]'" in err
