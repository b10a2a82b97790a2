"""The stream of `torch.save` before version 1.6 is read whole, or refused with the place."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path

import pytest
import torch

from frozenbn_cli.containers.signatures import has_legacy_magic
from frozenbn_cli.pickles.reader import read_pickle
from frozenbn_cli.pickles.values import Value
from frozenbn_cli.pickles.writer import write_pickle
from tests.conftest import (
    FLOATS,
    Open,
    Refuse,
    legacy_bytes,
    name,
    outcome,
    saved,
    small_state_dict,
    storage_id,
    tensor_bytes,
    tensor_call,
)

STATE = {"a": tensor_call()}


@pytest.fixture(scope="module")
def stream() -> bytes:
    return saved(small_state_dict(), legacy=True)


def pickle_ends(stream: bytes) -> list[int]:
    """Return where each of the five pickles of a legacy stream ends."""
    file = io.BytesIO(stream)
    ends = []
    for _ in range(5):
        read_pickle(file)
        ends.append(file.tell())
    return ends


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_every_protocol(protocol: int, opened: Open) -> None:
    checkpoint = opened(saved(small_state_dict(), legacy=True, pickle_protocol=protocol))

    assert checkpoint.container == "PyTorch legacy"
    for key, tensor in small_state_dict().items():
        assert checkpoint.entries[key].shape == tuple(tensor.shape)
        assert checkpoint.entries[key].read() == tensor_bytes(tensor)


def test_reads_a_stream_built_by_hand(opened: Open) -> None:
    checkpoint = opened(legacy_bytes(STATE))

    assert checkpoint.entries["a"].values() == (1, 2, 3, 4)


def test_reads_a_storage_that_two_entries_share(opened: Open) -> None:
    whole = torch.arange(6.0)

    entries = opened(saved({"whole": whole, "part": whole[4:]}, legacy=True)).entries

    assert entries["part"].values() == (4, 5)
    assert entries["part"].storage is entries["whole"].storage


@pytest.mark.parametrize(
    ("view", "values"),
    [(("7", 0, 4), (1, 2)), (("7", 1, 3), (2, 3)), (("7", 2, 2), (3, 4)), (None, (1, 2))],
)
def test_reads_a_view_of_a_storage(
    view: Value, values: tuple[float, ...], opened: Open, tmp_path: Path
) -> None:
    tensor = tensor_call((2,), storage=storage_id("0", 4, view=view))
    stream = legacy_bytes({"a": tensor})

    assert opened(stream).entries["a"].values() == values
    assert torch.load(io.BytesIO(stream))["a"].tolist() == list(values)


@pytest.mark.parametrize(
    "view",
    [
        ("7", 1, 4),
        ("7", -1, 2),
        ("7", 0, -1),
        ("7", 0, 2**70),
        ("7", True, 2),
        ("7", 0.0, 2),
        ("7", 0),
        "7",
        7,
    ],
    ids=str,
)
def test_rejects_a_view_that_reaches_outside(view: Value, refused: Refuse) -> None:
    tensor = tensor_call((2,), storage=storage_id("0", 4, view=view))

    assert "entry 'a': a view of a storage" in refused(legacy_bytes({"a": tensor}))


def test_rejects_a_tensor_that_reaches_outside_a_view(refused: Refuse) -> None:
    tensor = tensor_call((3,), storage=storage_id("0", 4, view=("7", 2, 2)))

    assert "reaches outside its storage" in refused(legacy_bytes({"a": tensor}))


def test_rejects_truncation_at_every_byte(stream: bytes, tmp_path: Path) -> None:
    assert outcome(tmp_path / "whole.pt", stream) is None
    for length in range(len(stream)):
        assert outcome(tmp_path / "cut.pt", stream[:length]), length


def test_names_the_part_at_which_a_stream_was_cut(stream: bytes, refused: Refuse) -> None:
    parts = ("protocol", "system description", "object", "storage keys", "storages")
    for end, part in zip(pickle_ends(stream), parts, strict=True):
        message = refused(stream[:end])

        assert f", {part}" in message
        assert f"byte {end:,}" in message
    assert "may be truncated" in refused(stream[:-1])


def test_rejects_bytes_behind_the_last_storage(stream: bytes, refused: Refuse) -> None:
    assert "1 bytes more" in refused(stream + b"\0")


def test_rejects_or_survives_thousands_of_changed_bytes(stream: bytes, tmp_path: Path) -> None:
    chance = random.Random(0)
    head_bytes = pickle_ends(stream)[-1]
    found = {"read": 0, "refused": 0}
    for _ in range(2500):
        damaged = bytearray(stream)
        for _ in range(chance.choice((1, 1, 3))):
            damaged[chance.randrange(head_bytes + 8)] = chance.randrange(256)
        error = outcome(tmp_path / "flipped.pt", bytes(damaged))
        found["refused" if error else "read"] += 1

    assert found["read"] > 100
    assert found["refused"] > 1000


@pytest.mark.parametrize("count", [5, 3, -1, 2**62, -(2**63)])
def test_rejects_a_false_element_count(count: int, refused: Refuse) -> None:
    assert "storages" in refused(legacy_bytes(STATE, {"0": (count, FLOATS)}))


def test_rejects_a_count_that_differs_from_the_one_of_the_object(refused: Refuse) -> None:
    stream = legacy_bytes({"a": tensor_call((3,), storage=storage_id("0", 3))})

    assert "storage '0': expected 3 elements of float32" in refused(stream)


FALSE_KEYS = {
    "no_list": ("0", "expected a list of strings"),
    "no_strings": ([0], "expected a list of strings"),
    "missing": ([], "24 bytes more"),
    "twice": (["0", "0"], "storage '0' is listed twice"),
    "unused": (["1"], "storage '1' is not used by the object"),
}


@pytest.mark.parametrize(("keys", "message"), FALSE_KEYS.values(), ids=FALSE_KEYS)
def test_rejects_false_storage_keys(keys: Value, message: str, refused: Refuse) -> None:
    stream = legacy_bytes(STATE, {"0": (2, FLOATS)}, keys=keys)

    assert message in refused(stream)


def test_rejects_a_storage_that_is_not_in_the_stream(refused: Refuse) -> None:
    assert "storage '0' is missing from the file" in refused(legacy_bytes(STATE, {}))


@pytest.mark.parametrize("system", [{"little_endian": False}, {"little_endian": 1}, {}, [], "x"])
def test_rejects_big_endian_streams(system: Value, refused: Refuse) -> None:
    assert "big-endian" in refused(legacy_bytes(STATE, system=system))


def test_rejects_another_protocol_of_the_stream(refused: Refuse) -> None:
    stream = legacy_bytes(STATE).replace(b"M" + struct.pack("<H", 1001), b"M\0\0", 1)

    assert "protocol: expected 1001, found 0" in refused(stream)


def test_leaves_other_references_alone(opened: Open) -> None:
    # What `torch.save(model)` writes of a module's source code.
    source = ("module", name("package.Layer"), "layer.py", "class Layer: ...")
    state = {"note": [source], "a": tensor_call()}

    assert opened(legacy_bytes(state)).entries["a"].values() == (1, 2, 3, 4)


def test_recognises_the_magic_number_in_every_protocol() -> None:
    for protocol in (2, 3, 4, 5):
        stream = saved({}, legacy=True, pickle_protocol=protocol)

        assert has_legacy_magic(stream[:64])
    assert not has_legacy_magic(write_pickle({"a": 1}))
    assert not has_legacy_magic(b"")
