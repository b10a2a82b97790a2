"""Temporary folders that are removed in the end: by this run, or by the next if it is killed."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from frozenbn_cli.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows removes no folder that is in use.
    fcntl = None  # type: ignore[assignment]

__all__ = ["TemporaryFolder", "sweep_temporary", "temporary_folder"]

_PREFIX = "frozenbn-"
_NAME = re.compile(rf"{_PREFIX}[a-z0-9_]{{8}}")
_A_DAY = 24 * 60 * 60


class TemporaryFolder:
    """A folder that `sweep_temporary` leaves alone as long as the process lives that made it.

    Attributes:
        path: Where it is.

    Raises:
        OSError: There is none to be had.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = _locked(self.path)

    def remove(self) -> None:
        """Remove it, with what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _locked(folder: Path) -> int | None:
    """Lock a folder for as long as the descriptor is open; None if another process has it."""
    if fcntl is None:
        return None
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def sweep_temporary() -> list[Path]:
    """Remove what runs that were killed left among the temporary files, and return it.

    That is folders of this package and this user, older than a day, that no living process holds.
    """
    swept = []
    latest = time.time() - _A_DAY
    with suppress(OSError):  # What cannot be looked through or removed stays.
        for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            with suppress(OSError):
                if _NAME.fullmatch(path.name) and _removed(path, latest):
                    swept.append(path)
    return swept


def _removed(path: Path, latest: float) -> bool:
    if fcntl is None or path.is_symlink() or not path.is_dir():
        return False
    status = path.stat()
    if status.st_uid != os.getuid() or status.st_mtime > latest:
        return False
    lock = _locked(path)
    if lock is None:
        return False
    shutil.rmtree(path, ignore_errors=True)
    os.close(lock)
    return not path.exists()


@contextmanager
def temporary_folder(room_bytes: int) -> Iterator[str]:
    """Make a folder with the room that is needed, and remove it with what is in it.

    PyTorch ends the process where room lacks.

    Args:
        room_bytes: What is going to be written into it.

    Raises:
        OutputError: There is none to be had, or it lacks the room.
    """
    try:
        folder = TemporaryFolder()
    except OSError as error:
        raise OutputError(f"there is no temporary folder ({error.strerror or error})") from error
    try:
        free = shutil.disk_usage(folder.path).free
        if free < room_bytes:
            raise OutputError(
                "the temporary folder is full",
                where=(tempfile.gettempdir(),),
                expected=f"room for {room_bytes:,} bytes",
                found=f"{free:,}",
                advice="TMPDIR names another.",
            )
        yield str(folder.path)
    finally:
        folder.remove()
