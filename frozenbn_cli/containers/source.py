"""A file that is read in pieces, never as a whole, and runs of bytes in it."""

from __future__ import annotations

import io
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from frozenbn_cli.errors import DamagedFileError, InputError

__all__ = [
    "CHUNK_BYTES",
    "ByteSource",
    "BytesExtent",
    "Extent",
    "FileExtent",
    "SourceWindow",
    "chunks",
    "stream",
    "views",
    "within",
]

CHUNK_BYTES = 1 << 20

_MAX_LINE_BYTES = 4096
_SMALL_BYTES = 16 << 20  # Beyond every pickle that is a record of its own.


class ByteSource:
    """A file opened for reading, from several threads if need be.

    Attributes:
        path: As the user gave it.
        size_bytes: When it was opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                # Opening a pipe would wait for its writer.
                raise InputError("cannot be read (not a regular file)")
            self._file = path.open("rb", buffering=0)
            self._state = self._state_now()
            self.size_bytes = self._state[0]
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(f"cannot be read ({reason})") from error
        except ValueError as error:  # A NUL in the path.
            raise InputError(f"cannot be read ({error})") from error

    def __reduce__(self) -> tuple[type[ByteSource], tuple[Path]]:
        return ByteSource, (self.path,)

    def read(self, start: int, count: int) -> bytes:
        """Return exactly ``count`` bytes from ``start``.

        Raises:
            DamagedFileError: The file ends before.
            InputError: The operating system cannot read the file.
        """
        self._check(start, count)
        with _as_input_error():
            content = self._read_at(start, count)
            while len(content) < count:
                content += self._more(start, len(content), count)
        return content

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from ``start``; memory is new in `read`, which takes time.

        Raises:
            DamagedFileError: The file ends before.
            InputError: The operating system cannot read the file.
        """
        self._check(start, len(buffer))
        done = 0
        with _as_input_error():
            if hasattr(os, "preadv"):
                done = os.preadv(self._file.fileno(), [buffer], start)
            while done < len(buffer):
                part = self._more(start, done, len(buffer))
                buffer[done : done + len(part)] = part
                done += len(part)

    def _check(self, start: int, count: int) -> None:
        if start < 0 or count < 0 or start + count > self.size_bytes:
            raise DamagedFileError(
                where=(f"byte {start:,}",),
                expected=f"{count:,} bytes",
                found=f"the end of the file at byte {self.size_bytes:,}",
                advice="The file may be truncated; compare its size with the original's.",
            )

    def _more(self, start: int, done: int, count: int) -> bytes:
        """Return what follows in a run of bytes whose first are there."""
        more = self._read_at(start + done, count - done)
        if not more:
            raise DamagedFileError(
                "the file became shorter while it was read", where=(f"byte {start:,}",)
            )
        return more

    def _read_at(self, start: int, at_most_bytes: int) -> bytes:
        if hasattr(os, "pread"):  # Threads that read at once need not wait for each other.
            return os.pread(self._file.fileno(), at_most_bytes, start)
        with self._lock:
            self._file.seek(start)
            return self._file.read(at_most_bytes) or b""

    def extent(self, start: int, size_bytes: int, crc32: int = 0) -> FileExtent:
        """Return a run of bytes, with the checksum that is stated of it."""
        return FileExtent(self, start, size_bytes, crc32)

    def check_unchanged(self) -> None:
        """Raise if the file was written to since it was opened.

        Raises:
            InputError: Its size or time is another one.
        """
        if self._state_now() != self._state:
            raise InputError(
                "was changed while it was read",
                where=(str(self.path),),
                advice="Wait until whatever writes it is done.",
            )

    def is_same_as(self, other: ByteSource) -> bool:
        """Return whether another is of the same file, as that was when this was opened."""
        return self._state == other._state

    def _state_now(self) -> tuple[int, ...]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@contextmanager
def _as_input_error() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from error


class SourceWindow(ByteSource):
    """A part of a file that is a file of its own, such as an archive in an archive.

    Args:
        source: The file.
        start: Offset of the first byte in it.
        size_bytes: The number of bytes.
    """

    def __init__(self, source: ByteSource, start: int, size_bytes: int) -> None:
        self.path = source.path
        self.size_bytes = size_bytes
        self._source = source
        self._start = start

    def __reduce__(self) -> tuple[type[SourceWindow], tuple[ByteSource, int, int]]:  # type: ignore[override]
        return SourceWindow, (self._source, self._start, self.size_bytes)

    def read(self, start: int, count: int) -> bytes:
        """Return exactly ``count`` bytes from ``start``, counted from the part's beginning."""
        return self._whole.read(start, count)

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from ``start``, counted from the part's beginning."""
        self._whole.read_into(start, buffer)

    @property
    def _whole(self) -> FileExtent:
        return FileExtent(self._source, self._start, self.size_bytes)

    def extent(self, start: int, size_bytes: int, crc32: int = 0) -> FileExtent:
        """Return a run of bytes where it lies in the whole file."""
        return FileExtent(self._source, self._start + start, size_bytes, crc32)

    def check_unchanged(self) -> None:
        """Raise if the file was written to since it was opened."""
        self._source.check_unchanged()

    def close(self) -> None:
        """Leave the file open, which others read too."""


class Extent(Protocol):
    """A run of bytes that is read on demand."""

    @property
    def size_bytes(self) -> int:
        """The number of bytes."""

    @property
    def crc32(self) -> int:
        """The checksum of all bytes that the file states; 0 where it states none."""

    def read(self, start: int, count: int) -> bytes:
        """Return exactly ``count`` bytes from ``start``, counted from the run's beginning."""


@dataclass(frozen=True, slots=True)
class FileExtent:
    """A run of bytes as it lies in a file.

    Attributes:
        source: The file.
        start: Offset of the first byte in the file.
        size_bytes: The number of bytes.
        crc32: The checksum of all bytes that the file states; 0 where it states none.
    """

    source: ByteSource
    start: int
    size_bytes: int
    crc32: int = 0

    def read(self, start: int, count: int) -> bytes:
        """Return exactly ``count`` bytes from ``start``, counted from the run's beginning."""
        self._check(start, count)
        return self.source.read(self.start + start, count)

    def read_into(self, start: int, buffer: memoryview) -> None:
        """Fill a buffer with the bytes from ``start``, counted from the run's beginning."""
        self._check(start, len(buffer))
        self.source.read_into(self.start + start, buffer)

    def _check(self, start: int, count: int) -> None:
        if start < 0 or start + count > self.size_bytes:
            raise DamagedFileError(
                where=(f"byte {self.start + start:,}",),
                expected=f"{count:,} bytes",
                found=f"{max(self.size_bytes - start, 0):,}",
            )


@dataclass(frozen=True, slots=True, eq=False)
class BytesExtent:
    """A run of bytes in memory.

    Attributes:
        content: The bytes.
    """

    content: bytes

    @property
    def size_bytes(self) -> int:
        """The number of bytes."""
        return len(self.content)

    @property
    def crc32(self) -> int:
        """No checksum is stated."""
        return 0

    def read(self, start: int, count: int) -> bytes:
        """Return exactly ``count`` bytes from ``start``."""
        if start < 0 or start + count > len(self.content):
            raise DamagedFileError(
                expected=f"{start + count:,} bytes", found=f"{self.size_bytes:,}"
            )
        return self.content[start : start + count]


def within(extent: Extent, start: int, size_bytes: int) -> Extent:
    """Return a part of a run of bytes."""
    if start < 0 or start + size_bytes > extent.size_bytes:
        raise DamagedFileError(
            expected=f"{start + size_bytes:,} bytes", found=f"{extent.size_bytes:,}"
        )
    if isinstance(extent, FileExtent):
        return FileExtent(extent.source, extent.start + start, size_bytes)
    return BytesExtent(extent.read(start, size_bytes))


def chunks(extent: Extent, start: int = 0, count: int | None = None) -> Iterator[bytes]:
    """Yield ``count`` bytes of ``extent`` from ``start`` in pieces of at most `CHUNK_BYTES`."""
    end = extent.size_bytes if count is None else start + count
    for position in range(start, end, CHUNK_BYTES):
        yield extent.read(position, min(CHUNK_BYTES, end - position))


def views(
    extent: Extent, start: int = 0, count: int | None = None, *, piece_bytes: int | None = None
) -> Iterator[memoryview]:
    """Yield what `chunks` does, each piece for as long as the next is not asked for.

    Pieces are of ``piece_bytes`` if that is given. Those of a file lie in one buffer, since memory
    that is new takes as long as reading into it.
    """
    if not isinstance(extent, FileExtent):
        yield from (memoryview(chunk) for chunk in chunks(extent, start, count))
        return
    end = extent.size_bytes if count is None else start + count
    piece_bytes = piece_bytes or CHUNK_BYTES
    buffer = memoryview(bytearray(min(piece_bytes, max(end - start, 0))))
    for position in range(start, end, piece_bytes):
        piece = buffer[: end - position]
        extent.read_into(position, piece)
        yield piece


def stream(extent: Extent, start: int = 0) -> BinaryIO:
    """Return a buffered file over ``extent`` from ``start``; positions count from its beginning.

    Its ``read`` and ``readline`` return no more than there is, so a lying length allocates nothing.
    """
    if extent.size_bytes <= _SMALL_BYTES:  # Read at once: a pickle takes many reads of few bytes.
        small = _SmallExtent(extent.read(0, extent.size_bytes))
        small.seek(start)
        return small
    raw = _RawExtent(extent)
    raw.seek(start)
    return _BoundedReader(raw, CHUNK_BYTES // 16)


def _line_bytes(count: int | None) -> int:
    return _MAX_LINE_BYTES if count is None or count < 0 else min(count, _MAX_LINE_BYTES)


class _SmallExtent(io.BytesIO):
    def readline(self, count: int | None = -1, /) -> bytes:
        return super().readline(_line_bytes(count))


class _RawExtent(io.RawIOBase):
    def __init__(self, extent: Extent) -> None:
        self._extent = extent
        self._position = 0

    @property
    def size_bytes(self) -> int:
        return self._extent.size_bytes

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        base = {0: 0, 1: self._position, 2: self._extent.size_bytes}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        count = min(len(buffer), max(self._extent.size_bytes - self._position, 0))
        if count:
            buffer[:count] = self._extent.read(self._position, count)
            self._position += count
        return count


class _BoundedReader(io.BufferedReader):
    raw: _RawExtent

    def read(self, count: int | None = -1, /) -> bytes:
        if count is not None and 0 <= count <= _MAX_LINE_BYTES:
            return super().read(count)
        left = max(self.raw.size_bytes - self.tell(), 0)
        return super().read(left if count is None or count < 0 else min(count, left))

    def readline(self, count: int | None = -1, /) -> bytes:
        return super().readline(_line_bytes(count))
