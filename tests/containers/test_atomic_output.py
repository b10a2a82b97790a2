"""An output is complete or absent, and nothing that exists is overwritten unasked."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from threading import Event

import pytest

from frozenbn_cli.containers.atomic_output import AtomicOutput, marked, sweep
from frozenbn_cli.errors import OutputError, UsageError
from tests.builders.processes import HANG_SECONDS


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def write(target: Path, content: bytes = b"new", *, replace: bool = False) -> None:
    with AtomicOutput(target, replace=replace) as output:
        with output.writing() as file:
            file.write(content)
        output.commit()


def failing(code: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_appears_whole_on_commit(target: Path) -> None:
    with AtomicOutput(target) as output:
        with output.writing() as file:
            file.write(b"new")
        assert not target.exists()
        output.commit()
        assert target.read_bytes() == b"new"

    assert contents(target.parent) == {target.name: b"new"}


def test_can_be_read_back_before_the_commit(target: Path) -> None:
    with AtomicOutput(target) as output:
        with output.writing() as file:
            file.write(b"new")

        assert output.path.read_bytes() == b"new"
        assert output.path.parent == target.parent


def test_is_absent_without_a_commit(target: Path) -> None:
    with AtomicOutput(target) as output, output.writing() as file:
        file.write(b"new")

    assert contents(target.parent) == {}


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("replace", [False, True])
def test_is_absent_after_an_exception(
    kind: type[BaseException], replace: bool, target: Path
) -> None:
    before = {target.name: b"old"} if replace else {}
    if replace:
        target.write_bytes(b"old")

    def interrupted() -> None:
        with AtomicOutput(target, replace=replace) as output, output.writing() as file:
            file.write(b"new")
            raise kind

    with pytest.raises(kind):
        interrupted()

    assert contents(target.parent) == before


@pytest.mark.parametrize("replace", [False, True])
def test_is_absent_if_the_disk_is_full_on_commit(
    replace: bool, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {target.name: b"old"} if replace else {}
    if replace:
        target.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))

    with pytest.raises(OutputError, match="No space left on device") as caught:
        write(target, replace=replace)

    assert caught.value.exit_code == 4
    assert str(target) in str(caught.value)
    assert contents(target.parent) == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_is_absent_if_the_disk_is_full_while_writing(
    target: Path,
) -> None:
    with AtomicOutput(target) as output, Path("/dev/full").open("wb", buffering=0) as full:
        output.file.close()
        output.file = full  # type: ignore[assignment]
        with pytest.raises(OutputError, match="No space left on device"), output.writing() as file:
            file.write(bytes(100_000))

    assert contents(target.parent) == {}


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the system takes no such advice")
@pytest.mark.parametrize("is_refused", [False, True])
def test_has_the_disk_begin_while_it_is_written(
    target: Path, monkeypatch: pytest.MonkeyPatch, is_refused: bool
) -> None:
    advised: list[tuple[int, int]] = []
    has_begun = Event()

    def advise(_: int, start: int, count: int, advice: int) -> None:
        assert advice == os.POSIX_FADV_DONTNEED
        advised.append((start, count))
        if count or is_refused:
            has_begun.set()
        if is_refused:
            raise OSError(errno.ENOSYS, "not here")

    monkeypatch.setattr(os, "posix_fadvise", advise)
    with AtomicOutput(target) as output:
        with output.writing() as file, output.flushing():
            file.write(bytes(100_000))
            file.flush()
            assert has_begun.wait(HANG_SECONDS)
        output.commit()

    assert contents(target.parent) == {target.name: bytes(100_000)}
    starts = [0, *(start + count for start, count in advised)]
    assert [start for start, _ in advised] == starts[:-1]
    assert len(advised) == 1 or not is_refused


def test_does_not_overwrite_an_existing_file(target: Path) -> None:
    target.write_bytes(b"old")

    with pytest.raises(UsageError, match=r"exists already.*force=True") as caught:
        write(target)

    assert caught.value.exit_code == 2
    assert contents(target.parent) == {target.name: b"old"}


def test_does_not_overwrite_a_file_that_appears_in_the_meantime(target: Path) -> None:
    with AtomicOutput(target) as output:
        target.write_bytes(b"other")
        with pytest.raises(UsageError, match="exists already"):
            output.commit()

    assert contents(target.parent) == {target.name: b"other"}


def test_does_not_overwrite_a_dangling_link(target: Path) -> None:
    target.symlink_to("nowhere")

    with pytest.raises(UsageError, match="exists already"):
        write(target)

    assert target.is_symlink()
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_replaces_a_file_if_asked(target: Path) -> None:
    target.write_bytes(b"old")

    write(target, replace=True)

    assert contents(target.parent) == {target.name: b"new"}


def test_needs_nothing_to_replace(target: Path) -> None:
    write(target, replace=True)

    assert contents(target.parent) == {target.name: b"new"}


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_does_without_hard_links(code: int, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", failing(code))

    write(target)

    assert contents(target.parent) == {target.name: b"new"}


def test_does_not_overwrite_without_hard_links(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EPERM))

    with AtomicOutput(target) as output:
        target.write_bytes(b"other")
        with pytest.raises(UsageError, match="exists already"):
            output.commit()

    assert contents(target.parent) == {target.name: b"other"}


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("replace", [False, True])
def test_takes_its_mode_from_the_umask(umask: int, replace: bool, target: Path) -> None:
    before = os.umask(umask)
    try:
        write(target, replace=replace)
    finally:
        os.umask(before)

    assert target.stat().st_mode & 0o777 == 0o666 & ~umask


def test_refuses_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="its folder does not exist"):
        write(tmp_path / "missing" / "model.safetensors")

    assert contents(tmp_path) == {}


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("name", ["folder", ".", "..", "/"])
def test_refuses_a_folder(
    name: str, replace: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)

    with pytest.raises(OutputError, match="is a folder"):
        write(Path(name), replace=replace)

    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_refuses_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(OutputError):
        write(tmp_path / "file" / "model.safetensors")


def test_refuses_a_name_beyond_the_file_system(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write(tmp_path / ("x" * 300))

    assert contents(tmp_path) == {}


@pytest.mark.skipif(os.name != "posix", reason="the limit counts bytes on POSIX")
@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127, "模" * 85, "🧊" * 63], ids=range(4))
def test_writes_the_longest_names_of_the_file_system(name: str, tmp_path: Path) -> None:
    write(tmp_path / name)

    assert contents(tmp_path) == {name: b"new"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_refuses_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    with pytest.raises(OutputError, match="Permission denied"):
        write(tmp_path / "model.safetensors")


def test_two_outputs_of_one_name_do_not_mix(target: Path) -> None:
    with AtomicOutput(target) as first, AtomicOutput(target) as second:
        for output, content in ((first, b"first"), (second, b"second")):
            with output.writing() as file:
                file.write(content)
        second.commit()
        with pytest.raises(UsageError, match="exists already"):
            first.commit()

    assert contents(target.parent) == {target.name: b"second"}


def test_shows_no_error_of_its_own_for_what_fails_inside(target: Path) -> None:
    with (
        pytest.raises(ZeroDivisionError),
        AtomicOutput(target) as output,
        output.writing(),
    ):
        _ = 1 / 0


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "device", "socket", "link to a device"])
def test_refuses_what_is_no_file(kind: str, replace: bool, tmp_path: Path) -> None:
    target = tmp_path / "model.safetensors"
    if kind == "pipe":
        os.mkfifo(target)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(target))
    elif kind == "device":
        target = Path(os.devnull)
    else:
        target.symlink_to(os.devnull)
    before = target.lstat()

    with pytest.raises(OutputError, match="is a device or a pipe, not a file"):
        write(target, replace=replace)

    assert target.lstat() == before


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_keeps_the_mode_of_what_it_replaces(mode: int, target: Path) -> None:
    target.write_bytes(b"old")
    target.chmod(mode)

    write(target, replace=True)

    assert (target.stat().st_mode & 0o777, target.read_bytes()) == (mode, b"new")


def test_makes_folders_that_outlast_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    folder = tmp_path / "new" / "newer"

    with AtomicOutput(folder / "model.safetensors", make_folder=True) as output:
        output.commit()

    assert {tmp_path.stat().st_ino, folder.parent.stat().st_ino} <= set(synced)


def left_behind(target: Path, *, hours: int = 25, name: str = "") -> Path:
    """Return a temporary file as a killed run leaves it."""
    output = AtomicOutput(target)
    path = output.path.with_name(name) if name else output.path
    path.write_bytes(b"unfinished")
    then = time.time() - hours * 3600
    os.utime(path, (then, then))
    return path


@pytest.mark.parametrize("mark", ["", "0a1b"])
def test_sweeps_what_killed_runs_left(mark: str, target: Path) -> None:
    with marked(mark) if mark else nullcontext():
        left = left_behind(target)

    assert sweep(target.parent) == [left]
    assert not left.exists()


@pytest.mark.parametrize("recursive", [False, True])
def test_sweeps_subfolders_where_outputs_go_there(recursive: bool, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    left = left_behind(tmp_path / "inner" / "model.safetensors")

    assert sweep(tmp_path, recursive=recursive) == ([left] if recursive else [])


def test_does_not_sweep_what_is_younger_than_a_day(target: Path) -> None:
    left_behind(target, hours=23)

    assert sweep(target.parent) == []


@pytest.mark.parametrize(
    "name", [".model.partial", "model.0a1b2c3d.partial", ".model.0a1b2c3.partial", ".x.partial~"]
)
def test_does_not_sweep_files_of_others(name: str, target: Path) -> None:
    left_behind(target, name=name)

    assert sweep(target.parent) == []


def test_does_not_sweep_what_a_living_process_writes(target: Path) -> None:
    with AtomicOutput(target) as output:
        os.utime(output.path, (0, 0))

        assert sweep(target.parent) == []
        assert output.path.exists()
