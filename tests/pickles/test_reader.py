"""Pickles are read as inert values, and what is no pickle of a model is refused at once."""

from __future__ import annotations

import io
import pickle
import random
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.errors import DamagedFileError
from frozenbn_cli.pickles import reader
from frozenbn_cli.pickles.reader import MAX_OPCODES, read_pickle
from frozenbn_cli.pickles.values import Call, Global, PersistentId, Value, describe, items_of
from tests.conftest import Sources, name, pickle_of, stream_of

PROTO = b"\x80\x02"


def read(opcodes: bytes) -> Value:
    """Return the value of the pickle of ``opcodes``, to which head and STOP are added."""
    return pickle_of(PROTO + opcodes + b".").value


def refusal(pickled: bytes) -> str:
    with pytest.raises(DamagedFileError) as caught:
        pickle_of(pickled)
    return str(caught.value)


def test_stands_a_call_for_what_would_be_called() -> None:
    class Fraction:
        def __reduce__(self) -> tuple[object, ...]:
            return (print, ("never printed",), {"eps": 0.5})

    call = pickle_of(pickle.dumps(Fraction(), 2)).value

    assert isinstance(call, Call)
    assert call.function == Global("__builtin__", "print")
    assert call.arguments == ("never printed",)
    assert call.state == {"eps": 0.5}
    assert not call.is_new


def test_stands_a_new_call_with_keywords_for_an_instance() -> None:
    class Layer:
        def __getnewargs_ex__(self) -> tuple[tuple[int], dict[str, float]]:
            return (8,), {"eps": 0.5}

    Layer.__qualname__ = "Layer"
    globals()["Layer"] = Layer
    call = pickle_of(pickle.dumps(Layer(), 4)).value

    assert (call.function.name, call.is_new) == ("Layer", True)
    assert (call.arguments, call.keywords) == ((8,), {"eps": 0.5})


def test_lists_the_calls_and_the_persistent_ids_with_their_order() -> None:
    pickled = PROTO + b"](ccollections\nOrderedDict\n)RX\1\0\0\0aQX\1\0\0\0bQe."

    found = pickle_of(pickled)

    assert found.calls == {Global("collections", "OrderedDict"): pickled.index(b"R", 30)}
    assert [reference.value for reference in found.persistent_ids] == ["a", "b"]
    assert isinstance(found.value[1], PersistentId)
    assert found.protocol == 2


def test_leaves_the_stream_behind_the_pickle() -> None:
    stream = io.BytesIO(pickle.dumps([1], 2) + pickle.dumps("second", 4) + b"rest")

    assert read_pickle(stream).value == [1]
    assert read_pickle(stream).value == "second"
    assert stream.read() == b"rest"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_reads_every_binary_protocol(protocol: int) -> None:
    value = [{"a": (1, 2.5, None, True)}, "text" * 100, -(2**70), [], (), {}]

    assert pickle_of(pickle.dumps(value, protocol)).value == value


def test_refuses_the_protocol_of_text() -> None:
    assert "none that PyTorch writes" in refusal(pickle.dumps([1], 0))


def test_reads_texts_that_python_2_wrote_as_bytes() -> None:
    assert read(b"U\x05\xc3\xa9abcT\x02\0\0\0\xc3\xa9\x86") == ("éabc", "é")


def test_takes_names_as_they_stand() -> None:
    # Python resolves no escapes in them, and they may hold spaces.
    assert read(b"ca b\\x41\nc d\\d\n") == Global("a b\\x41", "c d\\d")
    assert read("cmödul\nKlasse\n".encode()) == Global("mödul", "Klasse")


def test_takes_the_items_of_an_ordered_dict_of_python_2() -> None:
    pairs = [["a", 1], ("b", 2)]

    assert items_of(Call(name("collections.OrderedDict"), (pairs,))) == [("a", 1), ("b", 2)]


def test_never_gives_items_that_no_dict_can_hold() -> None:
    pairs = [["a", 1], ([], 2)]

    assert items_of(Call(name("collections.OrderedDict"), (pairs,))) == []
    assert "hashable" in refusal(PROTO + b"ccollections\nOrderedDict\n)R]Ns.")


def test_takes_nothing_else_for_a_dict() -> None:
    assert items_of(Call(name("os.system"), ("true",), items=[("a", 1)])) is None
    assert items_of([("a", 1)]) is None


BROKEN = {
    "nothing": (b"", "ends before its STOP"),
    "only_head": (PROTO, "ends before its STOP"),
    "unknown_opcode": (PROTO + b"\xff.", "no opcode"),
    "protocol_too_new": (b"\x80\x06N.", "protocol: expected 2 to 5, found 6"),
    "empty_stack": (PROTO + b".", "more from the stack"),
    "pop_of_nothing": (PROTO + b"0.", "more from the stack"),
    "tuple_of_too_few": (PROTO + b"N\x86.", "more from the stack"),
    "no_mark": (PROTO + b"]e.", "more from the stack"),
    "left_over": (PROTO + b"NN.", "left on the stack"),
    "mark_left_over": (PROTO + b"(N.", "left on the stack"),
    "memo_never_stored": (PROTO + b"h\5.", "memo entry 5"),
    "large_memo_never_stored": (PROTO + b"j\xff\xff\xff\xff.", "memo entry 4294967295"),
    "memo_of_nothing": (PROTO + b"q\0.", "more from the stack"),
    "odd_items": (PROTO + b"}(NNNu.", "key without a value"),
    "items_on_a_list": (PROTO + b"](NNu.", "items set"),
    "append_to_a_dict": (PROTO + b"}Na.", "values appended"),
    "added_to_a_list": (PROTO + b"](N\x90.", "values added"),
    "list_as_key": (PROTO + b"}]Ns.", "hashable"),
    "dict_in_a_tuple_as_key": (PROTO + b"}}\x85Ns.", "hashable"),
    "bytearray_in_a_set": (PROTO + b"\x8f(\x96" + bytes(8) + b"\x90.", "hashable"),
    "set_in_a_frozen_set": (PROTO + b"(\x8f\x91.", "hashable"),
    "call_of_a_number": (PROTO + b"K\1)R.", "expected of a global"),
    "call_with_a_list": (PROTO + b"ca\nb\n]R.", "tuple of arguments"),
    "keywords_that_are_none": (PROTO + b"ca\nb\n)]\x92.", "tuple of arguments"),
    "state_for_a_list": (PROTO + b"]Nb.", "a state"),
    "two_states": (PROTO + b"ca\nb\n)RNbNb.", "a state"),
    "global_of_numbers": (PROTO + b"K\1K\2\x93.", "two strings"),
    "global_without_line_end": (PROTO + b"ctorch", "line break"),
    "global_that_is_no_text": (PROTO + b"c\xff\nb\n.", "not a pickle"),
    "text_that_is_no_text": (PROTO + b"X\1\0\0\0\xff.", "not a pickle"),
    "text_cut_short": (PROTO + b"X\5\0\0\0ab.", "not a pickle"),
    "negative_length": (PROTO + b"\x8b\xff\xff\xff\xff.", "not a pickle"),
    "extension": (PROTO + b"\x82\1.", "EXT1"),
    "instance": (PROTO + b"(ios\nsystem\n.", "INST"),
    "text_number": (PROTO + b"I1\n.", "opcode INT "),
    "out_of_band_buffer": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "persistent_text": (PROTO + b"Pabc\n.", "PERSID"),
}


@pytest.mark.parametrize(("pickled", "message"), BROKEN.values(), ids=BROKEN)
def test_refuses_broken_pickles(pickled: bytes, message: str) -> None:
    assert message in refusal(pickled)


def test_names_the_byte_of_the_opcode_that_is_wrong() -> None:
    pickled = PROTO + b"X\4\0\0\0textK\7](NNu."

    assert refusal(pickled).startswith(f"byte {pickled.index(b'u')}: items set")
    assert refusal(pickled[:8]).startswith("byte 2: not a pickle")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_refuses_a_pickle_cut_at_any_byte(protocol: int) -> None:
    value = {"a": [1, 2.5, "text"], "b": ({"c"}, b"raw"), "n": 2**80, "d": name}

    pickled = pickle.dumps(value, protocol)

    for length in range(len(pickled)):
        refusal(pickled[:length])


def survives(pickled: bytes) -> None:
    """Read ``pickled``: a value, whose description is short, or `DamagedFileError`."""
    try:
        message = describe(pickle_of(pickled).value)
    except DamagedFileError as error:
        message = str(error).removeprefix("byte ")
        assert_is_place(message)
    assert len(message) < 400


def assert_is_place(message: str) -> None:
    position = message.partition(":")[0]
    assert position.replace(",", "").isdigit(), message


def test_survives_thousands_of_changed_bytes() -> None:
    value = {"a": [1, 2.5, "text", 2**70], "b": (frozenset({"c"}), b"raw"), "n": name}
    chance = random.Random(0)
    for protocol in (2, 3, 4, 5):
        original = pickle.dumps([value, value], protocol)
        for _ in range(1500):
            changed = bytearray(original)
            for _ in range(chance.choice((1, 1, 2, 5))):
                changed[chance.randrange(len(changed))] = chance.randrange(256)
            survives(bytes(changed))


@given(st.lists(st.sampled_from(b"().]}NaesuRbQ0120\x85\x86\x87\x88\x8f\x90\x91\x93\x94q\0h\0K\1"))
       | st.binary())  # fmt: skip
def test_survives_any_opcodes(opcodes: list[int] | bytes) -> None:
    survives(PROTO + bytes(opcodes) + b".")


def nested_tuples(levels: int, width: int) -> bytes:
    """A tuple of ``width`` times the same tuple of ``width`` times the same…, as a key."""
    level = b"".join(
        b"(" + f"h{chr(at)}".encode() * width + b"tq" + bytes([at + 1]) for at in range(levels)
    )
    return b"}Nq\0" + level + b"Ns"


def colliding_tuples(count: int) -> bytes:
    """A dict whose keys are all different and all hash alike, since hash(-1) == hash(-2)."""
    halves = [
        b"".join(struct.pack("<ci", b"J", -1 - (n >> bit & 1)) for bit in range(9))
        for n in range(512)
    ]
    stored = b"".join(
        b"(" + half + b"tr" + struct.pack("<I", at) + b"0" for at, half in enumerate(halves)
    )
    keys = b"".join(
        b"j" + struct.pack("<I", n >> 9) + b"j" + struct.pack("<I", n & 511) + b"\x86N"
        for n in range(count)
    )
    return stored + b"}(" + keys + b"u"


def colliding_integers(count: int) -> bytes:
    keys = b"".join(
        b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little", signed=True) + b"N"
        for n in range(1, count)
    )
    return b"}(" + keys + b"u"


FEW = 200_000  # The number of opcodes to which these tests lower the bound.
HALF = FEW // 2 - 10
BOMBS = {
    "lists_in_lists": b"]" * HALF + b"a" * (HALF - 1),
    "tuples_in_tuples": b")" + b"\x85" * HALF,
    "calls_in_calls": b"ca\nb\nq\0" + b"h\0" * 60_000 + b")R" + b"\x85R" * 59_999,
    "states_in_states": b"ca\nb\nq\0" + b"h\0)R" * 40_000 + b"b" * 39_999,
    "references_in_references": b"N" + b"Q" * HALF,
    "marks": b"(" * FEW,
    "dicts": b"}" * FEW,
    "nothing_but_none": b"N0" * FEW,
    "memo_stores": b"N" + b"".join(b"r" + struct.pack("<I", n) for n in range(HALF)),
    "texts": b"X\0\0\0\0" * FEW,
    "protocols": PROTO * FEW,
    "deep_key": b"}N" + b"\x85" * 100_000 + b"Ns",
    "key_of_exponential_size": nested_tuples(7, 200),
    "keys_that_hash_alike": colliding_tuples(60_000),
    "integers_that_hash_alike": colliding_integers(60_000),
    "text_of_4_gigabytes": b"X\xff\xff\xff\xffabc",
    "text_of_exabytes": b"\x8d" + b"\xff" * 7 + b"\x7fabc",
    "bytes_of_exabytes": b"\x8e" + b"\xff" * 7 + b"\x7fabc",
    "bytearray_of_exabytes": b"\x96" + b"\xff" * 7 + b"\x7fabc",
    "number_of_2_gigabytes": b"\x8b\xff\xff\xff\x7fabc",
    "name_without_end": b"c" + b"a" * 5_000_000,
    "itself": b"]q\0h\0a",
}


@pytest.mark.parametrize("opcodes", BOMBS.values(), ids=BOMBS)
def test_reads_or_refuses_bombs_quickly(
    opcodes: bytes, source_of: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MAX_OPCODES", FEW)
    stream = stream_of(source_of(PROTO + opcodes + b"."))
    start = time.process_time()

    try:
        message = describe(read_pickle(stream).value)
    except DamagedFileError as error:
        message = str(error)

    assert len(message) < 400
    assert time.process_time() - start < 30


@pytest.mark.parametrize(
    "bomb", ["key_of_exponential_size", "keys_that_hash_alike", "integers_that_hash_alike",
             "deep_key", "marks", "dicts", "texts", "text_of_exabytes", "name_without_end"],
)  # fmt: skip
def test_refuses_what_no_model_needs(bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_OPCODES", FEW)

    assert "byte " in refusal(PROTO + BOMBS[bomb] + b".")


def test_allocates_no_more_than_the_file_holds(source_of: Sources) -> None:
    sources = [source_of(PROTO + BOMBS[bomb] + b".") for bomb in BOMBS if "bytes" in bomb]
    assert len(sources) == 5
    tracemalloc.start()
    for source in sources:
        with pytest.raises(DamagedFileError):
            read_pickle(stream_of(source))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < 2 << 20


SURVIVES_LITTLE_MEMORY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))
from pathlib import Path
from frozenbn_cli.containers.source import ByteSource, FileExtent, stream
from frozenbn_cli.errors import DamagedFileError
from frozenbn_cli.pickles.reader import read_pickle

source = ByteSource(Path(sys.argv[1]))
try:
    value = read_pickle(stream(FileExtent(source, 0, source.size_bytes))).value
    del value
except DamagedFileError:
    pass
print("survived")
"""


@pytest.mark.parametrize("opcode", [pytest.param(b"\x8f", marks=pytest.mark.slow), b"("])
def test_floods_fit_into_little_memory(opcode: bytes, tmp_path: Path) -> None:
    path = tmp_path / "flood.pkl"
    path.write_bytes(PROTO + opcode * MAX_OPCODES)

    child = subprocess.run(
        [sys.executable, "-c", SURVIVES_LITTLE_MEMORY, path],
        capture_output=True,
        text=True,
        check=False,
    )

    assert child.stdout == "survived\n", child.stderr


def test_keeps_sharing_without_multiplying_it() -> None:
    # 2**60 leaves, which no walk over the value itself may visit.
    doubled = b"]q\0" + b"".join(
        b"](" + b"h" + bytes([at]) + b"h" + bytes([at]) + b"eq" + bytes([at + 1])
        for at in range(60)
    )
    value = read(b"(" + doubled + b"l")[-1]

    assert value[0] is value[1]
    assert describe(value) == "a list of 2"


HOSTILE_VALUES = {
    "long_text": "x" * 10**6,
    "long_bytes": b"x" * 10**6,
    "number_beyond_printing": 10**5000,
    "long_list": [[]] * 10**6,
    "long_name": Global("m" * 10**6, "n"),
    "call_of_a_long_name": Call(Global("m" * 10**6, "n"), ()),
    "reference": PersistentId("x" * 10**6),
    "name_in_colour": Global("\x1b[31m", "red"),
    "call_in_colour": Call(Global("\x1b[31m", "red"), ()),
    "text_in_colour": "\x1b[31m",
    "no_inert_value": object(),
}


@pytest.mark.parametrize("value", HOSTILE_VALUES.values(), ids=HOSTILE_VALUES)
def test_describes_hostile_values_in_a_few_plain_words(value: Value) -> None:
    words = describe(value)

    assert len(words) < 200
    assert words.replace("…", "").isascii()
    assert words.isprintable()


def test_source_of_a_pickle_is_read_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "list.pkl"
    path.write_bytes(pickle.dumps(["x" * 1000] * 3 + [{"y" * 200_000: n} for n in range(3)], 2))
    source = ByteSource(path)

    value = read_pickle(stream_of(source)).value
    source.close()

    assert [next(iter(item.values())) for item in value[3:]] == [0, 1, 2]
