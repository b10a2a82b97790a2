"""What a file that is no model of ours looks like, so that the message can say it."""

from __future__ import annotations

__all__ = ["DCP_COMMAND", "MODEL_SUFFIXES", "likeness"]

MODEL_SUFFIXES = (".pt", ".pth", ".pth.tar", ".ckpt", ".bin", ".safetensors")
"""How the names of files end that are taken for model files in a folder."""

DCP_COMMAND = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {} model.pt"
"""Makes one file of a folder that `torch.distributed.checkpoint` wrote."""

_BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer (`git lfs pull` gets the file itself)"),
    (b"\x89HDF", "an HDF5 file, as Keras writes"),
    (b"GGUF", "a GGUF file, as llama.cpp writes"),
    (b"\x1f\x8b", "a gzip file (unpack it first)"),
    (b"BZh", "a bzip2 file (unpack it first)"),
    (b"\xfd7zXZ", "an xz file (unpack it first)"),
    (b"(\xb5/\xfd", "a zstd file (unpack it first)"),
    (b"7z\xbc\xaf", "a 7-Zip file (unpack it first)"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"%PDF", "a PDF document"),
    (b"\x7fELF", "a program or library"),
    (b"PK\5\6", "an empty ZIP archive"),
)
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head")


def likeness(head: bytes) -> str:
    """Return what a file that begins with ``head`` looks like."""
    if not head:
        return "an empty file"
    for beginning, name in _BEGINNINGS:
        if head.startswith(beginning):
            return name
    if head.lstrip().lower().startswith(_PAGES):
        return "a web page (a download that was answered with a page)"
    if head[257:262] == b"ustar":
        return "a tar archive (unpack it first, or save the model with PyTorch 0.1.10 or newer)"
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
    return f"bytes {head[:16].hex(' ')}"
