"""The input of a conversion is read before the parser is imported, where it can be guessed."""

import hashlib
import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from torch import nn

from frozenbn_cli.cli.looking_ahead import looking_ahead
from frozenbn_cli.containers.fingerprint import Fingerprint
from tests.builders.files import save

OPTIONS = ("--force", "--no-verify", "--json")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    layer = nn.BatchNorm2d(3)
    layer.running_var.fill_(2)  # type: ignore[union-attr]
    return save(tmp_path / "model.pt", layer.state_dict())


def is_begun(path: Path, *arguments: object) -> bool:
    """Return whether a command line has the fingerprint of a file begun."""
    with looking_ahead([*map(str, arguments)]), closing(Fingerprint.of(path)) as fingerprint:
        return fingerprint._sha256 is not None


def test_begins_with_the_file_of_a_conversion_alone(model: Path, tmp_path: Path) -> None:
    assert is_begun(model, "convert", model)
    assert is_begun(model, "convert", "--key", "model", model, "--no-verify")
    for arguments in (
        [],
        ["inspect", model],
        ["convert"],
        ["convert", tmp_path],
        ["convert", "nul\0byte"],
        ["convert", model, "--dry-run"],
        ["convert", "--help", model],
        ["convert", model, "--output-dir=out"],
        ["convert", model.with_name("missing.pt"), "--no-verify"],
    ):
        assert not is_begun(model, *arguments)


def test_what_cannot_be_begun_is_left_to_the_command(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Fingerprint) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(Fingerprint, "begin", refuse)

    assert not is_begun(model, "convert", model)


def test_a_wrong_guess_does_no_harm(model: Path, tmp_path: Path) -> None:
    output = save(tmp_path / "out.pt", {"old": 1})

    run = subprocess.run(
        [sys.executable, "-m", "frozenbn_cli", "convert", "-o", output, model, *OPTIONS],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (run.returncode, run.stderr) == (0, "")
    document = json.loads(run.stdout)
    assert document["input"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert document["output"]["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
