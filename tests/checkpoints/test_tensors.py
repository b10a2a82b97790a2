"""Stored tensors give the elements that torch would give, in row-major order."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from frozenbn_cli.checkpoints import strided
from frozenbn_cli.checkpoints.pickled_tensors import TensorFinder, storage_element_sizes
from frozenbn_cli.checkpoints.tensors import DTYPES, DType, StoredTensor
from frozenbn_cli.containers.source import FileExtent
from frozenbn_cli.errors import UnsupportedFileError
from frozenbn_cli.pickles.reader import read_pickle
from frozenbn_cli.pickles.values import Call, PersistentId, Value
from tests.conftest import (
    FLOATS,
    Open,
    Refuse,
    Sources,
    archive_records,
    legacy_bytes,
    name,
    parameter_call,
    saved,
    storage_id,
    tensor_bytes,
    tensor_call,
    zip_bytes,
)

pytestmark = pytest.mark.filterwarnings("ignore:B?Complex(Half|32) support is experimental")

# An older torch lacks the newest ones.
DTYPE_NAMES = [key for key in DTYPES if hasattr(torch, key)]
FORMATS = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


class Memory:
    """Bytes that are read as those of a file are."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size_bytes = len(content)
        self.most_read = 0

    def read(self, start: int, count: int) -> bytes:
        assert 0 <= start <= start + count <= self.size_bytes
        self.most_read = max(self.most_read, count)
        return self._content[start : start + count]


def dtype_of(tensor: torch.Tensor) -> DType:
    return DTYPES[str(tensor.dtype).removeprefix("torch.")]


def stored(tensor: torch.Tensor) -> StoredTensor:
    """Return a torch tensor as if it were read from a file."""
    storage = bytes(torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage()).tolist())
    return StoredTensor(
        dtype_of(tensor),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.storage_offset(),
        Memory(storage),
        tensor.is_conj(),
    )


# Every dtype


def of_dtype(dtype_name: str) -> torch.Tensor:
    """Return a 3×2 tensor whose bytes are all different, as far as its dtype allows."""
    size_bytes = 6 * DTYPES[dtype_name].item_bytes
    raw = torch.arange(1, size_bytes + 1, dtype=torch.uint8)
    raw = raw % 2 if dtype_name == "bool" else raw
    return raw.view(getattr(torch, dtype_name)).reshape(3, 2)


@FORMATS
@pytest.mark.parametrize("dtype_name", DTYPE_NAMES)
def test_reads_every_dtype(dtype_name: str, legacy: bool, opened: Open) -> None:
    tensor = of_dtype(dtype_name)

    entries = opened(saved({"a": tensor, "b": tensor[1:]}, legacy=legacy)).entries

    for key, expected in (("a", tensor), ("b", tensor[1:])):
        assert entries[key].dtype is DTYPES[dtype_name]
        assert entries[key].shape == tuple(expected.shape)
        assert entries[key].read() == tensor_bytes(expected)


def test_knows_every_dtype_of_torch_that_fills_whole_bytes() -> None:
    of_torch = {
        str(dtype).removeprefix("torch.")
        for dtype in vars(torch).values()
        if isinstance(dtype, torch.dtype)
    }
    # Quantised, sub-byte and bit dtypes are refused by name.
    others = {"quint8", "qint8", "qint32", "quint4x2", "quint2x4", "bits8", "bits16", "bits1x8",
              "bits2x4", "bits4x2", "float4_e2m1fn_x2"}  # fmt: skip
    sub_byte = {f"{sign}int{bits}" for sign in ("", "u") for bits in range(1, 8)}

    assert of_torch - others - sub_byte == set(DTYPE_NAMES)
    for key in DTYPE_NAMES:
        assert getattr(torch, key).itemsize == DTYPES[key].item_bytes


NUMBERS = {
    "float64": [0.1, -1e300, math.inf, -math.inf, 0.0],
    "float32": [0.5, -(2.0**127), math.inf, -math.inf, 2.0**-149],
    "float16": [0.5, -65504.0, math.inf, -math.inf, 2**-24],
    "bfloat16": [0.5, -(2.0**127), math.inf, -math.inf, 2.0**-133],
    "int64": [2**63 - 1, -(2**63), 0],
    "int32": [2**31 - 1, -(2**31), 0],
    "int16": [2**15 - 1, -(2**15), 0],
    "int8": [127, -128, 0],
    "uint64": [2**64 - 1, 0],
    "uint32": [2**32 - 1, 0],
    "uint16": [2**16 - 1, 0],
    "uint8": [255, 0],
    "bool": [True, False, True],
}


@pytest.mark.parametrize("dtype_name", NUMBERS)
def test_gives_the_values_of_numeric_dtypes(dtype_name: str, opened: Open) -> None:
    tensor = torch.tensor(NUMBERS[dtype_name], dtype=getattr(torch, dtype_name))

    values = opened(saved({"a": tensor})).entries["a"].values()

    assert list(values) == NUMBERS[dtype_name] == tensor.tolist()


@pytest.mark.parametrize("dtype_name", [key for key in NUMBERS if "float" in key])
def test_gives_nan_for_nan(dtype_name: str, opened: Open) -> None:
    tensor = torch.tensor([math.nan, 1], dtype=getattr(torch, dtype_name))

    value, one = opened(saved({"a": tensor})).entries["a"].values()

    assert math.isnan(value)
    assert one == 1


@given(st.lists(st.floats(width=32), max_size=20))
def test_gives_the_values_that_torch_gives(numbers: list[float]) -> None:
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        tensor = torch.tensor(numbers, dtype=dtype)

        assert str(stored(tensor).values()) == str(tuple(tensor.tolist()))


@pytest.mark.parametrize("dtype_name", [key for key in DTYPE_NAMES if key not in NUMBERS])
def test_refuses_the_values_of_other_dtypes(dtype_name: str, opened: Open) -> None:
    entry = opened(saved({"a": of_dtype(dtype_name)})).entries["a"]

    with pytest.raises(UnsupportedFileError, match=f"numbers of dtype {dtype_name}"):
        entry.values()


# Every layout


def layouts() -> dict[str, torch.Tensor]:
    base = torch.arange(120, dtype=torch.float32)
    cube = base.reshape(2, 3, 4, 5)
    return {
        "scalar": torch.tensor(7.5),
        "scalar_of_a_view": base[17],
        "empty": torch.zeros(0),
        "empty_matrix": torch.zeros(3, 0, 2),
        "empty_view": base[5:5],
        "one": torch.ones(1, 1, 1),
        "contiguous": cube,
        "offset": base[10:20],
        "every_third": base[1::3],
        "columns": base.reshape(12, 10)[:, 2:5],
        "transposed": base.reshape(12, 10).t(),
        "permuted": cube.permute(2, 0, 3, 1),
        "channels_last": cube.to(memory_format=torch.channels_last),
        "channels_last_copy": torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last),
        "expanded": base[:4].reshape(4, 1).expand(4, 6),
        "expanded_scalar": torch.tensor(2.5).expand(3, 2),
        "diagonal": base[:100].reshape(10, 10).diagonal(),
        "overlapping": base.as_strided((5, 4), (2, 3), 7),
        "windows": base.unfold(0, 4, 2),
        "one_column": base.reshape(12, 10)[:, :1],
        "stride_of_no_meaning": base.as_strided((1, 4, 1), (77, 1, 99), 3),
    }  # fmt: skip


@FORMATS
@pytest.mark.parametrize("layout", layouts())
def test_reads_every_layout(layout: str, legacy: bool, opened: Open) -> None:
    tensor = layouts()[layout]

    entry = opened(saved({"a": tensor}, legacy=legacy)).entries["a"]

    assert (entry.shape, entry.strides) == (tuple(tensor.shape), tensor.stride())
    assert (entry.elements, entry.size_bytes) == (tensor.numel(), 4 * tensor.numel())
    assert entry.read() == tensor_bytes(tensor)
    assert entry.values() == tuple(tensor.flatten().tolist())


@FORMATS
@pytest.mark.parametrize("dtype", [torch.complex32, torch.complex64, torch.complex128], ids=str)
def test_reads_conjugated_views(dtype: torch.dtype, legacy: bool, opened: Open) -> None:
    tensor = torch.view_as_complex(torch.arange(-6.0, 6.0).reshape(3, 2, 2)).to(dtype)
    state = {"plain": tensor, "conj": tensor.conj(), "adjoint": tensor.t().conj()[1:]}
    assert state["adjoint"].is_conj()

    entries = opened(saved(state, legacy=legacy)).entries

    for key, expected in state.items():
        assert entries[key].read() == tensor_bytes(expected)


def test_refuses_negated_views(refused: Refuse) -> None:
    tensor = torch.view_as_complex(torch.arange(4.0).reshape(2, 2)).conj().imag
    assert tensor.is_neg()

    assert "negative bit" in refused(saved({"a": tensor}))


def test_refuses_a_conjugated_tensor_of_real_numbers(refused: Refuse) -> None:
    tensor = tensor_call(metadata={"conj": True})

    assert "conjugate tensor of dtype float32" in refused(zip_bytes(archive_records({"a": tensor})))


class Marked(torch.Tensor):
    """What a library makes of a tensor, to know its own again."""


@FORMATS
def test_reads_parameters_and_buffers(legacy: bool, opened: Open) -> None:
    parameter = nn.Parameter(torch.arange(3.0))
    parameter.note = "kept beside"
    state = {
        "parameter": nn.Parameter(torch.arange(6.0).reshape(2, 3).t()),
        "with_state": parameter,
        "buffer": nn.Buffer(torch.arange(4)),
        "subclass": torch.arange(5.0).as_subclass(Marked),
    }

    entries = opened(saved(state, legacy=legacy)).entries

    assert entries.keys() == state.keys()
    for key, expected in state.items():
        assert entries[key].read() == tensor_bytes(expected.as_subclass(torch.Tensor))


@FORMATS
def test_shares_the_storage_of_tensors_that_share_it(legacy: bool, opened: Open) -> None:
    weight = nn.Parameter(torch.arange(6.0))
    state = {"a": weight, "tied": weight, "part": weight[2:4], "copy": weight.detach().clone()}

    entries = opened(saved(state, legacy=legacy)).entries

    assert entries["a"].storage is entries["tied"].storage is entries["part"].storage
    assert entries["a"].storage is not entries["copy"].storage
    assert entries["part"].values() == (2, 3)


@st.composite
def strided_tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = getattr(torch, draw(st.sampled_from(["float32", "uint8", "float16", "complex128"])))
    shape = draw(st.lists(st.integers(0, 5), max_size=5))
    strides = draw(st.lists(st.integers(0, 9), min_size=len(shape), max_size=len(shape)))
    offset = draw(st.integers(0, 5))
    span = offset + sum((size - 1) * step for size, step in zip(shape, strides, strict=True)) + 1
    base = torch.arange(max(span, 1)).to(dtype)
    if 0 in shape:
        return torch.as_strided(base, shape, strides, 0)
    return torch.as_strided(base, shape, strides, offset)


@given(strided_tensors())
def test_gathers_any_view_as_torch_does(tensor: torch.Tensor) -> None:
    assert stored(tensor).read() == tensor_bytes(tensor)
    assert stored(tensor).is_contiguous == tensor.is_contiguous()


@given(st.permutations(range(4)), st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_gathers_any_permutation_as_torch_does(axes: list[int], shape: list[int]) -> None:
    tensor = torch.arange(float(math.prod(shape))).reshape(shape).permute(axes)

    assert stored(tensor).read() == tensor_bytes(tensor)


def test_reads_a_contiguous_tensor_in_pieces(source_of: Sources) -> None:
    source = source_of(bytes(3 << 20))
    tensor = StoredTensor.contiguous(
        DTYPES["uint8"], (3 << 20,), FileExtent(source, 0, source.size_bytes)
    )

    assert [len(part) for part in tensor.chunks()] == [1 << 20] * 3


def test_gathers_weights_in_channels_last_a_piece_at_a_time(source_of: Sources) -> None:
    weights = torch.arange(24 * 100_000, dtype=torch.int32).reshape(24, 100, 10, 100)
    source = source_of(tensor_bytes(weights))
    tensor = StoredTensor(
        DTYPES["int32"],
        (24, 100, 100, 10),
        (100_000, 1, 1000, 100),
        0,
        FileExtent(source, 0, source.size_bytes),
    )

    pieces = list(tensor.chunks())

    assert [len(piece) for piece in pieces] == [800_000] * 12
    assert b"".join(pieces) == tensor_bytes(weights.permute(0, 3, 1, 2))


@contextmanager
def windows(chunk_bytes: int, window_bytes: int, gap_bytes: int) -> Iterator[None]:
    """Gather in smaller pieces than usual."""
    sizes = {
        "CHUNK_BYTES": chunk_bytes, "_WINDOW_BYTES": window_bytes, "_GAP_BYTES": gap_bytes
    }  # fmt: skip
    with mock.patch.multiple(strided, **sizes):
        yield


@given(strided_tensors(), st.sampled_from([0, 16, 64]), st.sampled_from([16, 32, 128]))
def test_gathers_any_view_within_its_window(
    tensor: torch.Tensor, gap_bytes: int, window_bytes: int
) -> None:
    view = stored(tensor)
    if view.is_contiguous:
        return
    with windows(16, window_bytes, gap_bytes):
        pieces = list(view.chunks())

    assert b"".join(pieces) == tensor_bytes(tensor)
    assert max(map(len, pieces)) <= window_bytes
    assert isinstance(view.storage, Memory)
    assert view.storage.most_read <= window_bytes


@pytest.mark.parametrize("gap_bytes", [0, 1 << 20], ids=["column_by_column", "columns_together"])
def test_gathers_rows_that_interleave_some_at_a_time(gap_bytes: int) -> None:
    matrix = torch.arange(400_000, dtype=torch.int32).reshape(800, 500)
    view = stored(matrix.t())

    with windows(1000, 100_000, gap_bytes):
        pieces = list(view.chunks())

    # Rows of 3,200 bytes.
    assert {len(piece) for piece in pieces[:-1]} == {99_200}
    assert b"".join(pieces) == tensor_bytes(matrix.t())


# What is no tensor


def rejection(call: Value, refused: Refuse) -> str:
    return refused(zip_bytes(archive_records({"a": call})))


OUTSIDE = {
    "one_more": tensor_call((5,)),
    "offset": tensor_call((4,), offset=1),
    "stride": tensor_call((4,), (2,)),
    "product": tensor_call((2, 2), (3, 1)),
    "far_offset": tensor_call((1,), offset=2**62),
    "far_stride": tensor_call((2,), (2**62,)),
    "overflow_to_nothing": tensor_call((2**33, 2**33), (2**31, 1)),
}


@pytest.mark.parametrize("call", OUTSIDE.values(), ids=OUTSIDE)
def test_rejects_tensors_that_reach_outside_their_storage(call: Call, refused: Refuse) -> None:
    assert "entry 'a': a tensor reaches outside its storage" in rejection(call, refused)


NO_SIZES: dict[str, Value] = {
    "negative": -1,
    "huge": 2**63,
    "beyond_printing": 10**5000,
    "bool": True,
    "float": 1.0,
    "none": None,
    "text": "1" * 10**6,
    "tuple": (1,),
}


@pytest.mark.parametrize("value", NO_SIZES.values(), ids=NO_SIZES)
@pytest.mark.parametrize("place", ["size", "stride", "offset"])
def test_rejects_what_is_no_size(place: str, value: Value, refused: Refuse) -> None:
    call = {
        "size": tensor_call((value,), (1,)),
        "stride": tensor_call((2,), (value,)),
        "offset": tensor_call((2,), (1,), offset=value),
    }[place]

    assert "entry 'a': a tensor of shape" in rejection(call, refused)


def doubled(levels: int) -> Value:
    """Return a tuple with 2**levels leaves, of ``levels`` tuples."""
    value: Value = 1
    for _ in range(levels):
        value = (value, value)
    return value


NO_SHAPES: dict[str, Call] = {
    "list": tensor_call([4], [1]),
    "number": tensor_call(4, 1),
    "more_strides": tensor_call((4,), (1, 1)),
    "fewer_strides": tensor_call((4,), ()),
    "exponential": tensor_call((doubled(60),), (1,)),
    "deep": tensor_call((doubled(180),), (1,)),
    "many": tensor_call((1,) * 65, (1,) * 65),
    "many_huge": tensor_call((2**62,) * 200_000, (0,) * 200_000),
    "many_none": tensor_call((None,) * 200_000, (0,) * 200_000),
}


@pytest.mark.parametrize("call", NO_SHAPES.values(), ids=NO_SHAPES)
def test_rejects_what_is_no_shape(call: Call, refused: Refuse) -> None:
    start = time.process_time()

    assert "entry 'a': a tensor" in rejection(call, refused)
    assert time.process_time() - start < 30


def test_takes_as_many_dimensions_as_torch(opened: Open) -> None:
    call = tensor_call((1,) * 64, (1,) * 64)

    assert opened(zip_bytes(archive_records({"a": call}))).entries["a"].values() == (1,)


@pytest.mark.parametrize("shape", [(2**30,), (2**20, 2**20), (2**62,), (2**62, 2**62)], ids=str)
def test_refuses_to_repeat_a_small_storage_beyond_reason(
    shape: tuple[int, ...], refused: Refuse
) -> None:
    call = tensor_call(shape, (0,) * len(shape))

    assert "repeats 16 bytes" in rejection(call, refused)


def test_refuses_to_gather_what_is_scattered_beyond_reason(refused: Refuse) -> None:
    call = tensor_call((2,) * 26, (1, 0) * 13, storage=storage_id("0", 16))

    message = refused(zip_bytes(archive_records({"a": call}, {"0": FLOATS * 4})))

    assert "runs of bytes" in message


NO_TENSORS = {
    "no_arguments": Call(name("torch._utils._rebuild_tensor_v2"), ()),
    "too_few": Call(name("torch._utils._rebuild_tensor_v2"), (storage_id(), 0, (4,))),
    "no_storage": tensor_call(storage="0"),
    "other_reference": tensor_call(storage=PersistentId("0")),
    "other_tuple": tensor_call(storage=PersistentId(("module", "a", "b", "c", "d"))),
    "short_reference": tensor_call(storage=PersistentId(("storage",))),
    "key_no_text": tensor_call(storage=storage_id(0)),
    "elements_no_number": tensor_call(storage=storage_id("0", "4")),
    "elements_negative": tensor_call(storage=storage_id("0", -1)),
    "elements_bool": tensor_call(storage=storage_id("0", True)),
    "elements_beyond_printing": tensor_call(storage=storage_id("0", 10**5000)),
    "elements_too_many": tensor_call(storage=storage_id("0", 5)),
    "elements_too_few": tensor_call(storage=storage_id("0", 3)),
    "kind_no_name": tensor_call(storage=storage_id(kind=None)),
    "kind_of_elsewhere": tensor_call(storage=storage_id(kind="os.FloatStorage")),
    "parameter_of_nothing": Call(name("torch._utils._rebuild_parameter"), ()),
    "parameter_of_a_number": parameter_call(1),
    "parameter_of_a_call": parameter_call(Call(name("os.system"), ("true",))),
    "subclass_of_a_call": Call(
        name("torch._tensor._rebuild_from_type_v2"),
        (name("os.system"), name("torch.Tensor"), ("true",), {}),
    ),
    "subclass_of_too_few": Call(name("torch._tensor._rebuild_from_type_v2"), (name("a.b"),)),
}


@pytest.mark.parametrize("call", NO_TENSORS.values(), ids=NO_TENSORS)
def test_rejects_calls_that_make_no_tensor(call: Call, refused: Refuse) -> None:
    assert "entry 'a'" in rejection(call, refused)


@pytest.mark.parametrize("call", NO_TENSORS.values(), ids=NO_TENSORS)
def test_rejects_calls_that_make_no_tensor_in_a_legacy_stream(call: Call, refused: Refuse) -> None:
    assert refused(legacy_bytes({"a": call}))


def test_rejects_a_tensor_that_is_wrapped_endlessly(refused: Refuse) -> None:
    pickled = b"\x80\x02}X\1\0\0\0actorch._utils\n_rebuild_parameter\nq\0"
    deep = pickled + b"h\0" * 49_999 + b"N" + b"\x85R" * 50_000 + b"s."

    assert "wrapped more than" in refused(zip_bytes(archive_records(deep)))


def test_reads_a_tensor_of_the_oldest_form(opened: Open) -> None:
    call = Call(name("torch._utils._rebuild_tensor"), (storage_id(), 1, (3,), (1,)))

    assert opened(zip_bytes(archive_records({"a": call}))).entries["a"].values() == (2, 3, 4)


OTHER_LAYOUTS: dict[str, Any] = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "meta": lambda: torch.empty(3, device="meta"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", OTHER_LAYOUTS)
def test_refuses_other_layouts_by_name(layout: str, refused: Refuse) -> None:
    assert f"entry 'a': a {layout}" in refused(saved({"a": OTHER_LAYOUTS[layout]()}))


@pytest.mark.parametrize("dtype", [None, name("torch.qint8"), name("os.uint16"), "uint16"], ids=str)
def test_refuses_unknown_dtypes(dtype: Value, refused: Refuse) -> None:
    arguments = (storage_id("0", 16, kind="torch.storage.UntypedStorage"), 0, (4,), (1,), False, {})
    call = Call(name("torch._utils._rebuild_tensor_v3"), (*arguments, dtype))

    assert "dtype" in rejection(call, refused)


def test_refuses_unknown_storages(refused: Refuse) -> None:
    call = tensor_call(storage=storage_id(kind="torch.QInt8Storage"))

    assert "storage type 'QInt8Storage' is not supported" in rejection(call, refused)


def test_reads_an_untyped_storage_as_bytes(opened: Open) -> None:
    storage = storage_id("0", 16, kind="torch.storage.UntypedStorage")
    call = tensor_call((16,), storage=storage)

    entry = opened(zip_bytes(archive_records({"a": call}))).entries["a"]

    assert (entry.dtype.name, entry.read()) == ("uint8", FLOATS)


def test_lists_the_element_sizes_of_the_storages_of_a_pickle() -> None:
    state = {
        "a": torch.zeros(2),
        "b": torch.zeros(2, dtype=torch.int64),
        "c": torch.zeros(1).bool(),
    }
    file = io.BytesIO(saved(state, legacy=True))
    for _ in range(3):
        read_pickle(file)

    sizes = storage_element_sizes(read_pickle(file))

    assert sorted(sizes.values()) == [1, 4, 8]


def test_asks_for_each_storage_once() -> None:
    asked: list[str] = []

    def storage(key: str) -> Memory:
        asked.append(key)
        return Memory(FLOATS)

    finder = TensorFinder(storage)
    tensors = [finder.tensor(tensor_call()), finder.tensor(tensor_call((2,)))]

    assert asked == ["0"]
    assert tensors[1].values() == (1, 2)
