"""Reads ZIP archives strictly: what the directory says is checked before a record is read.

Follows `APPNOTE.TXT 6.3.10 <https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT>`_; the
section numbers below are its own. PyTorch stores records uncompressed and aligned to 64 bytes.

What another reader could take for another archive is refused, since what was looked through here
may be loaded by it: PyTorch's follows a ZIP64 locator wherever there is one, takes names that
differ by case for one, and a file with `PTMF` at byte 4 for no ZIP archive at all.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from zlib_ng.zlib_ng import crc32

from frozenbn_cli.containers.source import (
    CHUNK_BYTES,
    ByteSource,
    Extent,
    FileExtent,
    chunks,
    views,
)
from frozenbn_cli.errors import DamagedFileError, UnsupportedFileError, located

__all__ = [
    "END",
    "END64",
    "END64_LOCATOR",
    "ENTRY",
    "LOCAL",
    "Record",
    "ZipArchive",
    "check_crc32",
]

_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 0x2041  # Flag bits 0, 6 and 13 (4.4.4).
_MAX_RECORDS = 200_000
_MAX_DIRECTORY_BYTES = 64 << 20
_MAX_INFLATION = 1032  # Deflate cannot do more (zlib's technical notes).
_MAX_INFLATED_PICKLE_BYTES = 64 << 20  # A pickle, unlike a tensor, is held in memory.
_FLATBUFFER = b"PTMF"  # Marks a mobile module, whatever the file begins with.


@dataclass(frozen=True, slots=True)
class Record:
    """A named run of bytes in an archive, as the central directory describes it.

    Attributes:
        name: With forward slashes.
        method: 0 stored, 8 deflated.
        crc32: Of the uncompressed bytes; 0 also stands for *not computed*.
        stored_bytes: The size in the archive.
        size_bytes: The size uncompressed.
        header_start: Offset of the local header in the file.
    """

    name: str
    method: int
    crc32: int
    stored_bytes: int
    size_bytes: int
    header_start: int


class ZipArchive:
    """The records of a ZIP archive, in the directory's order.

    Raises:
        DamagedFileError: The directory contradicts the file or itself.
        UnsupportedFileError: The archive is encrypted, split or compressed in an unknown way.
    """

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self._data_starts: dict[str, int] = {}
        if source.size_bytes >= 8 and source.read(4, 4) == _FLATBUFFER:
            raise DamagedFileError(
                "a file of two kinds", where=("byte 4",), expected="a ZIP version", found="'PTMF'"
            )
        directory_start, directory, count = _read_directory(source)
        self.records: dict[str, Record] = {}
        names: dict[bytes, str] = {}
        position = 0
        for _ in range(count):
            with located(f"ZIP directory, byte {directory_start + position:,}"):
                record, position = _parse_entry(directory, position)
                other = names.setdefault(record.name.encode().lower(), record.name)
                if record.name in self.records:
                    raise DamagedFileError(f"two records named {record.name!a}")
                if other != record.name:
                    raise DamagedFileError(
                        f"records {other!a} and {record.name!a} are one to PyTorch, which ignores "
                        "case"
                    )
                self.records[record.name] = record
        if position != len(directory):
            raise DamagedFileError(
                "ZIP directory",
                expected=f"{count:,} records in {len(directory):,} bytes",
                found=f"{position:,} bytes",
            )
        self._check_places(directory_start)

    def _check_places(self, directory_start: int) -> None:
        end, previous = 0, ""
        for record in sorted(self.records.values(), key=lambda record: record.header_start):
            if record.header_start < end:
                raise DamagedFileError(f"records {previous!a} and {record.name!a} overlap")
            name_bytes = len(record.name.encode())
            end = record.header_start + LOCAL.size + name_bytes + record.stored_bytes
            previous = record.name
        if end > directory_start:
            raise DamagedFileError(f"record {previous!a} reaches into the directory")

    def extent(self, name: str) -> Extent:
        """Return the bytes of a record, to be read on demand.

        Raises:
            DamagedFileError: There is no such record, or its local header contradicts the
                directory.
        """
        record = self.records.get(name)
        if record is None:
            raise DamagedFileError(f"record {name!a} is missing from the archive")
        if name not in self._data_starts:
            with located(f"record {name}"):
                self._data_starts[name] = _data_start(self.source, record)
        start = self._data_starts[name]
        if record.method == _STORED:
            return self.source.extent(start, record.size_bytes, record.crc32)
        return _Inflated(FileExtent(self.source, start, record.stored_bytes), record)

    def read(self, name: str, *, at_most_bytes: int = 1 << 20) -> bytes:
        """Return the whole of a small record, its checksum checked."""
        extent = self.extent(name)
        with located(f"record {name}"):
            if extent.size_bytes > at_most_bytes:
                raise DamagedFileError(
                    "size",
                    expected=f"at most {at_most_bytes:,} bytes",
                    found=f"{extent.size_bytes:,}",
                )
            content = extent.read(0, extent.size_bytes)
            check_crc32(self.records[name].crc32, crc32(content))
        return content

    def check(self, name: str, before_each: Callable[[], None] = lambda: None) -> None:
        """Read a record and compare its checksum; a stored checksum of 0 was not computed.

        Args:
            name: The record.
            before_each: Called before each piece of it.

        Raises:
            DamagedFileError: The bytes are not those that were written.
        """
        extent, record = self.extent(name), self.records[name]
        if not record.crc32 and record.method == _STORED:
            return
        found = 0
        for chunk in views(extent):
            before_each()
            found = crc32(chunk, found)
        with located(f"record {name}"):
            check_crc32(record.crc32, found)


def check_crc32(expected: int, found: int) -> None:
    """Raise if a record's checksum is not ``expected``; 0 stands for *not computed*."""
    if expected and found != expected:
        raise DamagedFileError(
            "checksum (CRC-32)",
            expected=f"{expected:08x}",
            found=f"{found:08x}",
            advice="The file was damaged after it was written; fetch it again.",
        )


# Section 4.3.16: end of central directory, from the signature to the comment's length.
END = struct.Struct("<4sHHHHIIH")
# Section 4.3.15: ZIP64 locator. Section 4.3.14: ZIP64 end of central directory.
END64_LOCATOR = struct.Struct("<4sIQI")
END64 = struct.Struct("<4sQHHIIQQQQ")
# Section 4.3.12: one entry of the central directory. Section 4.3.7: local header.
ENTRY = struct.Struct("<4sHHHHHHIIIHHHHHII")
LOCAL = struct.Struct("<4sHHHHHIIIHH")
# The count, size and start in END that send to END64 (4.4.1.4).
_LIMITS = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)


def _read_directory(source: ByteSource) -> tuple[int, bytes, int]:
    """Return the central directory's offset, its bytes and its number of records."""
    tail_start = max(source.size_bytes - END.size - 0xFFFF, 0)
    tail = source.read(tail_start, source.size_bytes - tail_start)
    found = tail.rfind(b"PK\5\6")
    while found >= 0 and found + END.size > len(tail):
        found = tail.rfind(b"PK\5\6", 0, found)
    if found < 0:
        raise DamagedFileError(
            "ZIP archive without its directory, which stands at the end",
            advice="The file is truncated, or its download did not finish.",
        )
    end = tail_start + found
    (_, disk, directory_disk, count_here, count, size, start, _) = END.unpack_from(tail, found)
    if disk or directory_disk or count_here != count:
        raise UnsupportedFileError("the ZIP archive is split over several files")
    stated = (count, size, start)
    if end64 := _read_end64(source, end):
        end, *found64 = end64
        for value, limit, value64 in zip(stated, _LIMITS, found64, strict=True):
            if value not in (limit, value64):
                raise DamagedFileError(
                    "ZIP directory",
                    expected=f"one end for all readers: {value:,}",
                    found=f"{value64:,} in the ZIP64 end",
                )
        count, size, start = found64
    elif any(value == limit for value, limit in zip(stated, _LIMITS, strict=True)):
        where = (f"byte {end - END64_LOCATOR.size:,}",)
        raise DamagedFileError("ZIP64 locator is missing", where=where)
    if count > _MAX_RECORDS or size > _MAX_DIRECTORY_BYTES:
        raise UnsupportedFileError(f"ZIP archive of {count:,} records, which is beyond any model")
    if start + size != end:
        raise DamagedFileError(
            "ZIP directory", expected=f"to end at byte {end:,}", found=f"{start + size:,}"
        )
    return start, source.read(start, size), count


def _read_end64(source: ByteSource, end: int) -> tuple[int, int, int, int] | None:
    """Return where the ZIP64 end stands, and its count, size and start; None if there is none."""
    locator_start = end - END64_LOCATOR.size
    if locator_start < 0:
        return None
    located_end = END64_LOCATOR.unpack(source.read(locator_start, END64_LOCATOR.size))
    signature, disk, end64, disks = located_end
    if signature != b"PK\6\7":
        return None
    fields = END64.unpack(source.read(end64, END64.size))
    if fields[0] != b"PK\6\6":
        raise DamagedFileError("ZIP64 directory end is missing", where=(f"byte {end64:,}",))
    _, size_bytes, _, _, this_disk, directory_disk, count_here, count, size, start = fields
    if disk or disks > 1 or this_disk or directory_disk or count_here != count:
        raise UnsupportedFileError("the ZIP archive is split over several files")
    if end64 + 12 + size_bytes != locator_start:  # The size does not count the first 12 bytes.
        raise DamagedFileError(
            "ZIP64 directory end",
            expected=f"to end at byte {locator_start:,}",
            found=f"{end64 + 12 + size_bytes:,}",
        )
    return end64, count, size, start


def _parse_entry(directory: bytes, position: int) -> tuple[Record, int]:
    if position + ENTRY.size > len(directory):
        raise DamagedFileError("the directory ends within an entry")
    (
        signature, _, _, flags, method, _, _, crc32, stored, size,
        name_bytes, extra_bytes, comment_bytes, _, _, _, header,
    ) = ENTRY.unpack_from(directory, position)  # fmt: skip
    if signature != b"PK\1\2":
        raise DamagedFileError("an entry does not begin with its signature")
    start = position + ENTRY.size
    end = start + name_bytes + extra_bytes + comment_bytes
    if end > len(directory):
        raise DamagedFileError("the directory ends within an entry")
    name = _record_name(directory[start : start + name_bytes])
    extra = directory[start + name_bytes : start + name_bytes + extra_bytes]
    size, stored, header = _with_zip64(extra, size, stored, header)
    if flags & _ENCRYPTED:
        raise UnsupportedFileError(f"record {name!a} is encrypted")
    if method not in (_STORED, _DEFLATED):
        raise UnsupportedFileError(f"record {name!a} is compressed by method {method}")
    if (method == _STORED and size != stored) or size > stored * _MAX_INFLATION + 64:
        raise DamagedFileError(
            f"record {name!a} claims {size:,} bytes, which its {stored:,} cannot hold"
        )
    if method == _DEFLATED and name.endswith(".pkl") and size > _MAX_INFLATED_PICKLE_BYTES:
        raise UnsupportedFileError(f"record {name!a} of {size:,} bytes is beyond any model")
    return Record(name, method, crc32, stored, size, header), end


def _record_name(encoded: bytes) -> str:
    try:
        name = encoded.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedFileError(f"a record name is not UTF-8: {encoded[:60]!r}") from error
    parts = name.split("/")
    if not name or "\\" in name or "\0" in name or parts[0] == "" or ".." in parts:
        raise DamagedFileError(f"record name {name[:60]!a} leads out of the archive")
    return name


def _with_zip64(extra: bytes, *fields: int) -> tuple[int, ...]:
    """Replace the fields that are all ones by those of the ZIP64 extra field (4.5.3)."""
    wide = [index for index, value in enumerate(fields) if value == 0xFFFFFFFF]
    if not wide:
        return fields
    position = 0
    while position + 4 <= len(extra):
        identifier, size = struct.unpack_from("<HH", extra, position)
        position += 4
        if identifier == 1:  # Where there are several, readers differ in which one counts.
            if not 8 * len(wide) <= size <= len(extra) - position:
                break
            values = list(fields)
            for index, value in zip(
                wide, struct.unpack_from(f"<{len(wide)}Q", extra, position), strict=True
            ):
                values[index] = value
            return tuple(values)
        position += size
    raise DamagedFileError("the entry lacks its ZIP64 sizes")


def _data_start(source: ByteSource, record: Record) -> int:
    encoded = record.name.encode()
    header = source.read(record.header_start, LOCAL.size + len(encoded))
    fields = LOCAL.unpack_from(header)
    name_bytes, extra_bytes = int(fields[9]), int(fields[10])
    name_start = record.header_start + LOCAL.size
    if fields[0] != b"PK\3\4" or fields[3] != record.method:
        raise DamagedFileError("no local header", where=(f"byte {record.header_start:,}",))
    if name_bytes != len(encoded) or header[LOCAL.size :] != encoded:
        raise DamagedFileError(
            "the local header names another record", where=(f"byte {name_start:,}",)
        )
    start = name_start + name_bytes + extra_bytes
    if start + record.stored_bytes > source.size_bytes:
        raise DamagedFileError(
            expected=f"{record.stored_bytes:,} bytes from byte {start:,}",
            found=f"the end of the file at byte {source.size_bytes:,}",
        )
    return start


class _Inflated:
    """A deflated record; reading backwards starts again from its beginning."""

    def __init__(self, stored: Extent, record: Record) -> None:
        self._stored = stored
        self._name = record.name
        self.size_bytes = record.size_bytes
        self.crc32 = record.crc32
        self._rewind()

    def _rewind(self) -> None:
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._input = chunks(self._stored)
        self._position = 0

    def read(self, start: int, count: int) -> bytes:
        """Return exactly ``count`` bytes from ``start`` of the uncompressed record."""
        with located(f"record {self._name}"):
            if start < 0 or start + count > self.size_bytes:
                raise DamagedFileError(
                    where=(f"byte {start:,}",),
                    expected=f"{count:,} bytes",
                    found=f"{max(self.size_bytes - start, 0):,}",
                )
            if start < self._position:
                self._rewind()
            while self._position < start:
                self._inflate(min(start - self._position, CHUNK_BYTES))
            parts = []
            while count:
                parts.append(self._inflate(count))
                count -= len(parts[-1])
            while self._position == self.size_bytes and not self._inflater.eof:
                if self._inflate(1):
                    raise DamagedFileError(
                        "the compressed bytes go on", expected=f"{self.size_bytes:,} bytes"
                    )
            return b"".join(parts)

    def _inflate(self, at_most: int) -> bytes:
        given = b""
        if not self._inflater.eof:  # What follows the end stays unconsumed for good.
            given = self._inflater.unconsumed_tail or next(self._input, b"")
        try:
            inflated = self._inflater.decompress(given, at_most)
        except zlib.error as error:
            raise DamagedFileError(f"the compressed bytes are damaged ({error})") from error
        if not inflated and not given:
            raise DamagedFileError(
                "the compressed bytes end early",
                expected=f"{self.size_bytes:,} bytes",
                found=f"{self._position:,}",
            )
        self._position += len(inflated)
        return inflated
