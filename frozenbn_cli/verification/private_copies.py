"""Archives that may be run: copies that nobody else can change, written from what was read here."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from frozenbn_cli.containers.source import views
from frozenbn_cli.containers.temporary_folder import TemporaryFolder
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.containers.zip_writer import ZipWriter
from frozenbn_cli.errors import OutputError

__all__ = ["PrivateCopies"]

_DEBUG = ".debug_pkl"  # Pickles that say which line of Python code came from.


class PrivateCopies:
    """Copies in a temporary folder of their own, which leaving the ``with`` block removes.

    PyTorch reads archives otherwise than this package does in some corners, and a file can change
    between being searched and being loaded. A copy holds the records alone that were read.
    """

    def __init__(self) -> None:
        self._folder: TemporaryFolder | None = None
        self._count = 0

    def of(self, archive: ZipArchive, replaced: Mapping[str, bytes] | None = None) -> Path:
        """Write a copy, and return where it is.

        Args:
            archive: What is copied.
            replaced: Records that become others.

        Raises:
            DamagedFileError: A record is not what its archive says.
            OutputError: The temporary folder is full.
        """
        try:
            self._folder = self._folder or TemporaryFolder()
            path = self._folder.path / f"{self._count}.pt"
            self._count += 1
            with path.open("xb") as file:
                writer = ZipWriter(file)
                for name in archive.records:
                    if replaced and name in replaced:
                        writer.add(name, replaced[name])
                    elif not name.endswith(_DEBUG):
                        _copy(archive, name, writer)
                writer.write_directory()
        except OSError as error:
            raise OutputError(
                f"the temporary folder cannot be written to ({error.strerror or error})",
                where=(str(self._folder.path) if self._folder else tempfile.gettempdir(),),
                advice="TMPDIR names another; --no-verify does without.",
            ) from error
        return path

    def __enter__(self) -> PrivateCopies:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._folder is not None:
            self._folder.remove()


def _copy(archive: ZipArchive, name: str, writer: ZipWriter) -> None:
    extent = archive.extent(name)
    with writer.record(name, extent.size_bytes):
        for chunk in views(extent):
            writer.write(chunk)
