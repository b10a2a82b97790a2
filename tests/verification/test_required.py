"""What has to be proven: a required claim that is not verified is an answer of no."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from frozenbn_cli import ConvertOptions, VerifyOptions, convert_file, verify_files
from frozenbn_cli.cli import run
from frozenbn_cli.errors import UsageError, VerificationError
from frozenbn_cli.many_files.batch import convert_files
from frozenbn_cli.reports.words import verdict_words
from frozenbn_cli.verification.claims import Claim, ClaimName, verdict, with_required
from tests.builders.archives import script
from tests.builders.files import save, small_state
from tests.builders.models import perturb
from tests.many_files.test_batch import Here

OPEN = Claim("model", "not verified", "no model")
EQUAL = (Claim("contents", "equal", ""), Claim("layers", "equal", ""))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "model.pth", small_state())


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    model = perturb(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval())
    return script(model, tmp_path / "scripted.pt")


def test_nothing_is_written_where_a_required_claim_is_not_verified(source: Path) -> None:
    with pytest.raises(VerificationError, match="model is required, and not verified") as caught:
        convert_file(source, options=ConvertOptions(require=("contents", "model")))

    assert caught.value.result.outcome == "not verified"
    assert [path.name for path in source.parent.iterdir()] == ["model.pth"]


def test_what_is_required_and_equal_passes(source: Path) -> None:
    result = convert_file(source, options=ConvertOptions(require=("contents", "layers")))

    assert result.outcome == "converted"


def test_a_requirement_that_cannot_be_met_is_refused() -> None:
    with pytest.raises(UsageError, match="no claim is called 'modl': expected contents or layers"):
        VerifyOptions(require=("modl",))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="nothing is to be verified"):
        ConvertOptions(require=("model",), verify=False)


@pytest.mark.parametrize(
    ("required", "found", "said"),
    [
        ((), "passed", "PASSED: contents and layers equal; model not verified"),
        (("layers",), "passed", "PASSED: contents and layers equal; model not verified"),
        (
            ("model",),
            "not verified",
            "NOT VERIFIED: model, which is required; contents and layers equal",
        ),
    ],
)
def test_the_verdict_on_an_open_claim(
    required: tuple[ClaimName, ...], found: str, said: str
) -> None:
    claims = with_required((*EQUAL, OPEN), required)

    assert (verdict(claims), str(verdict_words(claims))) == (found, said)


def test_inputs_that_the_user_chose_are_named_before_the_verdict() -> None:
    claims = (*EQUAL, replace(OPEN, inputs_were_given=True))

    assert str(verdict_words(claims)) == (
        "model not verified on the inputs that were given; PASSED: contents and layers equal"
    )


def test_commands_answer_no(
    archive: Path, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", str(source), "--require", "model", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["outcome"], document["verdict"]) == ("not verified", "not verified")
    assert [claim["required"] for claim in document["claims"]] == [False, False, True]

    wrong_shape = ["--input-shape", "1x4x7x7"]
    assert run(["convert", str(archive), *wrong_shape]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[1].startswith(
        "converted, but not run on the inputs that were given"
    )
    assert "\nmodel not verified on the inputs that were given; PASSED" in printed

    converted = str(archive.with_name("scripted.frozen.pt"))
    assert run(["verify", str(archive), converted, "--require", "model", *wrong_shape]) == 1
    assert "NOT VERIFIED: model, which is required" in capsys.readouterr().out


def test_an_output_counts_as_there_only_with_what_is_required(source: Path, tmp_path: Path) -> None:
    convert_files([source], output_dir=tmp_path / "out", executor=Here())

    (found,) = convert_files(
        [source], output_dir=tmp_path / "out", skip_existing=True, executor=Here(),
        options=ConvertOptions(require=("model",)),
    )  # fmt: skip

    assert "its model was not verified, which is required" in str(found.error)


def test_files_are_verified_with_what_is_required(source: Path) -> None:
    converted = convert_file(source).output_path

    assert verify_files(source, converted).verdict == "passed"
    needs = VerifyOptions(require=("model",))
    assert verify_files(source, converted, options=needs).verdict == "not verified"
