"""Which files a command names, and where their outputs belong."""

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.errors import InputError, UsageError
from frozenbn_cli.many_files.model_files import (
    check_collisions,
    find_checkpoints,
    find_model_files,
    names_several,
)
from tests.builders.files import save, small_state

INDEX = '{"weight_map": {"w": "model-00001-of-00001.safetensors"}}'


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with files at two depths, a sharded checkpoint, and what is no model."""
    names = [
        "zoo/a.pt", "zoo/b.pth.tar", "zoo/notes.txt", "zoo/.hidden.pt", "zoo/x/a.pt",
        "zoo/y/a.CKPT", "zoo/.git/c.pt", "zoo/big/model-00001-of-00001.safetensors",
    ]  # fmt: skip
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "zoo/big/model.safetensors.index.json").write_text(INDEX)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "zoo"


def found(*paths: str | Path, recursive: bool = False, to: str = "out") -> dict[str, str]:
    files = find_model_files(paths, output_dir=Path(to), recursive=recursive)
    return {str(file.path): str(file.output_dir) for file in files}


@pytest.mark.usefixtures("zoo")
class TestFinding:
    def test_a_folder_stands_for_the_model_files_in_it(self) -> None:
        assert found("zoo") == {"zoo/a.pt": "out", "zoo/b.pth.tar": "out", "zoo/big": "out"}

    def test_recursive_looks_into_folders_and_keeps_them_apart(self) -> None:
        assert found("zoo", recursive=True) == {
            "zoo/a.pt": "out",
            "zoo/b.pth.tar": "out",
            "zoo/big": "out",
            "zoo/x/a.pt": "out/x",
            "zoo/y/a.CKPT": "out/y",
        }

    def test_a_folder_that_cannot_be_looked_into_is_named_as_an_input(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        listed = Path.iterdir

        def iterdir(path: Path) -> Iterator[Path]:
            if path.name == "x":
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return listed(path)

        monkeypatch.setattr(Path, "iterdir", iterdir)

        assert list(found("zoo", recursive=True)) == [
            "zoo/a.pt", "zoo/b.pth.tar", "zoo/big", "zoo/x", "zoo/y/a.CKPT",
        ]  # fmt: skip
        with pytest.raises(InputError, match=r"zoo/x: cannot be read \(Permission denied\)"):
            open_checkpoint("zoo/x")

    def test_a_sharded_checkpoint_stays_one_input(self) -> None:
        assert found("zoo/big") == {"zoo/big": "out"}

    def test_several_indexes_in_a_folder_are_inputs_and_their_shards_are_not(
        self, zoo: Path
    ) -> None:
        (zoo / "big" / "other.safetensors.index.json").write_text("{}")
        (zoo / "big" / "single.safetensors").write_bytes(b"")

        assert [Path(path).name for path in found("zoo/big")] == [
            "model.safetensors.index.json", "other.safetensors.index.json", "single.safetensors",
        ]  # fmt: skip

    def test_files_are_laid_out_from_the_folder_that_they_have_in_common(self) -> None:
        expected = {"zoo/x/a.pt": "out/x", "zoo/y/a.CKPT": "out/y"}

        assert found("zoo/x/a.pt", "zoo/y/a.CKPT") == expected
        assert found("zoo/*/a.*") == expected
        assert found("zoo/x", "zoo/y") == expected

    def test_the_layout_depends_on_the_arguments_not_on_what_is_found(self, zoo: Path) -> None:
        (zoo / "y" / "a.CKPT").unlink()

        assert found("zoo/*/a.*") == {"zoo/x/a.pt": "out/x"}

    def test_a_file_that_is_named_twice_is_one(self, zoo: Path) -> None:
        assert found("zoo", "zoo/a.pt", zoo / "x" / ".." / "a.pt") == found("zoo")

    def test_a_pattern_finds_what_lies_deeper(self) -> None:
        assert set(found("zoo/**/a.pt")) == {"zoo/a.pt", "zoo/x/a.pt"}

    def test_a_name_that_looks_like_a_pattern_is_a_name_if_it_is_there(self, zoo: Path) -> None:
        (zoo / "[x]").mkdir()
        (zoo / "[x]" / "a[12].pt").write_bytes(b"")

        assert found("zoo/[x]/a[12].pt") == {"zoo/[x]/a[12].pt": "out"}

    def test_a_missing_file_is_left_to_its_conversion(self) -> None:
        assert found("missing.pt", "zoo/a.pt") == {"missing.pt": "out", "zoo/a.pt": "out/zoo"}

    def test_outputs_of_an_earlier_run_are_no_inputs(self, zoo: Path) -> None:
        for name in ("out/z.frozen.safetensors", "a.frozen.pt"):
            (zoo / name).parent.mkdir(exist_ok=True)
            (zoo / name).write_bytes(b"")

        below = found("zoo", recursive=True, to="zoo/out")
        beside = found("zoo", to="zoo")

        assert "zoo/out/z.frozen.safetensors" not in below
        assert "zoo/a.frozen.pt" in below
        assert set(beside) == {"zoo/a.pt", "zoo/b.pth.tar", "zoo/big"}
        assert found("zoo/a.frozen.pt", to="zoo") == {"zoo/a.frozen.pt": "zoo"}

    def test_what_names_nothing_is_refused(self, zoo: Path) -> None:
        (zoo / "none").mkdir()

        with pytest.raises(UsageError, match=r"^zoo/none: expected model files .* recursive=True"):
            found("zoo/none")
        with pytest.raises(UsageError, match=r"^zoo/\*\.onnx: no file matches"):
            found("zoo/*.onnx")
        with pytest.raises(UsageError, match="no input"):
            found()

    def test_names_several_tells_folders_and_patterns_from_one_file(self, zoo: Path) -> None:
        (zoo / "none").mkdir()

        assert names_several(Path("zoo"))
        assert names_several(Path("zoo/*.pt"))
        for one in ("zoo/a.pt", "zoo/big", "zoo/none", "missing.pt", "missing [1].pt", "a" * 5000):
            assert not names_several(Path(one))


class TestCollisions:
    def check(self, folder: Path, to: str | None = None) -> None:
        files = find_model_files([folder], output_dir=Path("out"))
        check_collisions(files, to)  # type: ignore[arg-type]

    def test_two_inputs_of_one_output_are_refused(self, tmp_path: Path) -> None:
        for name in ("a.pt", "a.pth", "a.safetensors", "b.pt"):
            save(tmp_path / name, small_state())

        with pytest.raises(UsageError) as refused:
            self.check(tmp_path)

        assert str(refused.value) == (
            f"out/a.frozen.safetensors: is the output of {tmp_path}/a.pt and {tmp_path}/a.pth, and "
            "of 1 more. Convert them into folders of their own."
        )

    # Creating scripted modules is deprecated as of PyTorch 2.14, and still in use.
    @pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
    def test_what_becomes_torchscript_does_not_collide_with_a_state_dict(
        self, tmp_path: Path
    ) -> None:
        save(tmp_path / "a.pth", small_state())
        torch.jit.script(torch.nn.BatchNorm2d(3).eval()).save(tmp_path / "a.pt")

        self.check(tmp_path)
        with pytest.raises(UsageError, match="is the output of"):
            self.check(tmp_path, "safetensors")

    def test_a_damaged_file_collides_with_what_it_seems_to_be(self, tmp_path: Path) -> None:
        save(tmp_path / "a.pth", small_state())
        (tmp_path / "a.pt").write_bytes(b"junk")

        with pytest.raises(UsageError, match="is the output of"):
            self.check(tmp_path)


@pytest.mark.usefixtures("zoo")
class TestLooking:
    def seen(self, *paths: str, recursive: bool = False) -> list[str]:
        return [str(path) for path in find_checkpoints(map(Path, paths), recursive=recursive)]

    def test_a_folder_stands_for_its_files_each_once(self) -> None:
        expected = ["zoo/a.pt", "zoo/b.pth.tar", "zoo/big"]

        assert self.seen("zoo", "zoo/a.pt") == expected
        assert self.seen("zoo", recursive=True) == [*expected, "zoo/x/a.pt", "zoo/y/a.CKPT"]

    def test_outputs_of_earlier_runs_are_among_them(self) -> None:
        Path("zoo/a.frozen.pt").touch()

        assert "zoo/a.frozen.pt" in self.seen("zoo")

    def test_what_is_one_input_stays_one(self) -> None:
        Path("empty").mkdir()

        assert self.seen("zoo/big", "gone.pt", "empty") == ["zoo/big", "gone.pt", "empty"]

    def test_says_where_only_folders_in_a_folder_have_any(self) -> None:
        Path("outer/inner").mkdir(parents=True)
        for name in ("a.pt", "b.pt"):
            Path("outer/inner", name).touch()

        with pytest.raises(UsageError, match="recursive=True looks into"):
            self.seen("outer")
        assert self.seen("outer", recursive=True) == ["outer/inner/a.pt", "outer/inner/b.pt"]
