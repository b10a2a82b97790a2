"""The sha256 of files, and a check of the checksums of their ZIP records on the way."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import closing
from contextvars import ContextVar
from pathlib import Path
from threading import Event

from zlib_ng.zlib_ng import crc32

from frozenbn_cli.containers.source import ByteSource, FileExtent, views
from frozenbn_cli.containers.zip_archive import ZipArchive, check_crc32
from frozenbn_cli.errors import InputError, located

__all__ = ["Fingerprint", "fingerprint"]

_PIECE_BYTES = 4 << 20  # Between two pieces, threads wait for each other.


def fingerprint(sources: Iterable[ByteSource], archives: Iterable[ZipArchive] = ()) -> str:
    """Return the sha256 of files, one after the other, in hexadecimal.

    Args:
        sources: The files.
        archives: Those of them that are archives, whose checksums are checked.

    Raises:
        DamagedFileError: A record's bytes are not those that were written.
    """
    digest = _Digest()
    digest.take_all(sources, archives)
    return digest.sha256.hexdigest()


class Fingerprint:
    """The fingerprint of a checkpoint, formed in a thread while other work goes on.

    Hashing a file takes longer than most of what is done with it. So it begins with the first file
    before anybody knows what that is, and learns of the others, and of archives, in between.

    Args:
        path: The checkpoint, which is its first file, or a folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pool = ThreadPoolExecutor(1)
        self._is_given_up = Event()
        self._sha256: Future[str] | None = None
        self._opened: Future[tuple[Sequence[ByteSource], Sequence[ZipArchive]]] = Future()

    @classmethod
    def ahead(cls, path: Path) -> Fingerprint:
        """Begin that of a checkpoint, for whoever asks for it next."""
        begun = cls(path)
        begun.begin()
        _ahead.set(begun)
        return begun

    @classmethod
    def of(cls, path: Path) -> Fingerprint:
        """Return that of a checkpoint, which is begun by now where that was done ahead."""
        begun = _ahead.get()
        _ahead.set(None)
        if begun and begun._path == path and not begun._is_given_up.is_set():
            return begun
        if begun:
            begun.close()
        return cls(path)

    def begin(self) -> None:
        """Begin with the first file; whoever opens the checkpoint says what is wrong with it."""
        self._forming()

    def _forming(self) -> Future[str]:
        if self._sha256 is None:
            self._sha256 = self._pool.submit(self._form)
        return self._sha256

    def go_on(self, sources: Sequence[ByteSource], archives: Sequence[ZipArchive]) -> None:
        """Go on with all files of the checkpoint, now that it is open.

        Args:
            sources: The files.
            archives: Those of them that are archives, whose checksums are checked.
        """
        self._opened.set_result((sources, archives))

    def result(self) -> str:
        """Return the sha256 of the files, one after the other, in hexadecimal.

        Raises:
            DamagedFileError: A record's bytes are not those that were written.
            InputError: A file cannot be read.
        """
        return self._forming().result()

    def close(self) -> None:
        """Give up what is not done, after the piece that is being read."""
        self._opened.cancel()
        self._is_given_up.set()
        self._pool.shutdown()

    def _form(self) -> str:
        digest = _Digest(self._is_given_up.is_set)
        begun = _opened(self._path)
        if begun:
            try:
                with closing(begun), located(str(self._path)):
                    digest.take(begun, self._first_archive)
            except _OfAnotherFileError:
                digest, begun = _Digest(self._is_given_up.is_set), None
        sources, archives = self._opened.result()
        with located(str(sources[0].path)):
            digest.take_all(sources[1:] if begun else sources, archives)
        return digest.sha256.hexdigest()

    def _first_archive(self, begun: ByteSource, wait: bool) -> ZipArchive | None:
        if not wait and not self._opened.done():
            return None
        sources, archives = self._opened.result()
        if not begun.is_same_as(sources[0]):
            raise _OfAnotherFileError
        return next((archive for archive in archives if archive.source is sources[0]), None)


_ahead: ContextVar[Fingerprint | None] = ContextVar("ahead", default=None)


class _OfAnotherFileError(Exception):
    """What was begun has been replaced, or written to, before it was opened."""


def _opened(path: Path) -> ByteSource | None:
    try:
        return ByteSource(path)
    except InputError:
        return None


class _Digest:
    """A sha256 that takes files.

    Args:
        is_given_up: Whether nobody waits for it any more.
    """

    def __init__(self, is_given_up: Callable[[], bool] = lambda: False) -> None:
        self.sha256 = hashlib.sha256()
        self._is_given_up = is_given_up

    def take_all(self, sources: Iterable[ByteSource], archives: Iterable[ZipArchive]) -> None:
        """Take files, of which it is known which are archives."""
        archive_of = {archive.source: archive for archive in archives}
        for source in sources:
            self.take(source, lambda one, _: archive_of.get(one))

    def take(
        self, source: ByteSource, archive_of: Callable[[ByteSource, bool], ZipArchive | None]
    ) -> None:
        """Take a file, and check its checksums.

        Args:
            source: The file.
            archive_of: Returns it as an archive; None if it is none, or if nobody knows yet, unless
                it is to wait until somebody does.

        Raises:
            CancelledError: It is given up.
        """
        checks, position = None, 0
        for piece in views(FileExtent(source, 0, source.size_bytes), piece_bytes=_PIECE_BYTES):
            self._check_given_up()
            if checks is None and (archive := archive_of(source, False)):
                checks = _RecordChecks(archive, position)
            self.sha256.update(piece)
            if checks:
                checks.update(position, piece)
            position += len(piece)
        if checks is None and (archive := archive_of(source, True)):
            checks = _RecordChecks(archive, position)
        if checks:
            checks.finish(self._check_given_up)

    def _check_given_up(self) -> None:
        if self._is_given_up():
            raise CancelledError


class _RecordChecks:
    """Checks an archive's checksums while the bytes of its file pass by.

    A CRC-32 of bytes that the cache still holds takes a tenth of their sha256's time, which is less
    than reading them once more, beside it in a thread.

    Args:
        archive: The archive.
        passed_bytes: How much of it has passed by already, and is read once more in the end.
    """

    def __init__(self, archive: ZipArchive, passed_bytes: int) -> None:
        self._archive = archive
        extents = [(name, archive.extent(name)) for name in archive.records]
        stored = [(name, extent) for name, extent in extents if isinstance(extent, FileExtent)]
        stored.sort(key=lambda item: item[1].start)
        self._waiting = deque(
            (name, extent)
            for name, extent in stored
            if extent.crc32 and extent.start >= passed_bytes
        )
        self._others = archive.records.keys() - {name for name, _ in self._waiting}
        self._crc32 = 0

    def update(self, position: int, chunk: memoryview) -> None:
        """Take the next bytes of the file, from ``position`` on."""
        end = position + len(chunk)
        while self._waiting and self._waiting[0][1].start < end:
            name, extent = self._waiting[0]
            extent_end = extent.start + extent.size_bytes
            part = chunk[max(extent.start - position, 0) : extent_end - position]
            self._crc32 = crc32(part, self._crc32)
            if extent_end > end:
                return
            with located(f"record {name}"):
                check_crc32(extent.crc32, self._crc32)
            self._waiting.popleft()
            self._crc32 = 0

    def finish(self, before_each: Callable[[], None]) -> None:
        """Check the records that passed by before, and those that are compressed.

        Args:
            before_each: Called before each piece of them.
        """
        for name in self._others:
            self._archive.check(name, before_each)
