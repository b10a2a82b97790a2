"""How files begin, by which they are told apart before what reads them is imported."""

from __future__ import annotations

import struct

__all__ = [
    "LEGACY_MAGIC",
    "LENGTH",
    "MAX_HEADER_BYTES",
    "has_legacy_magic",
    "is_zip",
    "looks_like_pickle",
    "looks_like_safetensors",
]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# PROTO n, LONG1 of 10 bytes: how the magic number is pickled in every protocol from 2 on.
_MAGIC_PICKLE = b"\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little") + b"."

LENGTH = struct.Struct("<Q")
"""Of the header of a safetensors file, which follows it."""
MAX_HEADER_BYTES = 32 << 20


def is_zip(head: bytes) -> bool:
    """Return whether a file that begins with ``head`` is a ZIP archive, as PyTorch writes them."""
    return head.startswith(b"PK\3\4")


def has_legacy_magic(head: bytes) -> bool:
    """Return whether a file that begins with ``head`` is a stream of the legacy format."""
    return head[:1] == b"\x80" and _MAGIC_PICKLE in head[:32]


def looks_like_safetensors(head: bytes, file_bytes: int) -> bool:
    """Return whether a file that begins with ``head`` can be a safetensors file."""
    if len(head) < 9 or head[8:9] != b"{":
        return False
    (length,) = LENGTH.unpack_from(head)
    # A cut-off download is still one; its header tells what is missing.
    return bool(length <= max(file_bytes, MAX_HEADER_BYTES))


def looks_like_pickle(head: bytes) -> bool:
    """Return whether a file that begins with ``head`` can be a pickle.

    Its first bytes may be the length of a safetensors header too.
    """
    return head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5")
