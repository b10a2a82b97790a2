"""What is read is written as it was, and what is written is read as it was."""

from __future__ import annotations

import io
import pickle
import zipfile
from typing import Any

import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from frozenbn_cli.errors import UnsupportedFileError
from frozenbn_cli.pickles.values import Call, Global, PersistentId, Value
from frozenbn_cli.pickles.writer import write_pickle
from tests.builders.models import build
from tests.conftest import name, pickle_of, saved

TEXT = st.text(st.characters(), max_size=5) | st.text(st.characters(), max_size=300)
SURROGATES = st.text(st.characters(categories=["Cs"]), min_size=1, max_size=3)
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n"), max_size=20)
GLOBALS = st.builds(Global, NAMES, NAMES)
POWERS = st.integers(0, 3000).map(lambda bits: 2**bits)
INTEGERS = st.integers() | POWERS | POWERS.map(lambda power: -power) | POWERS.map(lambda n: n - 1)
ATOMS = st.none() | st.booleans() | INTEGERS | st.floats() | TEXT | SURROGATES
KEYS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | TEXT | GLOBALS,
    lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)


def twice(inner: st.SearchStrategy[Value]) -> st.SearchStrategy[Value]:
    """The same object in several places."""
    return inner.map(lambda value: [value, (value, value), {"again": value}])


def nested(
    inner: st.SearchStrategy[Value], keys: st.SearchStrategy[Value]
) -> st.SearchStrategy[Value]:
    lists = st.lists(inner, max_size=5)
    return lists | lists.map(tuple) | st.dictionaries(keys, inner, max_size=4) | twice(inner)


@st.composite
def calls(draw: st.DrawFn, inner: st.SearchStrategy[Value]) -> Call:
    call = Call(draw(GLOBALS), tuple(draw(st.lists(inner, max_size=3))))
    call.is_new = draw(st.booleans())
    if call.is_new and draw(st.booleans()):
        call.keywords = draw(st.dictionaries(TEXT, inner, max_size=2))
    call.appended = draw(st.lists(inner, max_size=3))
    call.items = draw(st.lists(st.tuples(KEYS, inner), max_size=3))
    if draw(st.booleans()):
        call.state, call.has_state = draw(inner), True
    return call


PLAIN_VALUES = st.recursive(
    ATOMS,
    lambda inner: nested(inner, st.none() | st.integers(-(2**63), 2**63) | TEXT),
    max_leaves=20,
)
VALUES = st.recursive(
    ATOMS | st.binary(max_size=300) | st.binary(max_size=300).map(bytearray) | GLOBALS,
    lambda inner: (
        nested(inner, KEYS)
        | st.sets(KEYS, max_size=4)
        | st.frozensets(KEYS, max_size=4)
        | inner.map(PersistentId)
        | calls(inner)
    ),
    max_leaves=20,
)


def parts_of(value: Value) -> tuple[Any, list[Value]]:
    """Return what tells a value from others of its type, and the values inside it."""
    if isinstance(value, (list, tuple)):
        return len(value), list(value)
    if isinstance(value, dict):
        return len(value), [part for item in value.items() for part in item]
    if isinstance(value, (set, frozenset)):
        return sorted(str(structure(part)) for part in value), []
    if isinstance(value, PersistentId):
        return None, [value.value]
    if isinstance(value, Call):
        items = [part for item in value.items for part in item]
        inside = [value.function, value.arguments, value.keywords, value.state]
        lengths = (len(value.appended), len(value.items))
        return (value.is_new, value.has_state, *lengths), [*inside, *value.appended, *items]
    if isinstance(value, Global):
        return (value.module, value.name), []
    return value.hex() if isinstance(value, float) else value, []


def structure(value: Value) -> list[Any]:
    """Return the objects met on a walk, each with its parts; one met before is its number.

    Values of equal structures are equal in content, types, order and sharing.
    """
    numbers: dict[int, int] = {}
    walk: list[Any] = []
    left = [value]
    while left:
        part = left.pop()
        if id(part) in numbers:
            walk.append(f"object {numbers[id(part)]} again")
            continue
        if has_identity(part):
            numbers[id(part)] = len(numbers)
        content, inside = parts_of(part)
        walk.append((type(part).__name__, content))
        left += reversed(inside)
    return walk


def has_identity(value: Value) -> bool:
    """Return whether it matters that one object is met twice, rather than two equal ones."""
    if isinstance(value, (str, bytes, tuple, frozenset)):
        return len(value) > 1
    return isinstance(value, (bytearray, list, dict, set, Call))


def round_trip(value: Value) -> Value:
    return pickle_of(write_pickle(value)).value


def pickle_record(archive: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        [record] = [name for name in opened.namelist() if name.endswith("/data.pkl")]
        return opened.read(record)


@given(VALUES)
def test_reads_back_what_was_written(value: Value) -> None:
    assert structure(round_trip(value)) == structure(value)


@given(PLAIN_VALUES)
def test_writes_what_the_standard_pickler_writes(value: Value) -> None:
    assert write_pickle(value) == pickle.dumps(value, 2)


@given(PLAIN_VALUES)
def test_writes_again_what_the_standard_pickler_wrote(value: Value) -> None:
    pickled = pickle.dumps(value, 2)

    assert write_pickle(pickle_of(pickled).value) == pickled


@given(VALUES)
def test_writes_the_same_again_after_reading_it(value: Value) -> None:
    once = write_pickle(value)

    # A set has no order of its own to keep.
    if not any("set" in str(node) for node in structure(value)):
        assert write_pickle(pickle_of(once).value) == once


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 999, 1000, 1001, 2000, 2001])
def test_batches_items_as_the_standard_pickler_does(count: int) -> None:
    numbers = list(range(count))
    for value in (numbers, dict.fromkeys(numbers), [str(number) for number in numbers]):
        assert write_pickle(value) == pickle.dumps(value, 2)


def test_writes_large_memo_indices_as_the_standard_pickler_does() -> None:
    texts = [f"entry {number}" for number in range(300)]

    assert write_pickle(texts + texts) == pickle.dumps(texts + texts, 2)


def test_keeps_a_list_and_a_dict_that_hold_themselves() -> None:
    items: list[Value] = [1]
    items.append(items)
    mapping: dict[str, Value] = {"list": items}
    mapping["self"] = mapping

    read = round_trip(mapping)

    assert read["self"] is read
    assert read["list"][1] is read["list"]
    assert write_pickle(mapping) == pickle.dumps(mapping, 2)


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_keeps_a_tuple_that_holds_itself_through_a_list(length: int) -> None:
    inner: list[Value] = []
    looped = (inner, *range(length - 1))
    inner.append(looped)

    read = round_trip(looped)

    assert read[0][0] is read
    assert write_pickle(looped) == pickle.dumps(looped, 2)


def test_keeps_a_call_that_holds_itself_through_an_argument() -> None:
    inner: list[Value] = []
    call = Call(name("package.Type"), (inner,))
    inner.append(call)

    read = round_trip(call)

    assert read.arguments[0][0] is read


def test_keeps_a_call_that_holds_itself_through_its_state() -> None:
    call = Call(name("package.Type"), (), is_new=True, has_state=True)
    call.state = {"self": call}

    read = round_trip(call)

    assert read.state["self"] is read


def test_keeps_a_state_of_none_apart_from_no_state() -> None:
    with_state = Call(name("package.Type"), (), has_state=True)
    without = Call(name("package.Type"), ())

    assert [call.has_state for call in round_trip([with_state, without])] == [True, False]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_reads_the_same_object_from_every_protocol(protocol: int, legacy: bool) -> None:
    value = {"epoch": 3, "names": ("a", "bb"), "lr": 0.1, "seen": {1, 2}, "raw": b"\0\xff"}

    expected = structure(round_trip({key: value[key] for key in ("epoch", "names", "lr")}))
    read = pickle_of(pickle.dumps(value, protocol)).value
    raw = read.pop("raw")
    seen = read.pop("seen")

    assert structure(read) == expected
    assert raw == value["raw"] or raw.arguments == ("\0\xff", "latin1")
    assert seen == value["seen"] or seen.arguments == ([1, 2],)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())


def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return a training checkpoint after one step of ``optimizer``."""
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {
        "epoch": 3,
        "best": 0.7123,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "history": [0.1 * step for step in range(1200)],
        "arch": "resnet18",
    }


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return build(torchvision.models.resnet18)


def test_writes_the_pickle_of_a_state_dict_byte_for_byte(resnet: nn.Module) -> None:
    for state in (resnet.state_dict(), nn.Sequential(nn.BatchNorm2d(2)).state_dict()):
        pickled = pickle_record(saved(state))

        assert write_pickle(pickle_of(pickled).value) == pickled


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_writes_the_pickle_of_a_training_checkpoint_byte_for_byte(
    resnet: nn.Module, optimizer: type[torch.optim.Optimizer]
) -> None:
    options = {"lr": 0.1, "momentum": 0.9} if optimizer is torch.optim.SGD else {"lr": 0.1}
    pickled = pickle_record(saved(trained(resnet, optimizer(resnet.parameters(), **options))))

    assert write_pickle(pickle_of(pickled).value) == pickled


def test_writes_the_pickle_of_a_whole_model_byte_for_byte() -> None:
    pickled = pickle_record(saved(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))))

    assert write_pickle(pickle_of(pickled).value) == pickled


def test_writes_one_character_texts_apart_where_they_were() -> None:
    # Two objects, as str(5) made them, and then one object twice.
    apart = b"\x80\x02](X\1\0\0\0aX\1\0\0\0ae."
    shared = b"\x80\x02]q\0(X\1\0\0\0aq\1h\1e."

    assert write_pickle(pickle_of(apart).value).count(b"X") == 2
    assert write_pickle(pickle_of(shared).value) == shared


def test_declares_the_first_protocol_that_has_what_is_written() -> None:
    declared = {
        "text": 2,
        b"bytes": 3,
        frozenset([1]): 4,
        Call(name("a.B"), (), {}, True): 4,
    }

    assert {value: write_pickle(value)[1] for value in declared} == declared
    assert write_pickle(bytearray(b"x"))[1] == 5


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), "cannot be pickled as an inert value"),
        ([1j], "cannot be pickled as an inert value"),
        (Global("a\nb", "c"), "line break"),
        (Global("a", "\ud800"), "no valid text"),
    ],
)
def test_refuses_what_is_not_inert(value: Value, message: str) -> None:
    with pytest.raises(UnsupportedFileError, match=message):
        write_pickle(value)


def test_refuses_values_nested_too_deeply() -> None:
    value: list[Value] = []
    for _ in range(5000):
        value = [value]

    with pytest.raises(UnsupportedFileError, match="nested deeper"):
        write_pickle(value)
