"""What every kind of checkpoint offers once it is open."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from frozenbn_cli.checkpoints.tensors import StoredTensor
from frozenbn_cli.containers.fingerprint import fingerprint
from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.errors import located

__all__ = ["Checkpoint"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An open model file; a context manager that closes it.

    Attributes:
        source: The file.
        kind: What it holds, such as ``state dict``.
        container: How it is stored, such as ``PyTorch ZIP``.
        entries: The tensors by name, in the file's order.
        left_out: What else the file holds beside the tensors: name and description.
        metadata: The free-form text of a safetensors file.
        archive: The file as an archive, if it is one.
    """

    source: ByteSource
    kind: str
    container: str
    entries: dict[str, StoredTensor]
    left_out: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    archive: ZipArchive | None = None

    @property
    def path(self) -> Path:
        """The file's path, as the user gave it."""
        return self.source.path

    @property
    def size_bytes(self) -> int:
        """The file's size."""
        return self.source.size_bytes

    def fingerprint(self) -> str:
        """Return the file's sha256; reads all of it and checks its checksums.

        Raises:
            DamagedFileError: A record's checksum does not match.
        """
        with located(str(self.path)):
            return fingerprint(self.source, self.archive)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.source.close()
