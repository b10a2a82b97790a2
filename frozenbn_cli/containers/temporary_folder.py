"""A temporary folder with the room that is needed: PyTorch ends the process where it lacks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from frozenbn_cli.errors import OutputError

__all__ = ["temporary_folder"]


@contextmanager
def temporary_folder(room_bytes: int) -> Iterator[str]:
    """Make a folder, and remove it with what is in it.

    Args:
        room_bytes: What is going to be written into it.

    Raises:
        OutputError: There is none to be had, or it lacks the room.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="frozenbn-")
    except OSError as error:
        raise OutputError(f"there is no temporary folder ({error.strerror or error})") from error
    with folder as path:
        free = shutil.disk_usage(path).free
        if free < room_bytes:
            raise OutputError(
                "the temporary folder is full",
                where=(tempfile.gettempdir(),),
                expected=f"room for {room_bytes:,} bytes",
                found=f"{free:,}",
                advice="TMPDIR names another.",
            )
        yield path
