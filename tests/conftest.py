"""Files built from readable parts, and the one way in which the tests open them."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

from frozenbn_cli.checkpoints import Checkpoint, open_checkpoint
from frozenbn_cli.containers.source import ByteSource, FileExtent, stream
from frozenbn_cli.errors import InputError, UnsupportedFileError, located
from frozenbn_cli.pickles.reader import Pickle, read_pickle
from frozenbn_cli.pickles.values import Call, Global, PersistentId, Value
from frozenbn_cli.pickles.writer import write_pickle
from tests.builders.job_processes import (  # noqa: F401  # Pytest looks for fixtures here.
    _one_for_programs_too,
    process_of_its_own,
)
from tests.builders.leftovers import (  # noqa: F401  # And for its hooks.
    pytest_runtest_makereport,
    pytest_runtest_protocol,
)

# The same cases in every run, however slow the machine is.
settings.register_profile(
    "tests", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tests")


def pytest_configure() -> None:
    """Give each of several workers one core, and the processes that its tests start.

    Threads of several that wait for a core do so by spinning, which takes it from all others.
    """
    if "PYTEST_XDIST_WORKER" in os.environ and "OMP_NUM_THREADS" not in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


STORED, DEFLATED = 0, 8


# ZIP archives


@dataclass(frozen=True)
class ZipRecord:
    """A record as an archive states it; what is None is stated truthfully.

    Attributes:
        content: The uncompressed bytes.
        method: Of the compression; 8 deflates the content.
        flags: The general purpose flags of both headers.
        crc32, stored_bytes, size_bytes, header_start: As the directory claims.
        local_name, local_method, local_signature: As the local header claims.
        extra_bytes: The length of the padding behind the local name.
        in_zip64: Whether sizes and offset stand in a ZIP64 extra field.
        extra_before: Another extra field in the directory, in front of it.
    """

    content: bytes
    method: int = STORED
    flags: int = 0
    crc32: int | None = None
    stored_bytes: int | None = None
    size_bytes: int | None = None
    header_start: int | None = None
    local_name: str | None = None
    local_method: int | None = None
    local_signature: bytes = b"PK\3\4"
    extra_bytes: int = 0
    in_zip64: bool = False
    extra_before: bytes = b""

    @property
    def stored(self) -> bytes:
        if self.method != DEFLATED:
            return self.content
        deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        return deflate.compress(self.content) + deflate.flush()


@dataclass(frozen=True)
class ZipEnd:
    """What the end of an archive claims; what is None is claimed truthfully.

    ``short_records`` is what the short end claims where there is a ZIP64 end too.
    """

    records: int | None = None
    directory_bytes: int | None = None
    directory_start: int | None = None
    disk: int = 0
    in_zip64: bool = False
    locator_signature: bytes = b"PK\6\7"
    end64_signature: bytes = b"PK\6\6"
    end64_start: int | None = None
    short_records: int = 0xFFFF
    comment: bytes = b""


def zip_bytes(
    records: Mapping[str, bytes | ZipRecord] | list[tuple[str, bytes | ZipRecord]],
    end: ZipEnd | None = None,
) -> bytes:
    """Return an archive of ``records``, whose names may repeat in a list."""
    end = end or ZipEnd()
    written, directory = bytearray(), bytearray()
    items = list(records.items()) if isinstance(records, Mapping) else records
    for name, content in items:
        record = content if isinstance(content, ZipRecord) else ZipRecord(content)
        directory += _directory_entry(name, record, len(written))
        written += _local_header(name, record) + record.stored
    return bytes(written + directory) + _zip_end(end, len(items), len(directory), len(written))


def _local_header(name: str, record: ZipRecord) -> bytes:
    encoded = (name if record.local_name is None else record.local_name).encode()
    method = record.method if record.local_method is None else record.local_method
    fixed = struct.pack(
        "<HHHHHIIIHH",
        20,
        record.flags,
        method,
        0,
        0,
        zlib.crc32(record.content),
        len(record.stored),
        len(record.content),
        len(encoded),
        record.extra_bytes,
    )
    return record.local_signature + fixed + encoded + b"Z" * record.extra_bytes


def _directory_entry(name: str, record: ZipRecord, start: int) -> bytes:
    encoded = name.encode()
    crc32 = zlib.crc32(record.content) if record.crc32 is None else record.crc32
    stored = len(record.stored) if record.stored_bytes is None else record.stored_bytes
    size = len(record.content) if record.size_bytes is None else record.size_bytes
    start = start if record.header_start is None else record.header_start
    extra = record.extra_before
    if record.in_zip64:
        extra += struct.pack("<HHQQQ", 1, 24, size, stored, start)
        size = stored = start = 0xFFFFFFFF
    versions = struct.pack("<4sHH", b"PK\1\2", 20, 20)
    fixed = struct.pack(
        "<HHHHIIIHHHHHII",
        record.flags,
        record.method,
        0,
        0,
        crc32,
        stored,
        size,
        len(encoded),
        len(extra),
        0,
        0,
        0,
        0,
        start,
    )
    return versions + fixed + encoded + extra


def _zip_end(end: ZipEnd, records: int, directory_bytes: int, directory_start: int) -> bytes:
    position = directory_start + directory_bytes
    records = records if end.records is None else end.records
    directory_bytes = directory_bytes if end.directory_bytes is None else end.directory_bytes
    directory_start = directory_start if end.directory_start is None else end.directory_start
    written = b""
    if end.in_zip64:
        fields = (records, records, directory_bytes, directory_start)
        written += struct.pack("<4sQHHIIQQQQ", end.end64_signature, 44, 45, 45, 0, 0, *fields)
        end64_start = position if end.end64_start is None else end.end64_start
        written += struct.pack("<4sIQI", end.locator_signature, 0, end64_start, 1)
        records, directory_bytes, directory_start = end.short_records, 0xFFFFFFFF, 0xFFFFFFFF
    fields = (records, records, directory_bytes, directory_start, len(end.comment))
    written += struct.pack("<4sHHHHIIH", b"PK\5\6", end.disk, end.disk, *fields)
    return written + end.comment


def without_checksums(archive: bytes) -> bytes:
    """Return a small archive whose directory says that no checksum was computed."""
    changed = bytearray(archive)
    entry = changed.find(b"PK\1\2")
    while entry >= 0:
        changed[entry + 16 : entry + 20] = bytes(4)
        entry = changed.find(b"PK\1\2", entry + 46)
    return bytes(changed)


# Pickled tensors, storages and state dicts


def name(dotted: str) -> Global:
    """Return the inert name of ``package.module.attribute``."""
    return Global(*dotted.rsplit(".", 1))


def storage_id(
    key: Value = "0", elements: Value = 4, *, kind: Value = "torch.FloatStorage", view: Value = ...
) -> PersistentId:
    kind = name(kind) if isinstance(kind, str) else kind
    fields = ("storage", kind, key, "cpu", elements)
    return PersistentId(fields if view is ... else (*fields, view))


def tensor_call(
    shape: Value = (4,),
    strides: Value = (1,),
    *,
    offset: Value = 0,
    storage: Value = None,
    metadata: Value = None,
) -> Call:
    """Return what rebuilds a float32 tensor on storage 0 of 4 elements, unless told otherwise."""
    arguments = (storage or storage_id(), offset, shape, strides, False, ordered_dict())
    if metadata is not None:
        arguments = (*arguments, metadata)
    return Call(name("torch._utils._rebuild_tensor_v2"), arguments)


def parameter_call(tensor: Value) -> Call:
    return Call(name("torch._utils._rebuild_parameter"), (tensor, True, ordered_dict()))


def ordered_dict() -> Call:
    return Call(name("collections.OrderedDict"), ())


FLOATS = struct.pack("<4f", 1, 2, 3, 4)


def archive_records(
    value: Value | bytes, storages: Mapping[str, bytes] | None = None
) -> dict[str, bytes | ZipRecord]:
    """Return the records that `torch.save` would write for a pickled ``value``."""
    pickled = value if isinstance(value, bytes) else write_pickle(value)
    storages = {"0": FLOATS} if storages is None else storages
    return {
        "archive/data.pkl": pickled,
        "archive/byteorder": b"little",
        **{f"archive/data/{key}": content for key, content in storages.items()},
        "archive/version": b"3\n",
    }


def legacy_bytes(
    value: Value | bytes,
    storages: Mapping[str, tuple[int, bytes]] | None = None,
    *,
    keys: Value = None,
    system: Value = None,
) -> bytes:
    """Return a legacy stream of a pickled ``value``; a storage is a count and its bytes."""
    storages = {"0": (4, FLOATS)} if storages is None else storages
    head = (
        0x1950A86A20F9469CFC6C,
        1001,
        {"protocol_version": 1001, "little_endian": True} if system is None else system,
    )
    parts = [write_pickle(part) for part in head]
    parts.append(value if isinstance(value, bytes) else write_pickle(value))
    parts.append(write_pickle(list(storages) if keys is None else keys))
    parts += [struct.pack("<q", count) + content for count, content in storages.values()]
    return b"".join(parts)


def safetensors_bytes(header: bytes, tensors: bytes = FLOATS, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + tensors


SAFETENSORS_HEADER = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'


def small_state_dict() -> dict[str, torch.Tensor]:
    """Return entries that differ in dtype, dimensions and layout, one storage shared."""
    matrix = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    return {
        "weight": matrix,
        "transposed": matrix.t(),
        "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "count": torch.tensor(7),
        "none": torch.zeros(0, 3),
    }


def saved(value: Any, **options: Any) -> bytes:
    """Return what `torch.save` writes for ``value``; ``legacy`` asks for the old format."""
    file = io.BytesIO()
    legacy = options.pop("legacy", False)
    torch.save(value, file, _use_new_zipfile_serialization=not legacy, **options)
    return file.getvalue()


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    """Return the elements in row-major order, as torch has them in memory."""
    dense = torch.empty(tensor.numel(), dtype=tensor.dtype)
    dense.copy_(tensor.detach().resolve_conj().reshape(-1))
    return bytes(dense.view(torch.uint8).tolist()) if dense.numel() else b""


# Opening


def pickle_of(encoded: bytes) -> Pickle:
    return read_pickle(io.BytesIO(encoded))


Open = Callable[[bytes], Checkpoint]
Refuse = Callable[[bytes], str]
Sources = Callable[[bytes], ByteSource]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Open a checkpoint of the given bytes, closed after the test."""
    checkpoints: list[Checkpoint] = []

    def open_bytes(content: bytes) -> Checkpoint:
        path = tmp_path / f"model{len(checkpoints)}.pt"
        path.write_bytes(content)
        checkpoints.append(open_checkpoint(path))
        return checkpoints[-1]

    yield open_bytes
    for checkpoint in checkpoints:
        checkpoint.__exit__(None, None, None)


@pytest.fixture
def refused(tmp_path: Path) -> Refuse:
    """Open and read a checkpoint that has to be refused; return the message."""

    def refuse(content: bytes) -> str:
        error = outcome(tmp_path / "model.pt", content)
        assert error is not None, "the file was read without complaint"
        return str(error)

    return refuse


@pytest.fixture
def source_of(tmp_path: Path) -> Iterator[Sources]:
    """Open a file of the given bytes as a source, closed after the test."""
    sources: list[ByteSource] = []

    def open_source(content: bytes) -> ByteSource:
        path = tmp_path / f"source{len(sources)}"
        path.write_bytes(content)
        sources.append(ByteSource(path))
        return sources[-1]

    yield open_source
    for source in sources:
        source.close()


def outcome(path: Path, content: bytes) -> InputError | None:
    """Open ``content`` and read every tensor and checksum: None, or why it was refused.

    An entry that cannot be written counts as refused, which is what `convert` makes of it.
    """
    path.write_bytes(content)
    try:
        with open_checkpoint(path) as checkpoint, located(str(path)):
            for name, reason in checkpoint.state_dict().unsupported.items():
                raise UnsupportedFileError(reason, where=(f"entry {name!a}",))
        with open_checkpoint(path) as checkpoint:
            for entry in checkpoint.entries.values():
                with located(str(path)):
                    assert len(entry.read()) == entry.size_bytes
            checkpoint.fingerprint()
    except InputError as error:
        check_message(error, path)
        return error
    return None


def check_message(error: InputError, path: Path) -> None:
    assert error.exit_code == 3
    assert str(error).startswith(str(path)), "the message names the file first"
    assert error.problem != str(path), "the message says what is wrong"
    assert len(str(error)) < 1000


def stream_of(source: ByteSource) -> io.BufferedReader:
    return stream(FileExtent(source, 0, source.size_bytes))
