"""Pickles of NumPy arrays and of tensors, by pickle or by torch.save, read without running them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from frozenbn_cli import convert_file
from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.checkpoints.numpy_values import array, number
from frozenbn_cli.errors import DamagedFileError, InputError, UnsupportedFileError
from frozenbn_cli.inspection import inspect_file
from frozenbn_cli.pickles.values import Call, Global, LongBytes, Value
from tests.builders.files import nested, save, small_state
from tests.builders.models import perturb

ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "bool": np.array([True, False]),
    "int64": np.array(7),
    "long": np.arange(3000, dtype=np.float16),
    "empty": np.zeros((0, 3), dtype=np.uint8),
    "complex": np.array([1 + 2j], dtype=np.complex64),
}


def dump(path: Path, value: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_are_read_as_numpy_would(tmp_path: Path, protocol: int) -> None:
    path = dump(tmp_path / "a.pkl", {"model": ARRAYS, "note": "x"}, protocol)

    with open_checkpoint(path) as checkpoint:
        entries = checkpoint.state_dict("model").entries
        read = {name: entry.read() for name, entry in entries.items()}

    assert read == {name: value.tobytes("C") for name, value in ARRAYS.items()}
    assert {name: entry.shape for name, entry in entries.items()} == {
        name: value.shape for name, value in ARRAYS.items()
    }


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(
    "hold",
    [
        lambda state: {name: value.numpy() for name, value in state.items()},
        lambda state: state,
        lambda state: {"model": {"bn": 1, **state}},
    ],
)
def test_bare_pickles_convert(tmp_path: Path, hold: Callable[[Any], object], protocol: int) -> None:
    result = convert_file(dump(tmp_path / "a.pkl", hold(small_state()), protocol))

    assert [item.layer.name for item in result.plan.frozen] == ["bn1", "bn2"]
    assert [claim.status for claim in result.claims] == ["equal", "equal", "not verified"]


def test_arrays_in_what_torch_saved_convert(tmp_path: Path) -> None:
    arrays = {name: value.numpy() for name, value in small_state().items()}

    assert convert_file(save(tmp_path / "a.pt", {"model": arrays})).plan.frozen


def test_long_arrays_stay_in_the_file(tmp_path: Path) -> None:
    path = dump(tmp_path / "a.pkl", {"w": np.zeros(1 << 20), **small_state()})

    with open_checkpoint(path) as checkpoint:
        assert type(checkpoint.entries["w"].storage).__name__ == "FileExtent"


@pytest.mark.parametrize(
    "eps", [np.float64(1e-3), np.float32(0.001), torch.tensor(1e-3), np.float64(1e-3).reshape(())]
)
@pytest.mark.parametrize("suffix", ["pt", "legacy"])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code:UserWarning")
def test_eps_and_momentum_may_be_scalars_of_numpy_or_tensors(
    tmp_path: Path, eps: Any, suffix: str
) -> None:
    model = perturb(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    model[1].eps, model[1].momentum = eps, eps

    (part,) = inspect_file(save(tmp_path / f"a.{suffix}", model)).state_dicts

    (layer,) = [plan.layer for plan in part.plan.layers]
    assert (layer.eps.value, layer.eps.source) == (float(eps), "read")
    assert layer.momentum == float(eps)


def test_every_truncation_is_an_error_of_the_input(tmp_path: Path) -> None:
    content = pickle.dumps({"model": {"w": ARRAYS["long"], **nested(bn=small_state())}})
    path = tmp_path / "a.pkl"
    for end in range(2, len(content), 97):
        path.write_bytes(content[:end])
        with pytest.raises(InputError):
            open_checkpoint(path).close()
    path.write_bytes(content + b"more")
    with pytest.raises(DamagedFileError, match="4 bytes more"):
        open_checkpoint(path)


DTYPE = Call(Global("numpy", "dtype"), ("f4", False, True), state=(3, "<"), has_state=True)


def made(function: str, *arguments: Value, state: Value = None) -> Call:
    return Call(Global("numpy._core.multiarray", function), arguments, state=state, has_state=True)


HOSTILE = {
    "no state": made("_reconstruct"),
    "a short state": made("_reconstruct", state=(1, (2,))),
    "another size": made("_reconstruct", state=(1, (3,), DTYPE, False, b"1234")),
    "a negative size": made("_reconstruct", state=(1, (-1,), DTYPE, False, b"")),
    "an endless size": made("_reconstruct", state=(1, (1 << 80,), DTYPE, False, b"")),
    "no shape": made("_reconstruct", state=(1, 3, DTYPE, False, b"")),
    "objects": made("_reconstruct", state=(1, (1,), DTYPE, False, [None])),
    "no dtype": made("_reconstruct", state=(1, (1,), "f4", False, b"1234")),
    "text": made("_reconstruct", state=(1, (1,), DTYPE, False, "\u20ac")),
    "a frombuffer without a buffer": made("_frombuffer", None, DTYPE, (1,), "C"),
    "a place beyond the file": made("_reconstruct", state=(1, (9,), DTYPE, 0, LongBytes(1, 36))),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_arrays_are_refused(case: str) -> None:
    def nothing(place: LongBytes) -> Any:
        raise DamagedFileError(f"there is nothing at {place.start}")

    with pytest.raises((DamagedFileError, UnsupportedFileError)):
        array(HOSTILE[case], nothing)


def test_other_dtypes_are_named(tmp_path: Path) -> None:
    state = {"big": np.arange(3, dtype=">f4"), "text": np.array(["a"]), **small_state()}

    (part,) = inspect_file(dump(tmp_path / "a.pkl", state)).state_dicts

    assert part.unsupported == {
        "big": "an array in big-endian byte order",
        "text": "an array of NumPy dtype 'U1'",
    }


def test_what_is_no_number_is_none() -> None:
    assert number(made("scalar", DTYPE, b"\0\0\0\0")) == 0
    assert number(made("scalar", DTYPE, b"1")) is None
    assert number(made("scalar", "f4", b"1234")) is None
    assert number(3) is None


def test_a_storage_that_is_more_than_one_is_refused(tmp_path: Path) -> None:
    class Sly:
        def __reduce__(self) -> Any:
            inner = torch.storage._load_from_bytes
            content = pickle.dumps({"not": "a storage"})
            return torch._utils._rebuild_tensor_v2, (
                _Load(inner, content), 0, (1,), (1,), False, {},
            )  # fmt: skip

    class _Load:
        def __init__(self, function: Any, content: bytes) -> None:
            self.function, self.content = function, content

        def __reduce__(self) -> Any:
            return self.function, (self.content,)

    path = dump(tmp_path / "a.pkl", {"bn.running_mean": Sly()})
    with pytest.raises(InputError):
        open_checkpoint(path)
