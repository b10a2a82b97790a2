"""The end of a report fits what was converted: which part was frozen, and what comes next."""

from pathlib import Path

import pytest

from frozenbn_cli import ConvertOptions, Selection, convert_file
from frozenbn_cli.cli import run
from frozenbn_cli.live_models.target import ModelTarget
from frozenbn_cli.reports.conversions import describe_conversion
from tests.builders.files import batch_norm, nested, save

NAMES = [f"layer{n}.{m}.bn" for n in (1, 2) for m in (0, 1)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "model.pth", nested(**{name: batch_norm() for name in (*NAMES, "bn1")}))


@pytest.mark.parametrize(
    ("selection", "said"),
    [
        (Selection.of(include="layer1"), "would be frozen: layer1 (2 layers)"),
        (Selection.of(exclude="layer2.0"), "would be frozen: layer1 (2 layers), layer2.1.bn, bn1"),
        (Selection.of(include=["layer1.0", "bn1"]), "would be frozen: layer1.0.bn, bn1"),
    ],
)
def test_a_part_that_is_frozen_is_listed(source: Path, selection: Selection, said: str) -> None:
    options = ConvertOptions(selection=selection, dry_run=True, dims=(1, 2, 3))

    (part,) = describe_conversion(convert_file(source, options=options)).parts

    assert said in part.notes


def test_nothing_is_listed_where_all_is_frozen(source: Path) -> None:
    result = convert_file(source, options=ConvertOptions(dry_run=True))

    (part,) = describe_conversion(result).parts

    assert not any("would be frozen" in note for note in part.notes)


def test_verify_lists_layers_and_the_part_that_is_frozen(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", str(source), "--include", "layer1", "--no-verify", "-q"]) == 0
    output = str(source.with_name("model.frozen.safetensors"))

    assert run(["verify", str(source), output, "--all"]) == 0

    shown = capsys.readouterr().out
    assert "\nfrozen: layer1 (2 layers)\n" in shown
    assert all(name in shown for name in NAMES)


def test_the_hint_builds_the_model_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = ModelTarget("my_net.py:build", {"width": 4})

    assert target.python == ("from my_net import build", "build(width=4)")
    assert ModelTarget("a.b:Net.make").python == ("from a.b import Net", "Net.make()")
    assert ModelTarget("elsewhere/net.py:build").python == ("", "")


def test_the_hint_says_when_the_optimizer_is_made(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["convert", str(source), "--no-verify", "-o", str(source.with_name("o.pt"))]) == 0

    shown = capsys.readouterr().out
    assert "on the way; make the optimizer after this:" in shown
    assert "state dict (PyTorch ZIP) → torch" in shown
