"""The safetensors header is read as strictly as the format's own library reads it."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load, save

from frozenbn_cli.checkpoints.tensors import DTYPES
from tests.conftest import (
    FLOATS,
    SAFETENSORS_HEADER,
    Open,
    Refuse,
    outcome,
    safetensors_bytes,
    tensor_bytes,
)


def described(**changes: Any) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}


def of_header(header: Any, tensors: bytes = FLOATS) -> bytes:
    return safetensors_bytes(json.dumps(header).encode(), tensors)


def state() -> dict[str, torch.Tensor]:
    return {
        "weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "count": torch.tensor(7),
        "none": torch.zeros(0, 3),
        "größe": torch.tensor([True, False]),
    }


def test_reads_what_the_library_writes(opened: Open) -> None:
    checkpoint = opened(save(state(), metadata={"format": "pt", "note": "ä\n"}))

    assert checkpoint.container == "safetensors"
    assert checkpoint.metadata == {"format": "pt", "note": "ä\n"}
    assert checkpoint.entries.keys() == state().keys()
    for name, tensor in state().items():
        assert checkpoint.entries[name].shape == tuple(tensor.shape)
        assert checkpoint.entries[name].read() == tensor_bytes(tensor)


@pytest.mark.parametrize("name", [name for name, dtype in DTYPES.items() if dtype.code])
def test_reads_every_dtype_of_the_library(name: str, opened: Open) -> None:
    dtype = getattr(torch, name, None)
    if dtype is None:
        pytest.skip(f"this PyTorch has no {name}")
    tensor = torch.arange(8, dtype=torch.uint8).repeat(4).view(torch.uint8) % 2
    tensor = tensor.view(dtype)

    entry = opened(save({"a": tensor})).entries["a"]

    assert f"torch.{entry.dtype}" == str(dtype)
    assert entry.read() == tensor_bytes(tensor)


def test_reads_a_header_without_tensors(opened: Open) -> None:
    assert opened(of_header({}, b"")).entries == {}
    assert opened(of_header({"__metadata__": {}}, b"")).metadata == {}


def test_keeps_the_order_of_the_bytes(opened: Open) -> None:
    header = {
        "b": described(shape=[2], data_offsets=[8, 16]),
        "a": described(shape=[2], data_offsets=[0, 8]),
    }

    entries = opened(of_header(header)).entries

    assert list(entries) == ["a", "b"]
    assert entries["b"].values() == (3, 4)


@pytest.mark.parametrize("position", [0, 8, 16])
def test_reads_an_empty_tensor_listed_behind_its_successor(position: int, opened: Open) -> None:
    header = {
        "a": described(shape=[2], data_offsets=[0, 8]),
        "b": described(shape=[2], data_offsets=[8, 16]),
        "empty": described(shape=[0], data_offsets=[position, position]),
    }

    entries = opened(of_header(header)).entries

    assert load(of_header(header))["b"].tolist() == [3, 4]
    assert entries["b"].values() == (3, 4)
    assert entries["empty"].values() == ()


def test_reads_a_padded_header(opened: Open) -> None:
    assert opened(safetensors_bytes(SAFETENSORS_HEADER + b"   ")).entries["a"].read() == FLOATS


@pytest.mark.parametrize("cut", range(1, 17))
def test_rejects_truncated_tensors(cut: int, refused: Refuse) -> None:
    whole = safetensors_bytes(SAFETENSORS_HEADER)

    assert "may be truncated" in refused(whole[:-cut])


def test_rejects_truncation_at_every_byte(tmp_path: Path) -> None:
    whole = save(state(), metadata={"format": "pt"})
    assert outcome(tmp_path / "whole.safetensors", whole) is None
    for length in range(len(whole)):
        assert outcome(tmp_path / "cut.safetensors", whole[:length]), length


def test_rejects_bytes_behind_the_tensors(refused: Refuse) -> None:
    assert "end elsewhere" in refused(safetensors_bytes(SAFETENSORS_HEADER, FLOATS + b"\0"))


def test_rejects_or_survives_thousands_of_changed_bytes(tmp_path: Path) -> None:
    chance = random.Random(0)
    whole = save(state(), metadata={"format": "pt"})
    head_bytes = 8 + struct.unpack_from("<Q", whole)[0]
    found = {"read": 0, "refused": 0}
    for _ in range(2500):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 1, 3))):
            damaged[chance.randrange(head_bytes)] = chance.choice(b'09[]{},:"\\ aF\xff\0')
        error = outcome(tmp_path / "flipped.safetensors", bytes(damaged))
        found["refused" if error else "read"] += 1

    assert found["read"] > 100
    assert found["refused"] > 1000


@given(st.data())
def test_accepts_nothing_that_the_library_rejects(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = save({"weight": torch.arange(4.0), "bias": torch.arange(2)})
    head_bytes = 8 + struct.unpack_from("<Q", whole)[0]
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, head_bytes - 1))] = data.draw(st.integers(0, 255))

    error = outcome(tmp_path_factory.getbasetemp() / "damaged.safetensors", bytes(damaged))

    try:
        load(bytes(damaged))
    except (SafetensorError, KeyError, ValueError, RuntimeError):
        assert error is not None


@pytest.mark.parametrize("length", [len(SAFETENSORS_HEADER) + 17, 1 << 24])
def test_rejects_a_header_longer_than_the_file(length: int, refused: Refuse) -> None:
    message = refused(safetensors_bytes(SAFETENSORS_HEADER, length=length))

    assert f"safetensors header: expected {length:,} bytes" in message


@pytest.mark.parametrize("length", [1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_takes_an_impossible_length_for_another_kind_of_file(length: int, refused: Refuse) -> None:
    assert refused(safetensors_bytes(SAFETENSORS_HEADER, length=length))


@pytest.mark.parametrize("length", [0, 1, 2, 20, len(SAFETENSORS_HEADER) - 1])
def test_rejects_a_header_shorter_than_it_is(length: int, refused: Refuse) -> None:
    assert "safetensors header" in refused(safetensors_bytes(SAFETENSORS_HEADER, length=length))


FALSE_ENTRIES = {
    "end_beyond_the_file": ({"data_offsets": [0, 17]}, "end elsewhere"),
    "start_behind_the_end": ({"data_offsets": [16, 0]}, "expected at byte"),
    "hole_in_front": ({"data_offsets": [4, 20]}, "expected at byte"),
    "negative": ({"data_offsets": [-1, 16]}, "expected dtype, shape and data_offsets"),
    "huge": ({"data_offsets": [0, 2**63]}, "expected dtype, shape and data_offsets"),
    "far": ({"data_offsets": [0, 2**62]}, "end elsewhere"),
    "one_offset": ({"data_offsets": [0]}, "expected dtype, shape and data_offsets"),
    "offsets_no_list": ({"data_offsets": {}}, "expected dtype, shape and data_offsets"),
    "float_offsets": ({"data_offsets": [0.0, 16.0]}, "expected dtype, shape and data_offsets"),
    "bool_offsets": ({"data_offsets": [False, 16]}, "expected dtype, shape and data_offsets"),
    "shape_too_small": ({"shape": [3]}, "expected 12 bytes, found 16"),
    "shape_too_large": ({"shape": [2, 3]}, "expected a storage of 24 bytes, found 16"),
    "shape_negative": ({"shape": [-4]}, "expected dtype, shape and data_offsets"),
    "shape_bool": ({"shape": [4, True]}, "expected dtype, shape and data_offsets"),
    "shape_float": ({"shape": [4.0]}, "expected dtype, shape and data_offsets"),
    "shape_huge": ({"shape": [2**64]}, "expected dtype, shape and data_offsets"),
    "shape_overflows": ({"shape": [2**62, 2**62]}, "a tensor"),
    "shape_of_too_many": ({"shape": [1] * 100_000}, "100000 dimensions"),
    "shape_of_too_many_huge": ({"shape": [2**62] * 100_000}, "100000 dimensions"),
    "dtype_unknown": ({"dtype": "F1"}, "dtype 'F1' of safetensors is not supported"),
    "dtype_long": ({"dtype": "F" * 10**6}, "is not supported"),
    "dtype_no_text": ({"dtype": 32}, "expected dtype, shape and data_offsets"),
    "another_field": ({"more": 1}, "expected dtype, shape and data_offsets"),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), FALSE_ENTRIES.values(), ids=FALSE_ENTRIES)
def test_rejects_false_entries(changes: dict[str, Any], message: str, refused: Refuse) -> None:
    start = time.process_time()

    assert message in refused(of_header({"a": described(**changes)}))
    assert time.process_time() - start < 30


@pytest.mark.parametrize("entry", [None, 1, "text", [], [1, 2], {}, {"dtype": "F32"}], ids=repr)
def test_rejects_entries_that_are_none(entry: Any, refused: Refuse) -> None:
    assert "entry 'a': expected dtype, shape and data_offsets" in refused(of_header({"a": entry}))


def test_rejects_overlapping_entries(refused: Refuse) -> None:
    header = {"a": described(), "b": described()}

    assert "entry 'b': expected at byte" in refused(of_header(header))


@pytest.mark.parametrize("metadata", [{"a": 1}, {"a": None}, {"a": {}}, [], "text", 1], ids=repr)
def test_rejects_metadata_that_is_no_text(metadata: Any, refused: Refuse) -> None:
    header = {"__metadata__": metadata, "a": described()}

    assert "__metadata__ maps something else" in refused(of_header(header))


HEADERS = {
    "no_json": b"{]",
    "cut": SAFETENSORS_HEADER[:-1],
    "behind": SAFETENSORS_HEADER + b"}",
    "field_twice": SAFETENSORS_HEADER.replace(b'"shape"', b'"dtype":"F32","shape"'),
    "invalid_utf_8": SAFETENSORS_HEADER.replace(b'"a"', b'"\xff"'),
    "surrogate_bytes": SAFETENSORS_HEADER.replace(b'"a"', b'"\xed\xa0\x80"'),
    "surrogate_escape": SAFETENSORS_HEADER.replace(b'"a"', b'"\\ud800"'),
    "utf_16": SAFETENSORS_HEADER.decode().encode("utf-16-le"),
    "utf_32": SAFETENSORS_HEADER.decode().encode("utf-32-le"),
    "number_of_5000_digits": SAFETENSORS_HEADER.replace(b"16", b"1" * 5000),
    "not_a_number": SAFETENSORS_HEADER.replace(b"16", b"NaN"),
    "infinity": SAFETENSORS_HEADER.replace(b"16", b"Infinity"),
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_rejects_headers_that_the_library_rejects(header: bytes, refused: Refuse) -> None:
    file = safetensors_bytes(header)

    with pytest.raises((SafetensorError, ValueError)):
        load(file)
    assert "safetensors header" in refused(file)


def test_rejects_a_name_that_stands_twice(refused: Refuse) -> None:
    header = SAFETENSORS_HEADER[:-1] + b"," + SAFETENSORS_HEADER[1:]

    assert "a name stands twice" in refused(safetensors_bytes(header))


@pytest.mark.parametrize("depth", [*range(600, 1000, 3), 100_000])
def test_rejects_deeply_nested_headers(depth: int, refused: Refuse) -> None:
    nested = b'{"a":' + b"[" * depth + b"]" * depth + b"}"

    assert "safetensors header" in refused(safetensors_bytes(nested))


READ_IN_LITTLE_MEMORY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))
resource.setrlimit(resource.RLIMIT_CPU, (30, 30))
from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.errors import InputError
try:
    with open_checkpoint(sys.argv[1]):
        print("read")
except InputError as error:
    print(error.problem)
"""


def read_in_little_memory(path: Path) -> str:
    child = subprocess.run(
        [sys.executable, "-c", READ_IN_LITTLE_MEMORY, path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


def test_does_not_read_a_header_of_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 5 << 30) + b"{")
        file.truncate(6 << 30)

    assert "beyond any model" in read_in_little_memory(path)


@pytest.mark.parametrize("part", [b"{},", b'{"a":1},', b"[1],", b'"",', b"1,"])
def test_reads_or_refuses_json_bombs_in_little_memory(part: bytes, tmp_path: Path) -> None:
    count = min(1_900_000 // (1 + part.count(b"{") + part.count(b"[")), (30 << 20) // len(part))
    path = tmp_path / "bomb.safetensors"
    path.write_bytes(safetensors_bytes(b'{"a":[' + part * count + b"0]}"))

    assert "expected dtype, shape and data_offsets" in read_in_little_memory(path)


def test_refuses_headers_of_more_parts_than_any_model_has(refused: Refuse) -> None:
    assert "more entries than any model" in refused(safetensors_bytes(b'{"a":[' + b"[" * 2_000_001))
