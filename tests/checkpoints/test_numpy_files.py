"""Files of NumPy arrays are read as NumPy would, and nothing in them is run."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from frozenbn_cli.checkpoints.numpy_files import read_npy, read_npz
from frozenbn_cli.checkpoints.tensors import StoredTensor
from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.errors import InputError

ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "number": np.array(7),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 3), dtype=np.uint8),
    "half": np.arange(4, dtype=np.float16),
    "bytes": np.arange(300, dtype=np.uint8),
    "complex": np.array([1 + 2j], dtype=np.complex64),
}


def opened(path: Path) -> dict[str, StoredTensor]:
    with closing(ByteSource(path)) as source:
        found = read_npz(source) if path.suffix == ".npz" else {"array": read_npy(source)}
        for tensor in found.values():
            tensor.read()
        return found


@pytest.mark.parametrize("name", ARRAYS)
def test_reads_one_array(tmp_path: Path, name: str) -> None:
    np.save(tmp_path / "a.npy", ARRAYS[name])

    with closing(ByteSource(tmp_path / "a.npy")) as source:
        stored = read_npy(source)
        assert (stored.read(), stored.shape) == (ARRAYS[name].tobytes("C"), ARRAYS[name].shape)
        assert stored.dtype.name == str(ARRAYS[name].dtype)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_several_by_name(tmp_path: Path, save: object) -> None:
    assert callable(save)
    save(tmp_path / "a.npz", **ARRAYS)

    with closing(ByteSource(tmp_path / "a.npz")) as source:
        read = {name: stored.read() for name, stored in read_npz(source).items()}

    assert read == {name: array.tobytes("C") for name, array in ARRAYS.items()}


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_reads_every_version(tmp_path: Path, version: tuple[int, int]) -> None:
    with (tmp_path / "a.npy").open("wb") as file:
        np.lib.format.write_array(file, ARRAYS["float32"], version)

    assert opened(tmp_path / "a.npy")["array"].shape == (2, 3)


def header(text: str, version: int = 1) -> bytes:
    encoded = text.encode()
    length = len(encoded).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + encoded


FIELDS = "{{'descr': {}, 'fortran_order': False, 'shape': {}, }}"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x09\0" + bytes(20),
        header("{"),
        header("[]"),
        header("{'descr': '<f4'}"),
        header("__import__('os').system('id')"),
        header("(" * 9000),
        header("9" * 9000),
        header(FIELDS.format("'<f4'", "(2,)")) + bytes(4),
        header(FIELDS.format("'<f4'", "(1,)")) + bytes(8),
        header(FIELDS.format("'<f4'", "(-1,)")),
        header(FIELDS.format("'<f4'", "3")) + bytes(12),
        header(FIELDS.format("'<f4'", f"({1 << 80},)")),
        header(FIELDS.format("'|O'", "(1,)")) + b"\x80\x02cos\nsystem\n.",
        header(FIELDS.format("'>f4'", "(1,)")) + bytes(4),
        header(FIELDS.format("'<U1'", "(1,)")) + bytes(4),
        header(FIELDS.format("[('a', '<f4')]", "(1,)")) + bytes(4),
        header(FIELDS.format("3", "(1,)")) + bytes(4),
        header("x" * 20_000, version=2),
    ],
)
def test_refuses_what_is_no_array(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)

    with pytest.raises(InputError):
        opened(tmp_path / "a.npy")


def test_every_truncation_is_an_error_of_the_input(tmp_path: Path) -> None:
    for name, save in (("a.npy", np.save), ("a.npz", np.savez)):
        save(tmp_path / name, ARRAYS["float32"])  # type: ignore[operator]
        content = (tmp_path / name).read_bytes()
        for end in range(len(content)):
            (tmp_path / name).write_bytes(content[:end])
            with pytest.raises(InputError):
                opened(tmp_path / name)
