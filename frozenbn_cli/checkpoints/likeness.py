"""What a file that is no model of ours looks like, so that the message can say it."""

from __future__ import annotations

import shlex
import zlib
from contextlib import suppress

__all__ = ["DCP_COMMAND", "MODEL_SUFFIXES", "likeness", "unpacking"]

MODEL_SUFFIXES = (".pt", ".pth", ".pth.tar", ".ckpt", ".bin", ".safetensors", ".pt2")
"""How the names of files end that are taken for model files in a folder."""

DCP_COMMAND = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {} model.pt"
"""Makes one file of a folder that `torch.distributed.checkpoint` wrote."""

_BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer (`git lfs pull` gets the file itself)"),
    (b"\x89HDF", "an HDF5 file, as Keras writes"),
    (b"GGUF", "a GGUF file, as llama.cpp writes"),
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"(\xb5/\xfd", "a zstd file"),
    (b"7z\xbc\xaf", "a 7-Zip file"),
    (b"Rar!", "a RAR file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a program or library"),
    (b"PK\5\6", "an empty ZIP archive"),
)
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head")
_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"

# How what begins in some way is unpacked, and which suffix that takes off a name.
_TOOLS = (
    (_GZIP, "gunzip", ".gz"),
    (b"BZh", "bunzip2", ".bz2"),
    (b"\xfd7zXZ", "unxz", ".xz"),
    (b"(\xb5/\xfd", "unzstd", ".zst"),
)
_ARCHIVERS = ((b"7z\xbc\xaf", "7z x"), (b"Rar!", "unrar x"))


def unpacking(head: bytes, name: str) -> str:
    """Return the command that unpacks a file, as a sentence; empty if it is not packed.

    Args:
        head: What it begins with.
        name: Of the file.
    """
    command = _command(head, name)
    return f"Unpack it first: {command}" if command else ""


def _command(head: bytes, name: str) -> str:
    quoted = shlex.quote(name)
    if _is_tar(head) or (head.startswith(_GZIP) and _is_tar(_inflated(head))):
        return f"tar -xf {quoted}"
    for beginning, tool, suffix in _TOOLS:
        if head.startswith(beginning):
            short = name.removesuffix(suffix)
            unpacked = short if short not in ("", name) else f"{name}.unpacked"
            return f"{tool} < {quoted} > {shlex.quote(unpacked)}"
    return next(
        (f"{tool} {quoted}" for beginning, tool in _ARCHIVERS if head.startswith(beginning)), ""
    )


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def _inflated(head: bytes) -> bytes:
    """Return the beginning of what a gzip file holds."""
    with suppress(zlib.error):
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16).decompress(head, 512)
    return b""


def likeness(head: bytes) -> str:
    """Return what a file that begins with ``head`` looks like."""
    if not head:
        return "an empty file"
    for beginning, name in _BEGINNINGS:
        if head.startswith(beginning):
            return name
    if head.removeprefix(_BOM).lstrip().lower().startswith(_PAGES):
        return "a web page (a download that was answered with a page)"
    if _is_tar(head):
        return "a tar archive"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model"
    # ir_version (field 1, a small number), then producer_name (field 2, text of a stated length).
    is_protobuf = head[:1] == b"\x08"
    if is_protobuf and head[2:3] == b"\x12" and head[4 : 4 + sum(head[3:4])].isascii():
        return "an ONNX model"
    if is_protobuf or head[:2] in (b"\x0a\x1b", b"\x0a\x1c"):
        return "a protocol buffer, such as a TensorFlow model"
    if not head.strip(b"\0"):
        return "zeros (a download that did not finish)"
    if len(head) > 4 and head.isascii() and head.decode("ascii").split("\n")[0].isprintable():
        return f"text, which begins with {head[:40].decode('ascii')!a}"
    return f"bytes {head[:16].hex(' ')}"
