"""Names of files that are no UTF-8, which libraries in C++ and Rust cannot open."""

from __future__ import annotations

import atexit
import tempfile
from pathlib import Path

from frozenbn_cli.containers.temporary_folder import TemporaryFolder
from frozenbn_cli.errors import OutputError

__all__ = ["utf8_path"]


def utf8_path(path: Path) -> Path:
    """Return a path of the same file that is UTF-8: a link to it, until the process ends.

    Raises:
        OutputError: The temporary folder cannot hold it.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        pass
    else:
        return path
    try:
        folder = TemporaryFolder()
        atexit.register(folder.remove)
        link = folder.path / f"model{path.suffix if path.suffix.isascii() else ''}"
        link.symlink_to(path.absolute())
    except OSError as error:
        raise OutputError(
            f"cannot be written to ({error.strerror or error})", where=(tempfile.gettempdir(),)
        ) from error
    return link
