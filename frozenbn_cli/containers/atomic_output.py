"""An output file that is complete or not there."""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import BinaryIO

from frozenbn_cli.errors import OutputError, UsageError

try:
    import fcntl
except ImportError:  # Windows does not delete what is open anyway.
    fcntl = None  # type: ignore[assignment]

__all__ = ["AtomicOutput", "marked", "remove_marked", "sweep"]

_FLUSH_SECONDS = 0.005
_A_DAY = 24 * 60 * 60
_PARTIAL = re.compile(r"\..{1,40}\.(\w+-)?[0-9a-f]{8}\.partial", re.DOTALL)

_mark: ContextVar[str] = ContextVar("mark", default="")


@contextmanager
def marked(mark: str) -> Iterator[None]:
    """Put ``mark`` into the names of the temporary files that are made inside.

    A process that is killed cannot remove its file; `remove_marked` does it for those of one run,
    whatever others write into the same folder.
    """
    token = _mark.set(f"{mark}-")
    try:
        yield
    finally:
        _mark.reset(token)


def remove_marked(folder: Path, mark: str) -> None:
    """Remove the temporary files in ``folder`` whose names carry ``mark``."""
    for path in folder.glob(f".*.{mark}-*.partial"):
        with suppress(OSError):
            path.unlink()


def sweep(folder: Path, *, recursive: bool = False) -> list[Path]:
    """Remove what runs that were killed left in a folder, and return it.

    That is temporary files of this package, older than a day, that no living process holds.

    Args:
        folder: Where outputs go.
        recursive: Whether they go into its subfolders too.
    """
    swept: list[Path] = []
    latest = time.time() - _A_DAY
    with suppress(OSError):  # What cannot be looked through or removed stays.
        for path in folder.glob("**/.*.partial" if recursive else ".*.partial"):
            with suppress(OSError):
                if _PARTIAL.fullmatch(path.name) and _is_abandoned(path, latest):
                    path.unlink()
                    swept.append(path)
    return swept


def _is_abandoned(path: Path, latest: float) -> bool:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_mtime > latest:
        return False
    with path.open("r+b") as file:
        return _locked(file)


def _locked(file: BinaryIO) -> bool:
    """Lock a file for as long as it is open; False if another process has."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True


class AtomicOutput:
    """A temporary file beside its target, which it becomes on `commit` and not before.

    Leaving the ``with`` block without a commit, by an exception or not, removes the file.

    Args:
        target: Where the output belongs.
        replace: Whether a file that is there already may be replaced.
        make_folder: Whether its folder is made with it; it must exist otherwise.

    Raises:
        UsageError: The target exists and may not be replaced.
        OutputError: The target cannot be written.
    """

    def __init__(self, target: Path, *, replace: bool = False, make_folder: bool = False) -> None:
        self.target = target
        self._replace = replace
        self._make_folder = make_folder
        # At most 40 characters are at most 160 bytes, of the 255 that a name may have.
        unique = f"{_mark.get()}{os.urandom(4).hex()}"
        self.path = target.parent / f".{target.name[:40]}.{unique}.partial"
        self.file: BinaryIO

    def __enter__(self) -> AtomicOutput:
        self.check_target()
        with _as_output_error(self.target):
            if self._make_folder:
                _make_folder(self.target.parent)
            self.file = self.path.open("x+b")
            _locked(self.file)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self.file.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def check_target(self, *, may_exist: bool = False) -> None:
        """Raise if the target cannot be written, before any work is done.

        Args:
            may_exist: Whether one that exists, and may not be replaced, is accepted for now.
        """
        with _as_output_error(self.target):
            if self.target.is_dir():
                raise OutputError("is a folder, not a file", where=(str(self.target),))
            if self.target.exists() and not self.target.is_file():
                raise OutputError("is a device or a pipe, not a file", where=(str(self.target),))
            if not (self._make_folder or self.target.parent.is_dir()):
                raise OutputError(
                    "cannot be written: its folder does not exist", where=(str(self.target),)
                )
        if self.is_taken and not may_exist:
            raise _exists(self.target)

    @property
    def is_taken(self) -> bool:
        """Whether there is something that may not be replaced."""
        return not self._replace and os.path.lexists(self.target)

    @contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """Give the file; what the operating system refuses becomes an `OutputError`."""
        with _as_output_error(self.target):
            yield self.file
            self.file.flush()

    @contextmanager
    def flushing(self) -> Iterator[None]:
        """Have what is written inside go to the disk meanwhile, so that `sync` waits for less."""
        is_done, file = Event(), self.file.fileno()
        Thread(target=_flush_until, args=(is_done, file), daemon=True).start()
        try:
            yield
        finally:
            is_done.set()  # Nobody waits for a disk that takes its time.

    def sync(self) -> None:
        """Wait until what was written is on the disk."""
        with _as_output_error(self.target):
            self.file.flush()
            os.fsync(self.file.fileno())

    def commit(self) -> None:
        """Make the file durable and give it its name, in one step."""
        self.sync()
        with _as_output_error(self.target):
            if self._replace:
                self._take_mode()
            self.file.close()
            if self._replace:
                self.path.replace(self.target)
            else:
                self._take_free_name()
            _sync_folder(self.target.parent)

    def _take_mode(self) -> None:
        with suppress(FileNotFoundError):
            self.path.chmod(stat.S_IMODE(self.target.stat().st_mode) & 0o777)

    def _take_free_name(self) -> None:
        # A link, unlike a rename, fails where the name was taken in the meantime.
        try:
            os.link(self.path, self.target)
        except FileExistsError:
            raise _exists(self.target) from None
        except OSError:
            # This file system has no hard links.
            if os.path.lexists(self.target):
                raise _exists(self.target) from None
            self.path.replace(self.target)


def _flush_until(is_done: Event, file: int) -> None:
    flushed = 0
    with suppress(AttributeError, OSError):  # Advice that not every system takes.
        while not is_done.wait(_FLUSH_SECONDS):
            size_bytes = os.fstat(file).st_size
            # Linux begins to write what lies there, and waits for none of it, as fsync would.
            os.posix_fadvise(file, flushed, size_bytes - flushed, os.POSIX_FADV_DONTNEED)
            flushed = size_bytes


def _exists(target: Path) -> UsageError:
    return UsageError("exists already", where=(str(target),), advice="Pass --force to replace it.")


@contextmanager
def _as_output_error(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OutputError(f"cannot be written ({reason})", where=(str(target),)) from error


def _make_folder(folder: Path) -> None:
    """Make a folder, and those that it lies in, such that they outlast a crash."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        _sync_folder(each.parent)


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # Not every system opens folders.
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
