"""No command runs what a hostile program would execute, and none says that it verified one."""

from pathlib import Path

import pytest

from frozenbn_cli.cli import run
from frozenbn_cli.conversion.convert import ConversionResult, ConvertOptions, convert_file
from frozenbn_cli.errors import InputError
from frozenbn_cli.verification.claims import Claim
from tests.builders.hostile_programs import WAYS, canary_of, hostile_program
from tests.builders.programs import of_newest_layout


def model_claim(result: ConversionResult) -> Claim:
    return next(claim for claim in result.claims if claim.name == "model")


@pytest.mark.parametrize("way", WAYS)
def test_no_command_executes_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    canary, code = canary_of(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    path = hostile_program(way, tmp_path, code)
    plain = tmp_path / "plain.pt2"

    for arguments in (
        ["inspect", str(path)],
        ["convert", str(path), "-o", str(tmp_path / "out.pt2")],
        ["convert", str(path), "-o", str(tmp_path / "out.safetensors"), "--to", "safetensors"],
        ["verify", str(path), str(path)],
        ["verify", str(plain), str(path)],
        ["verify", str(path), str(plain)],
    ):
        assert run(arguments) in (0, 1, 3), arguments
        assert not canary.exists(), arguments


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_run_is_not_verified(tmp_path: Path, way: str) -> None:
    path = hostile_program(way, tmp_path, "print()")
    try:
        result = convert_file(path, tmp_path / "out.pt2", options=ConvertOptions())
    except InputError:
        return  # What cannot even be kept is refused.
    claim = model_claim(result)
    assert claim.status == "not verified"
    assert claim.detail.startswith("it could execute more than a model: ")
    assert claim.detail.endswith("; --trust runs it all the same")


@of_newest_layout
def test_a_trusted_program_is_run(tmp_path: Path) -> None:
    path = hostile_program("a guard", tmp_path, "print('said by the file') or True")
    result = convert_file(path, tmp_path / "out.pt2", options=ConvertOptions(trust=True))
    assert model_claim(result).status == "equal"
