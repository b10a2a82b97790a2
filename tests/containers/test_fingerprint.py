"""Fingerprints that begin before the file is known as what it is."""

import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from frozenbn_cli.containers import fingerprint as module
from frozenbn_cli.containers import source as module_of_views
from frozenbn_cli.containers.fingerprint import Fingerprint
from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.errors import DamagedFileError
from tests.builders.processes import HANG_SECONDS
from tests.conftest import ZipRecord, zip_bytes

RECORDS = {f"archive/{index}": bytes([index]) * 100 for index in range(8)}
PIECE_BYTES = 64


class Halfway:
    """Holds the thread up after some pieces, until it is to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
        self.is_there, self.may_go_on = threading.Event(), threading.Event()
        views = module.views

        def halting(*arguments: object, piece_bytes: int) -> Iterator[memoryview]:
            for index, piece in enumerate(views(*arguments, piece_bytes=PIECE_BYTES)):  # type: ignore[arg-type]
                if index == pieces:
                    self.is_there.set()
                    assert self.may_go_on.wait(HANG_SECONDS)
                yield piece

        monkeypatch.setattr(module, "views", halting)


def sha256(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


@pytest.fixture(params=[0, 1, 6, 1000])
def halfway(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Halfway:
    return Halfway(monkeypatch, request.param)


def formed(path: Path, halfway: Halfway) -> str:
    """Return the fingerprint of an archive that becomes known when some of it is read."""
    with closing(Fingerprint(path)) as fingerprint, closing(ByteSource(path)) as source:
        fingerprint.begin()
        halfway.is_there.wait(0.2)
        fingerprint.go_on([source], [ZipArchive(source)])
        halfway.may_go_on.set()
        return fingerprint.result()


def test_is_that_of_the_whole_file(tmp_path: Path, halfway: Halfway) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(zip_bytes(RECORDS))

    assert formed(path, halfway) == sha256(path)


@pytest.mark.parametrize("name", RECORDS)
def test_checks_records_that_passed_by_before(tmp_path: Path, halfway: Halfway, name: str) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(zip_bytes({**RECORDS, name: ZipRecord(RECORDS[name], crc32=1)}))

    with pytest.raises(DamagedFileError, match=f"a.pt, record {name}: checksum"):
        formed(path, halfway)


def test_takes_several_files_and_archives_among_them(tmp_path: Path) -> None:
    index, first, second = (tmp_path / name for name in ("index.json", "1.bin", "2.bin"))
    index.write_bytes(b"{}")
    first.write_bytes(zip_bytes(RECORDS))
    second.write_bytes(zip_bytes({**RECORDS, "archive/3": ZipRecord(b"3", crc32=1)}))
    sources = [ByteSource(path) for path in (index, first, second)]
    archives = [ZipArchive(source) for source in sources[1:]]

    for path in (index, tmp_path):  # Of a folder, the first file is not known before either.
        with closing(Fingerprint(path)) as fingerprint:
            fingerprint.begin()
            fingerprint.go_on(sources[:2], archives[:1])
            assert fingerprint.result() == sha256(index, first)
        with closing(Fingerprint(path)) as fingerprint:
            fingerprint.begin()
            fingerprint.go_on(sources, archives)
            with pytest.raises(DamagedFileError, match="record archive/3"):
                fingerprint.result()
    for source in sources:
        source.close()


@pytest.mark.parametrize("is_touched", [False, True])
def test_what_was_replaced_before_it_was_opened_is_read_once_more(
    tmp_path: Path, halfway: Halfway, is_touched: bool
) -> None:
    path, other = tmp_path / "a.pt", tmp_path / "b.pt"
    path.write_bytes(zip_bytes({**RECORDS, "archive/3": ZipRecord(b"3", crc32=1)}))
    other.write_bytes(zip_bytes(RECORDS))
    with closing(Fingerprint(path)) as fingerprint:
        fingerprint.begin()
        halfway.is_there.wait(0.2)
        if is_touched:
            path.write_bytes(other.read_bytes())
            os.utime(path, ns=(1, 1))
        else:
            other.replace(path)
        with closing(ByteSource(path)) as source:
            fingerprint.go_on([source], [ZipArchive(source)])
            halfway.may_go_on.set()

            assert fingerprint.result() == sha256(path)


def test_names_the_file_of_a_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(zip_bytes({**RECORDS, "archive/3": ZipRecord(b"3", crc32=1)}))

    with closing(Fingerprint(tmp_path)) as fingerprint, closing(ByteSource(path)) as source:
        fingerprint.go_on([source], [ZipArchive(source)])
        with pytest.raises(DamagedFileError, match=r"model.bin, record archive/3: checksum"):
            fingerprint.result()


def test_giving_up_stops_the_checks_of_compressed_records_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(zip_bytes({"archive/a": ZipRecord(bytes(100 << 20), method=8)}))
    fingerprint = Fingerprint(path)
    pieces = 0

    def views(*arguments: Any) -> Iterator[memoryview]:
        nonlocal pieces
        for piece in module_of_views.views(*arguments):
            pieces += 1
            if pieces == 2:
                threading.Thread(target=fingerprint.close).start()
                assert fingerprint._is_given_up.wait(HANG_SECONDS)
            yield piece

    monkeypatch.setattr("frozenbn_cli.containers.zip_archive.views", views)
    with closing(ByteSource(path)) as source:
        fingerprint.go_on([source], [ZipArchive(source)])
        with pytest.raises(CancelledError):
            fingerprint.result()
        fingerprint.close()
    assert pieces == 2


@pytest.mark.parametrize("is_open", [False, True])
def test_giving_up_waits_for_no_more_than_a_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_open: bool
) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(bytes(10 * PIECE_BYTES))
    halfway = Halfway(monkeypatch, 3)
    fingerprint = Fingerprint(path)
    fingerprint.begin()
    assert halfway.is_there.wait(HANG_SECONDS)
    with closing(ByteSource(path)) as source:
        if is_open:
            fingerprint.go_on([source], [])
        threading.Timer(0.05, halfway.may_go_on.set).start()
        fingerprint.close()

    with pytest.raises(CancelledError):
        fingerprint.result()


def test_giving_up_a_file_that_was_read_and_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(b"short")
    fingerprint = Fingerprint(path)
    fingerprint.begin()

    fingerprint.close()
    fingerprint.close()

    with pytest.raises(CancelledError):
        fingerprint.result()


def test_what_is_begun_ahead_is_not_begun_again(tmp_path: Path) -> None:
    path, other = tmp_path / "a.pt", tmp_path / "b.pt"
    for each in (path, other):
        each.write_bytes(each.name.encode())

    with closing(Fingerprint.ahead(path)) as begun, closing(ByteSource(path)) as source:
        assert Fingerprint.of(path) is begun
        assert Fingerprint.of(path) is not begun
        begun.go_on([source], [])
        assert begun.result() == sha256(path)
    Fingerprint.ahead(path)
    with closing(Fingerprint.of(other)) as of_other, closing(ByteSource(other)) as source:
        of_other.go_on([source], [])
        assert of_other.result() == sha256(other)
    Fingerprint.ahead(path).close()
    with closing(Fingerprint.of(path)) as anew, closing(ByteSource(path)) as source:
        anew.go_on([source], [])
        assert anew.result() == sha256(path)
