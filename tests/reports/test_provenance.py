"""Reports tell how they came about, so that they can be had again."""

import hashlib
import json
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import frozenbn_cli
from frozenbn_cli import cli
from frozenbn_cli.cli.invocation import current_date
from frozenbn_cli.errors import UsageError
from tests.builders.files import save, small_state
from tests.reports.test_terminal import SCHEMA

DATE = datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "model.pt", small_state())


def document(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    cli.run([*map(str, arguments), "--json"], now=lambda: DATE)
    found = json.loads(capsys.readouterr().out)
    jsonschema.validate(found, SCHEMA)
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_documents_tell_what_was_typed_when_and_with_which_versions(
    capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    out = model.with_name("out.safetensors")
    for arguments in (
        ["inspect", model],
        ["convert", model, "-o", out],
        ["verify", model, out],
        ["convert", model, "-o", out],
        ["inspect", model.with_name("gone.pt")],
        ["convert", model, "--output-dir", model.with_name("many"), "--no-verify"],
    ):
        run = document(capsys, *arguments)["run"]

        assert run["command_line"] == ["frozenbn", *map(str, arguments), "--json"]
        assert run["date"] == "2030-01-02T03:04:05Z"
        assert (run["frozenbn"], run["torch"]) == (frozenbn_cli.__version__, version("torch"))


def test_documents_tell_the_sha256_of_what_was_read_and_written(
    capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    out = model.with_name("out.safetensors")

    converted = document(capsys, "convert", model, "-o", out)
    verified = document(capsys, "verify", model, out)
    many = ["--output-dir", model.parent / "many", "--no-verify"]  # A worker needs no PyTorch.
    (one_of_many,) = document(capsys, "convert", model, *many)["files"]

    assert converted["input"]["sha256"] == verified["original"]["sha256"] == sha256(model)
    assert converted["output"]["sha256"] == verified["converted"]["sha256"] == sha256(out)
    written = Path(one_of_many["output_path"])
    assert one_of_many["conversion"]["output_sha256"] == sha256(written)


@pytest.mark.parametrize("suffix", ["html", "md"])
def test_reports_tell_the_same(model: Path, suffix: str) -> None:
    out, report = model.with_name("my out.safetensors"), model.with_name(f"report.{suffix}")
    command = ["convert", str(model), "-o", str(out), "--report", str(report), "--quiet"]

    assert cli.run(command, now=lambda: DATE) == 0

    text = report.read_text(encoding="utf-8").replace("&#39;", "'")
    assert f"-o '{out}' --report" in text
    assert "2030-01-02 03:04:05 UTC" in text
    for told in (sha256(model), sha256(out), frozenbn_cli.__version__, version("torch")):
        assert told in text


def test_the_record_in_the_output_has_the_date_of_the_report(
    capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    out = model.with_name("out.safetensors")
    document(capsys, "convert", model, "-o", out)

    (found,) = document(capsys, "inspect", out)["files"]

    assert found["record"]["date"] == "2030-01-02T03:04:05Z"
    assert [claim["name"] for claim in found["record"]["claims"]] == ["contents", "layers", "model"]


def test_the_environment_may_set_the_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(int(DATE.timestamp())))
    assert current_date() == DATE

    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="seconds since 1970"):
        current_date()
