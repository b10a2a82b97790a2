"""What the converted file's own record says is used where the user does not say it, and shown."""

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from frozenbn_cli import ConvertOptions, Selection, VerifyOptions, convert_file, verify_files
from frozenbn_cli.cli import run
from frozenbn_cli.errors import UsageError
from frozenbn_cli.reports.verifications import recorded_words
from tests.builders.files import save, small_state


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A checkpoint with two state dicts, one of them as DataParallel names it."""
    wrapped = {f"module.{name}": tensor + 1 for name, tensor in small_state().items()}
    return save(tmp_path / "last.ckpt", {"model": small_state(), "ema": wrapped})


def converted(source: Path, **options: object) -> Path:
    how = ConvertOptions(verify=False, **options)  # type: ignore[arg-type]
    return convert_file(source, source.with_name("out.safetensors"), options=how).output_path


def test_key_eps_selection_and_prefix_are_taken_from_the_record(source: Path) -> None:
    output = converted(source, key="ema", eps=1e-3, selection=Selection.of(include="bn1"))

    result = verify_files(source, output)

    assert (result.verdict, result.key, list(result.frozen)) == ("passed", "ema", ["bn1"])
    assert result.live == {"bn2": "not included by 'bn1'"}
    assert recorded_words(result.recorded) == [
        "key 'ema'",
        "eps 0.001, given at conversion",
        "included 'bn1'",
        "'module.' taken off names",
    ]


def test_what_the_user_says_comes_first(source: Path) -> None:
    output = converted(source, key="ema", selection=Selection.of(include="bn1"))

    options = VerifyOptions(key="model", selection=Selection.of(exclude="bn1"))
    result = verify_files(source, output, options=options)

    assert (result.verdict, result.key) == ("failed", "model")
    assert (result.recorded.key, result.recorded.selection) == (None, Selection())


def test_a_selection_of_other_layers_and_the_key_of_another_file_are_not_taken(
    source: Path, tmp_path: Path
) -> None:
    output = converted(source, key="ema", selection=Selection.of(include="bn1"))
    state = {name.replace("bn1", "norm"): tensor for name, tensor in small_state().items()}
    other = save(tmp_path / "other.pth", state)

    result = verify_files(other, output)

    assert result.verdict == "failed"
    assert (result.recorded.key, result.recorded.selection) == (None, Selection())


def test_files_in_the_wrong_order_are_noticed(source: Path) -> None:
    output = converted(source, key="ema")

    with pytest.raises(UsageError, match=r"out\.safetensors: was made of .*last\.ckpt. Name the"):
        verify_files(output, source)


def test_an_original_that_alone_is_frozen_is_noticed(source: Path, tmp_path: Path) -> None:
    output = converted(source, key="ema")
    live = save(tmp_path / "live.pth", {name: value * 2 for name, value in small_state().items()})

    assert verify_files(output, live).swapped
    assert not verify_files(source, output).swapped


def test_report_and_document_tell_what_was_taken(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(converted(source, key="ema", eps=1e-3))

    assert run(["verify", str(source), output]) == 0
    assert "record of the converted file: key 'ema'; eps 0.001, given at conversion" in (
        capsys.readouterr().out
    )
    assert run(["verify", str(source), output, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["recorded"]["key"], document["recorded"]["eps"]) == ("ema", [0.001])


def test_a_record_of_another_form_is_no_selection(source: Path, tmp_path: Path) -> None:
    output = converted(source, key="ema")
    metadata = {"include": "bn1", "exclude": 3, "dims_of": ["a"], "state": "molten", "key": 7}
    with safe_open(output, "pt") as file:
        record = json.loads(file.metadata()["frozenbn.conversion"])
    record["options"] = metadata
    save_file(load_file(output), output, {"frozenbn.conversion": json.dumps(record)})

    result = verify_files(source, output, options=VerifyOptions(key="ema"))

    assert result.recorded.selection == Selection()
