"""ZIP archives are read strictly: a claim that the bytes do not bear out is refused."""

from __future__ import annotations

import io
import itertools
import random
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.containers.zip_writer import ZipWriter
from frozenbn_cli.errors import DamagedFileError
from tests.conftest import (
    DEFLATED,
    FLOATS,
    Open,
    Refuse,
    Sources,
    ZipEnd,
    ZipRecord,
    archive_records,
    outcome,
    saved,
    small_state_dict,
    storage_id,
    tensor_bytes,
    tensor_call,
    without_checksums,
    zip_bytes,
)

STATE = {"a": tensor_call()}
RECORDS = archive_records(STATE)
TENSOR = "archive/data/0"


def changed(name: str, **claims: object) -> dict[str, bytes | ZipRecord]:
    """Return the records, one of which makes false claims."""
    record = RECORDS[name]
    assert isinstance(record, bytes)
    return {**RECORDS, name: replace(ZipRecord(record), **claims)}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_reads_what_the_standard_library_writes(compression: int, source_of: Sources) -> None:
    contents = {"folder/a": b"text" * 1000, "folder/ä": b"", "folder/deep/c": bytes(3_000_000)}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as written:
        for name, content in contents.items():
            written.writestr(name, content)

    archive = ZipArchive(source_of(file.getvalue()))

    assert list(archive.records) == list(contents)
    for name, content in contents.items():
        archive.check(name)
        assert archive.read(name, at_most_bytes=1 << 22) == content


def test_reads_records_of_unknown_size_when_they_were_written(source_of: Sources) -> None:
    class Pipe(io.RawIOBase):
        written = b""

        def writable(self) -> bool:
            return True

        def write(self, part: bytes) -> int:  # type: ignore[override]
            self.written += bytes(part)
            return len(part)

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as written:  # type: ignore[call-overload]
        written.writestr("folder/a", b"text" * 1000)

    assert ZipArchive(source_of(pipe.written)).read("folder/a") == b"text" * 1000


def test_reads_a_stored_record_from_its_middle(source_of: Sources) -> None:
    extent = ZipArchive(source_of(zip_bytes({"a": b"0123456789"}))).extent("a")

    assert (extent.size_bytes, extent.read(3, 4), extent.read(10, 0)) == (10, b"3456", b"")
    with pytest.raises(DamagedFileError):
        extent.read(3, 8)


def test_reads_a_deflated_record_in_any_order(source_of: Sources) -> None:
    content = random.Random(0).randbytes(3_000_000)
    extent = ZipArchive(source_of(zip_bytes({"a": ZipRecord(content, DEFLATED)}))).extent("a")

    for start in (2_500_000, 10, 2_999_999, 0, 1 << 20):
        assert extent.read(start, 1) == content[start : start + 1]
    assert extent.read(5, 2_000_000) == content[5:2_000_005]
    assert extent.read(0, 3_000_000) == content
    with pytest.raises(DamagedFileError):
        extent.read(2_999_999, 2)


def test_reads_a_zip64_archive(opened: Open) -> None:
    records = {
        name: ZipRecord(content, in_zip64=True)
        for name, content in RECORDS.items()
        if isinstance(content, bytes)
    }

    checkpoint = opened(zip_bytes(records, ZipEnd(in_zip64=True)))

    assert checkpoint.entries["a"].read() == FLOATS
    assert len(checkpoint.fingerprint()) == 64


def test_reads_an_archive_with_padding_and_comment(opened: Open) -> None:
    archive = zip_bytes(changed(TENSOR, extra_bytes=50), ZipEnd(comment=b"made by hand"))

    assert opened(archive).entries["a"].read() == FLOATS


def test_reads_an_archive_with_bytes_behind_its_end(opened: Open) -> None:
    assert opened(zip_bytes(RECORDS) + bytes(1000)).entries["a"].read() == FLOATS


@pytest.mark.parametrize("prefix", [b"#!/bin/sh\n", b"\0" * 64, b"PK\3\4"])
def test_rejects_bytes_in_front_of_an_archive(prefix: bytes, refused: Refuse) -> None:
    assert refused(prefix + zip_bytes(RECORDS))


def test_takes_a_checksum_of_0_for_not_computed(opened: Open) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        archive = saved({"a": torch.arange(4.0)})
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(io.BytesIO(archive)) as listed:
        assert {record.CRC for record in listed.infolist() if "data" in record.filename} == {0}

    checkpoint = opened(archive)

    assert checkpoint.entries["a"].values() == (0, 1, 2, 3)
    assert len(checkpoint.fingerprint()) == 64


# Damage. An archive of torch.save, cut or changed anywhere.


@pytest.fixture(scope="module")
def archive() -> bytes:
    return saved(small_state_dict())


def test_rejects_truncation_at_every_byte(archive: bytes, tmp_path: Path) -> None:
    for length in range(0, len(archive), 3):
        assert outcome(tmp_path / "cut.pt", archive[:length]), length


def test_rejects_truncation_at_every_boundary(archive: bytes, refused: Refuse) -> None:
    with zipfile.ZipFile(io.BytesIO(archive)) as listed:
        starts = [record.header_offset for record in listed.infolist()]
        directory = listed.start_dir
    end = archive.rindex(b"PK\5\6")

    for length in (*starts[1:], directory, archive.rindex(b"PK\6\7"), end, end + 21):
        assert "truncated" in refused(archive[:length]), length


def test_rejects_a_hole_before_the_directory(archive: bytes, refused: Refuse) -> None:
    for start in range(100, archive.rindex(b"PK\5\6"), 333):
        assert refused(archive[:start] + archive[start + 1 :])


def test_rejects_or_survives_thousands_of_changed_bytes(archive: bytes, tmp_path: Path) -> None:
    chance = random.Random(0)
    found = {"read": 0, "refused": 0}
    interesting = [at for at, byte in enumerate(archive) if byte not in b"Z\0"]
    for original in (archive, without_checksums(archive)):
        for _ in range(1000):
            damaged = bytearray(original)
            for _ in range(chance.choice((1, 1, 3))):
                damaged[chance.choice(interesting)] = chance.randrange(256)
            error = outcome(tmp_path / "flipped.pt", bytes(damaged))
            found["refused" if error else "read"] += 1

    assert found["read"] > 100
    assert found["refused"] > 500


def test_notices_any_change_of_a_tensor(tmp_path: Path) -> None:
    archive = zip_bytes(RECORDS)
    start = archive.index(FLOATS)
    for position in range(start, start + len(FLOATS)):
        damaged = bytearray(archive)
        damaged[position] ^= 1

        error = outcome(tmp_path / "flipped.pt", bytes(damaged))

        assert "record archive/data/0: checksum (CRC-32): expected" in str(error)


def test_finds_a_wrong_checksum_of_the_pickle_when_it_opens(opened: Open) -> None:
    with pytest.raises(DamagedFileError, match=r"record archive/data.pkl: checksum"):
        opened(zip_bytes(changed("archive/data.pkl", crc32=1)))


@pytest.mark.parametrize("method", [0, DEFLATED])
def test_finds_a_wrong_checksum_of_a_tensor_in_the_fingerprint(method: int, opened: Open) -> None:
    checkpoint = opened(zip_bytes(changed(TENSOR, method=method, crc32=1)))

    assert checkpoint.entries["a"].read() == FLOATS
    with pytest.raises(DamagedFileError, match=r"record archive/data/0: checksum"):
        checkpoint.fingerprint()


def test_checks_records_that_span_the_pieces_of_a_pass(opened: Open) -> None:
    content = random.Random(0).randbytes(9_500_000)
    records = {**RECORDS, "archive/extra": content, "archive/last": b"last"}

    opened(zip_bytes(records)).fingerprint()
    damaged = opened(zip_bytes({**records, "archive/extra": ZipRecord(content, crc32=1)}))

    with pytest.raises(DamagedFileError, match="record archive/extra"):
        damaged.fingerprint()


@pytest.mark.parametrize("piece_bytes", [16, 61, 64, 1000])
def test_checks_every_record_wherever_the_pieces_of_a_pass_end(
    piece_bytes: int, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("frozenbn_cli.containers.fingerprint._PIECE_BYTES", piece_bytes)
    extra = {"archive/empty": b"", "archive/one": b"1", "archive/long": bytes(range(256)) * 5}
    records = {**RECORDS, **extra}

    opened(zip_bytes(records)).fingerprint()

    for name, content in extra.items():
        damaged = opened(zip_bytes({**records, name: ZipRecord(content, crc32=1)}))
        with pytest.raises(DamagedFileError, match=f"record {name}: checksum"):
            damaged.fingerprint()


# Claims that are false, each with a part of what is said about it.

FALSE_CLAIMS = {
    "unknown_compression": ({"method": 12}, "compressed by method 12"),
    "encrypted": ({"flags": 1}, "is encrypted"),
    "strongly_encrypted": ({"flags": 0x40}, "is encrypted"),
    "masked": ({"flags": 0x2000}, "is encrypted"),
    "other_method_in_the_local_header": ({"local_method": 8}, "no local header"),
    "other_name_in_the_local_header": ({"local_name": "archive/data/1"}, "names another record"),
    "longer_name_in_the_local_header": ({"local_name": "a" * 30}, "names another record"),
    "no_local_header": ({"local_signature": b"PK\0\0"}, "no local header"),
    "header_elsewhere": ({"header_start": 1}, "overlap"),
    "header_in_the_directory": ({"header_start": 1 << 20}, "reaches into the directory"),
    "header_beyond_4_gigabytes": ({"header_start": 0xFFFFFFFF}, "lacks its ZIP64 sizes"),
    "stored_larger_than_the_file": (
        {"stored_bytes": 1 << 30, "size_bytes": 1 << 30},
        "overlap",
    ),
    "stored_sizes_differ": ({"size_bytes": 15}, "cannot hold"),
    "shorter": ({"stored_bytes": 15, "size_bytes": 15}, "expected 4 elements of float32"),
    "padding_beyond_the_file": ({"extra_bytes": 0}, None),
}


@pytest.mark.parametrize(("claims", "message"), FALSE_CLAIMS.values(), ids=FALSE_CLAIMS)
def test_rejects_false_claims(
    claims: dict[str, object], message: str | None, refused: Refuse
) -> None:
    if message is None:
        archive = bytearray(zip_bytes(RECORDS))
        local = archive.index(b"PK\3\4", archive.index(b"archive/byteorder"))
        archive[local + 28 : local + 30] = b"\xff\xff"
        message = "found the end of the file"
        assert message in refused(bytes(archive))
    else:
        assert message in refused(zip_bytes(changed(TENSOR, **claims)))


FALSE_ENDS = {
    "more_records": (ZipEnd(records=6), "the directory ends within an entry"),
    "fewer_records": (ZipEnd(records=2), "expected 2 records"),
    "no_records": (ZipEnd(records=0), "expected 0 records"),
    "longer_directory": (ZipEnd(directory_bytes=10_000), "expected to end at"),
    "shorter_directory": (ZipEnd(directory_bytes=60), "expected to end at"),
    "directory_of_4_gigabytes": (ZipEnd(directory_bytes=0xFFFFFFFE), "beyond any model"),
    "directory_elsewhere": (ZipEnd(directory_start=4), "expected to end at"),
    "directory_beyond_the_file": (ZipEnd(directory_start=0xFFFFFFF), "expected to end at"),
    "no_zip64_locator": (ZipEnd(directory_start=0xFFFFFFFF), "ZIP64 locator is missing"),
    "several_disks": (ZipEnd(disk=1), "split over several files"),
    "zip64_locator_damaged": (
        ZipEnd(in_zip64=True, locator_signature=b"PK\0\0"),
        "ZIP64 locator is missing",
    ),
    "zip64_end_damaged": (ZipEnd(in_zip64=True, end64_signature=b"PK\0\0"), "ZIP64 directory end"),
    "zip64_end_elsewhere": (ZipEnd(in_zip64=True, end64_start=0), "ZIP64 directory end"),
    "zip64_end_beyond_the_file": (ZipEnd(in_zip64=True, end64_start=1 << 60), "end of the file"),
    "zip64_of_too_many_records": (ZipEnd(in_zip64=True, records=1 << 40), "beyond any model"),
    "zip64_of_a_huge_directory": (
        ZipEnd(in_zip64=True, directory_bytes=1 << 60),
        "beyond any model",
    ),
    "zip64_of_a_far_directory": (
        ZipEnd(in_zip64=True, directory_start=1 << 63),
        "expected to end at",
    ),
    "zip64_end_of_more_records": (
        ZipEnd(in_zip64=True, short_records=3),
        "one end for all readers: 3, found 4",
    ),
}


@pytest.mark.parametrize(("end", "message"), FALSE_ENDS.values(), ids=FALSE_ENDS)
def test_rejects_false_ends(end: ZipEnd, message: str, refused: Refuse) -> None:
    assert message in refused(zip_bytes(RECORDS, end))


@pytest.mark.parametrize(
    "name",
    ["../escaped", "archive/../../x", "/etc/passwd", "archive\\..\\x", "archive/\0x", ""],
)
def test_rejects_names_that_lead_out_of_the_archive(name: str, refused: Refuse) -> None:
    assert "leads out of the archive" in refused(zip_bytes({**RECORDS, name: b"x"}))


def test_keeps_names_that_only_contain_dots(opened: Open) -> None:
    assert (
        "archive/..data" in opened(zip_bytes({**RECORDS, "archive/..data": b"x"})).archive.records
    )


def test_rejects_a_name_that_is_no_text(refused: Refuse) -> None:
    archive = zip_bytes({**RECORDS, "archive/xyz": b""}).replace(
        b"archive/xyz", b"archive/\xff\xfe\xfd"
    )

    assert "not UTF-8" in refused(archive)


def test_rejects_two_records_of_one_name(refused: Refuse) -> None:
    twice = [*RECORDS.items(), (TENSOR, bytes(16))]

    assert "two records named 'archive/data/0'" in refused(zip_bytes(twice))


@pytest.mark.parametrize("is_last", [False, True])
def test_rejects_names_that_differ_by_case(is_last: bool, refused: Refuse) -> None:
    # PyTorch ignores case when it looks for a record.
    other = ("archive/DATA/0", bytes(16))
    records = [*RECORDS.items(), other] if is_last else [other, *RECORDS.items()]

    message = refused(zip_bytes(records))

    assert "'archive/DATA/0'" in message
    assert "are one to PyTorch, which ignores case" in message


def test_rejects_a_zip64_locator_that_leads_to_another_directory(refused: Refuse) -> None:
    # PyTorch follows the locator: of this file it reads zeros.
    other = zip_bytes(changed(TENSOR) | {TENSOR: bytes(16)}, ZipEnd(in_zip64=True))
    archive = zip_bytes([*(("other/" + name, content) for name, content in RECORDS.items())])
    start = len(other)
    end = archive.rindex(b"PK\5\6")
    locator = bytearray(other[-42:-22])
    shown = bytearray(archive[end:])
    (directory_start,) = struct.unpack_from("<I", shown, 16)
    struct.pack_into("<I", shown, 16, start + directory_start)

    message = refused(other + archive[:end] + locator + shown)

    assert "ZIP64 directory end: expected to end at" in message


def test_rejects_a_gap_in_front_of_the_end(refused: Refuse) -> None:
    archive = zip_bytes(RECORDS)
    end = archive.rindex(b"PK\5\6")

    assert "ZIP directory: expected to end at" in refused(archive[:end] + b"gap" + archive[end:])


def test_rejects_what_pytorch_takes_for_a_mobile_module(refused: Refuse) -> None:
    archive = bytearray(zip_bytes(RECORDS))
    archive[4:8] = b"PTMF"

    assert "byte 4: a file of two kinds" in refused(bytes(archive))


def test_rejects_zip64_sizes_that_stand_twice(refused: Refuse) -> None:
    # Readers differ in which of two extra fields counts.
    short = struct.pack("<HHQ", 1, 8, 0)
    records = changed(TENSOR, in_zip64=True, extra_before=short)

    assert "lacks its ZIP64 sizes" in refused(zip_bytes(records))


def test_reads_an_archive_of_more_records_than_a_short_end_counts(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    storages = {str(key): FLOATS for key in range(65_540)}
    with path.open("wb") as file:
        writer = ZipWriter(file)
        for name, content in archive_records(STATE, storages).items():
            assert isinstance(content, bytes)
            writer.add(name, content)
        writer.write_directory()

    with open_checkpoint(path) as checkpoint:
        assert checkpoint.entries["a"].read() == FLOATS
    assert torch.load(path)["a"].tolist() == [1, 2, 3, 4]


def test_rejects_overlapping_records(refused: Refuse) -> None:
    names = list(RECORDS)
    start = zip_bytes(RECORDS).index(b"PK\3\4", 10) - 5

    assert "overlap" in refused(zip_bytes(changed(names[1], header_start=start)))
    assert "overlap" in refused(zip_bytes(changed(names[1], header_start=0)))


def test_rejects_records_with_long_names_that_overlap(refused: Refuse) -> None:
    # 40 characters, which are 80 bytes: the next record begins within them.
    long = "archive/" + "ä" * 40
    archive = zip_bytes({long: b"", **RECORDS})
    start = archive.index(b"PK\3\4", 10)

    overlapping = {long: b"", **changed("archive/data.pkl", header_start=start - 10)}

    assert "overlap" in refused(zip_bytes(overlapping))


def test_rejects_a_record_that_reaches_into_the_directory(refused: Refuse) -> None:
    size = len(RECORDS["archive/version"]) + 10

    records = changed("archive/version", stored_bytes=size, size_bytes=size)

    assert "'archive/version' reaches into the directory" in refused(zip_bytes(records))


def test_rejects_big_endian_archives(refused: Refuse) -> None:
    assert "big-endian" in refused(zip_bytes({**RECORDS, "archive/byteorder": b"big"}))


def test_rejects_a_byte_order_beyond_reason(refused: Refuse) -> None:
    huge = ZipRecord(b"little" + bytes(2 << 20))

    assert "at most 1,048,576 bytes" in refused(zip_bytes({**RECORDS, "archive/byteorder": huge}))


def test_rejects_two_roots(refused: Refuse) -> None:
    pickled = RECORDS["archive/data.pkl"]

    assert "did not write" in refused(zip_bytes({**RECORDS, "other/data.pkl": pickled}))


@pytest.mark.parametrize(
    "names", [["readme.txt"], ["data.pkl"], ["a/b/data.pkl"], ["word/document.xml"]]
)
def test_rejects_archives_of_other_programs(names: list[str], refused: Refuse) -> None:
    message = refused(zip_bytes(dict.fromkeys(names, b"x")))

    assert "a ZIP archive that PyTorch did not write" in message
    assert names[0] in message


def test_rejects_an_archive_without_the_storage(refused: Refuse) -> None:
    records = {name: content for name, content in RECORDS.items() if name != TENSOR}

    assert "record 'archive/data/0' is missing" in refused(zip_bytes(records))


# Compression


def deflated(name: str, content: bytes, **claims: object) -> dict[str, bytes | ZipRecord]:
    return {**RECORDS, name: replace(ZipRecord(content, DEFLATED), **claims)}


def test_reads_a_checkpoint_that_was_compressed_again(opened: Open) -> None:
    file = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved(small_state_dict()))) as stored,
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as written,
    ):
        for name in stored.namelist():
            written.writestr(name, stored.read(name))

    checkpoint = opened(file.getvalue())

    for name, tensor in small_state_dict().items():
        assert checkpoint.entries[name].read() == tensor_bytes(tensor)
    assert len(checkpoint.fingerprint()) == 64


def test_rejects_sizes_that_deflate_cannot_reach(refused: Refuse) -> None:
    assert "cannot hold" in refused(zip_bytes(deflated(TENSOR, FLOATS, size_bytes=1 << 30)))


@pytest.mark.parametrize("crc32", [None, 0], ids=["checksum", "no_checksum"])
@pytest.mark.parametrize("lie", [-8, 8])
def test_rejects_a_wrong_inflated_size(lie: int, crc32: int | None, refused: Refuse) -> None:
    elements = 4 + lie // 4
    pickled = {"a": tensor_call((elements,), storage=storage_id("0", elements))}
    records = {
        **archive_records(pickled),
        TENSOR: ZipRecord(FLOATS, DEFLATED, crc32=crc32, size_bytes=16 + lie),
    }

    message = refused(zip_bytes(records))

    assert "record archive/data/0" in message
    assert ("end early" if lie > 0 else "go on") in message


def test_rejects_damaged_compressed_bytes(refused: Refuse) -> None:
    archive = zip_bytes(deflated(TENSOR, FLOATS))
    stored = ZipRecord(FLOATS, DEFLATED).stored

    assert "compressed bytes" in refused(archive.replace(stored, b"\xff" * len(stored)))


def test_rejects_a_pickle_that_inflates_beyond_reason(refused: Refuse) -> None:
    # 65 MB of text in 65 kB.
    text = b"\x80\x02X" + struct.pack("<I", 65 << 20) + bytes(65 << 20) + b"."

    archive = zip_bytes(deflated("archive/data.pkl", text))

    assert len(archive) < 1 << 20
    assert "beyond any model" in refused(archive)


def test_reads_a_long_tensor_that_compresses_well(opened: Open) -> None:
    size_bytes = 20 << 20
    pickled = {"a": tensor_call((size_bytes // 4,), storage=storage_id("0", size_bytes // 4))}
    archive = zip_bytes(
        {**archive_records(pickled), TENSOR: ZipRecord(bytes(size_bytes), DEFLATED)}
    )

    [entry] = opened(archive).entries.values()

    assert sum(len(chunk) for chunk in entry.chunks()) == size_bytes
    assert zlib.crc32(entry.read()) == zlib.crc32(bytes(size_bytes))


class FollowedByMore(ZipRecord):
    """A compressed record that holds more than its compressed bytes."""

    @property
    def stored(self) -> bytes:
        return super().stored + bytes(100)


@pytest.mark.parametrize("piece_bytes", [1, 64, 2048])
def test_rejects_compressed_bytes_that_end_before_the_record(
    piece_bytes: int, source_of: Sources
) -> None:
    content = random.Random(0).randbytes(1000) * 2
    record = FollowedByMore(content, DEFLATED, size_bytes=2048)
    extent = ZipArchive(source_of(zip_bytes({"a": record}))).extent("a")

    assert extent.read(0, 2000) == content
    with pytest.raises(DamagedFileError, match=r"record a: .*end early.*found 2,000"):
        list(map(extent.read, range(0, 2048, piece_bytes), itertools.repeat(piece_bytes)))
