"""What a killed run left among the temporary files is removed, and nothing else."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from frozenbn_cli import cli
from frozenbn_cli.containers.temporary_folder import TemporaryFolder, sweep_temporary
from tests.builders.files import save, small_state

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no such locks")


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def left(folder: Path, name: str = "frozenbn-0a_1b2c3", *, days: int = 2) -> Path:
    path = folder / name
    path.mkdir()
    (path / "0.pt").write_bytes(b"a private copy")
    then = path.stat().st_mtime - days * 86_400
    os.utime(path, (then, then))
    return path


def test_removes_what_a_killed_run_left(temporary: Path) -> None:
    path = left(temporary)

    assert sweep_temporary() == [path]
    assert list(temporary.iterdir()) == []


def test_leaves_what_a_living_process_holds(temporary: Path) -> None:
    folder = TemporaryFolder()
    os.utime(folder.path, (0, 0))

    assert sweep_temporary() == []
    assert folder.path.is_dir()
    folder.remove()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("name", ["frozenbn-short", "frozenbn-0a1b2c3d4", "other-0a1b2c3d"])
def test_leaves_the_folders_of_others(temporary: Path, name: str) -> None:
    left(temporary, name)

    assert sweep_temporary() == []


def test_leaves_what_is_new_and_what_is_no_folder(temporary: Path, tmp_path: Path) -> None:
    left(temporary, days=0)
    precious = left(tmp_path, "precious")
    (temporary / "frozenbn-abcdefgh").symlink_to(precious)
    (temporary / "frozenbn-abcdefgi").write_bytes(b"")
    for path in temporary.iterdir():
        os.utime(path, (0, 0), follow_symlinks=False)
    os.utime(temporary / "frozenbn-0a_1b2c3")

    assert sweep_temporary() == []
    assert (precious / "0.pt").exists()


def test_says_so(temporary: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = left(temporary)

    assert cli.run(["convert", str(save(tmp_path / "a.pt", small_state())), "--no-verify"]) == 0

    said = f"frozenbn: removed {path}, which a run that was killed had left\n"
    assert said in capsys.readouterr().err
