"""Model files, opened by what they contain and not by what they are called."""

from __future__ import annotations

from pathlib import Path

from frozenbn_cli.checkpoints.checkpoint import Checkpoint
from frozenbn_cli.checkpoints.safetensors import open_safetensors
from frozenbn_cli.checkpoints.state_dict import open_legacy, open_zip
from frozenbn_cli.checkpoints.tensors import StoredTensor
from frozenbn_cli.containers.legacy_stream import has_legacy_magic
from frozenbn_cli.containers.safetensors_file import looks_like_safetensors
from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.errors import InputError, UnsupportedFileError, located

__all__ = ["Checkpoint", "StoredTensor", "open_checkpoint"]

_HEAD_BYTES = 64


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a model file; nothing in it is executed, and no tensor is read yet.

    Returns:
        The open file, to be used in a ``with`` block.

    Raises:
        InputError: The file cannot be read, is damaged or of an unsupported kind.
    """
    path = Path(path)
    with located(str(path)):
        if path.is_dir():
            raise InputError("is a folder, not a file")
        source = ByteSource(path)
    try:
        with located(str(path)):
            return _open(source)
    except BaseException:
        source.close()
        raise


def _open(source: ByteSource) -> Checkpoint:
    head = source.read(0, min(_HEAD_BYTES, source.size_bytes))
    if head.startswith(b"PK\3\4"):
        return open_zip(source)
    if has_legacy_magic(head):
        return open_legacy(source)
    if looks_like_safetensors(head, source.size_bytes):
        return open_safetensors(source)
    raise UnsupportedFileError(
        expected="a file that PyTorch or safetensors wrote", found=_likeness(head)
    )


def _likeness(head: bytes) -> str:
    """Return what the beginning of an unknown file looks like."""
    text = head.lstrip().lower()
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (run `git lfs pull` to get the file itself)"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page (a download that answered with a page)"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file, as Keras writes"
    if head.startswith(b"\x80"):
        return "a bare pickle"
    return f"bytes {head[:16].hex(' ')}"
