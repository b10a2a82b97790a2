"""Reads the stream that `torch.save` wrote before version 1.6, and still writes on request.

Five pickles (magic number, protocol, system, object, storage keys), then each storage in the
keys' order: 8 bytes of element count, and the elements. See ``torch.serialization._legacy_save``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from frozenbn_cli.containers.signatures import LEGACY_MAGIC
from frozenbn_cli.containers.source import Extent, stream, within
from frozenbn_cli.errors import DamagedFileError, UnsupportedFileError, located
from frozenbn_cli.pickles.reader import Pickle, read_pickle
from frozenbn_cli.pickles.values import describe

__all__ = ["LEGACY_PROTOCOL", "LegacyStream"]

LEGACY_PROTOCOL = 1001


@dataclass(frozen=True, slots=True)
class LegacyStream:
    """A legacy stream, read up to its storages.

    Attributes:
        pickle: The object that was saved, inert, with the names in the pickles around it.
        storages: The bytes of each storage, by its key.
        system: What the file says of the machine that wrote it; others may add to it.
    """

    pickle: Pickle
    storages: dict[str, Extent]
    system: dict[Any, Any]

    @classmethod
    def read(
        cls, source: Extent, element_sizes: Callable[[Pickle], dict[str, int]]
    ) -> LegacyStream:
        """Read the stream in ``source``.

        Args:
            source: All of its bytes.
            element_sizes: Finds the bytes per element of each storage, by key, in the object.

        Raises:
            DamagedFileError: The bytes contradict the format; says where.
        """
        file = stream(source)
        head = [_read(file, "magic number", LEGACY_MAGIC), _read(file, "protocol", LEGACY_PROTOCOL)]
        head.append(_read(file, "system description"))
        system = head[-1].value
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise UnsupportedFileError("written on a big-endian machine, whose bytes are swapped")
        pickle = _read(file, "object")
        tail = _read(file, "storage keys")
        keys = tail.value
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise DamagedFileError(
                "storage keys", expected="a list of strings", found=describe(keys)
            )
        with located("storages"):
            storages = _locate(source, file.tell(), keys, element_sizes(pickle))
        for other in (*head, tail):
            pickle.take_names(other)
        return cls(pickle, storages, system)


def _read(file: IO[bytes], name: str, expected: int | None = None) -> Pickle:
    with located(name):
        pickle = read_pickle(file)
        if expected is not None and pickle.value != expected:
            raise DamagedFileError(expected=describe(expected), found=describe(pickle.value))
    return pickle


def _locate(
    source: Extent, start: int, keys: list[str], element_sizes: dict[str, int]
) -> dict[str, Extent]:
    storages: dict[str, Extent] = {}
    for key in keys:
        if key in storages:
            raise DamagedFileError(f"storage {key!a} is listed twice")
        if key not in element_sizes:
            raise DamagedFileError(f"storage {key!a} is not used by the object")
        left = source.read(start, min(8, source.size_bytes - start))
        (count,) = struct.unpack("<q", left.ljust(8, b"\0"))
        size_bytes = count * element_sizes[key]
        if count < 0 or start + 8 + size_bytes > source.size_bytes:
            raise DamagedFileError(
                where=(f"byte {start:,}", f"storage {key}"),
                expected=f"{count:,} elements of {element_sizes[key]} bytes",
                found=f"the end of the file at byte {source.size_bytes:,}",
                advice="The file may be truncated; compare its size with the original's.",
            )
        storages[key] = within(source, start + 8, size_bytes)
        start += 8 + size_bytes
    if start != source.size_bytes:
        raise DamagedFileError(
            expected=f"the end of the file at byte {start:,}",
            found=f"{source.size_bytes - start:,} bytes more",
        )
    return storages
