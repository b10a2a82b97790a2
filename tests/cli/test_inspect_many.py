"""`frozenbn inspect` of folders and of many files: at a glance first."""

import json
from pathlib import Path

import jsonschema
import pytest

from tests.builders.files import save, small_state
from tests.cli.test_app import run_here
from tests.reports.test_terminal import SCHEMA


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of three good files and one that is damaged."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.pt", "b.pt", "x/c.pt"):
        (tmp_path / "zoo" / name).parent.mkdir(exist_ok=True)
        save(tmp_path / "zoo" / name, small_state())
    (tmp_path / "zoo" / "bad.pt").write_bytes(b"PK\3\4junk")
    return Path("zoo")


@pytest.mark.usefixtures("zoo")
class TestFolders:
    def test_an_overview_comes_first_then_each_file(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, out, err = run_here(capsys, "inspect", "zoo")

        overview, counts, *sections = out.split("\n\n")
        rows = overview.splitlines()
        assert code == 3
        assert rows[0].split() == ["File", "Holds", "Layers", "eps", "Health", "convert", "would"]
        assert rows[1].split()[:3] == ["zoo/a.pt", "state", "dict"]
        assert rows[1].endswith("freeze 2 of 2 layers")
        assert "Cannot be read" in rows[3]
        assert counts == "3 files: 2 sound; 1 cannot be read"
        assert [text.splitlines()[0] for text in sections if "state dict ·" in text] == [
            "zoo/a.pt",
            "zoo/b.pt",
        ]
        assert len(err.splitlines()) == 1

    def test_of_many_only_the_overview_is_shown(self, capsys: pytest.CaptureFixture[str]) -> None:
        save(Path("zoo/d.pt"), small_state())

        _, out, _ = run_here(capsys, "inspect", "zoo", "-r")

        assert out.endswith("5 files: 4 sound; 1 cannot be read · --all shows each file\n")
        assert "zoo/x/c.pt" in out
        assert "bn1" not in out
        assert run_here(capsys, "inspect", "zoo", "-r", "--all")[1].count("bn1") == 4

    def test_the_document_holds_all(self, capsys: pytest.CaptureFixture[str]) -> None:
        _, out, _ = run_here(capsys, "inspect", "zoo", "-r", "--json")

        document = json.loads(out)
        jsonschema.validate(document, SCHEMA)
        assert len(document["files"]) == 4

    def test_says_where_to_look(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("outer").mkdir()
        Path("zoo").rename("outer/zoo")

        code, _, err = run_here(capsys, "inspect", "outer")

        assert code == 2
        assert "--recursive looks into the folders in it too" in err
