"""A file is opened by its content; nothing in it runs, and what is no model is refused clearly."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as save_safetensors

from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.errors import InputError
from frozenbn_cli.pickles.values import Call, Value
from frozenbn_cli.pickles.writer import write_pickle
from tests.conftest import (
    FLOATS,
    Open,
    Refuse,
    archive_records,
    legacy_bytes,
    name,
    ordered_dict,
    outcome,
    saved,
    small_state_dict,
    tensor_bytes,
    tensor_call,
    zip_bytes,
)


def written(kind: str, state: dict[str, torch.Tensor]) -> bytes:
    if kind == "safetensors":
        return save_safetensors({key: tensor.contiguous() for key, tensor in state.items()})
    return saved(state, legacy=kind == "legacy")


KINDS = pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])


@KINDS
def test_opens_by_content_whatever_the_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    path.write_bytes(written(kind, small_state_dict()))

    with open_checkpoint(str(path)) as checkpoint:
        assert checkpoint.kind == "state dict"
        assert (checkpoint.path, checkpoint.size_bytes) == (path, path.stat().st_size)
        assert checkpoint.entries.keys() == small_state_dict().keys()
        for key, tensor in small_state_dict().items():
            assert checkpoint.entries[key].read() == tensor_bytes(tensor)
        assert checkpoint.fingerprint() == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_opens_every_protocol(protocol: int, legacy: bool, opened: Open) -> None:
    entries = opened(saved(small_state_dict(), legacy=legacy, pickle_protocol=protocol)).entries

    for key, tensor in small_state_dict().items():
        assert entries[key].read() == tensor_bytes(tensor)


@KINDS
def test_keeps_names_as_they_are(kind: str, opened: Open) -> None:
    keys = ["", ".", "a.b", "größe", "模型.重み", "\U0001f9ca", "[/red]", "line\nbreak", "x" * 5000]
    state = {key: torch.tensor(float(number)) for number, key in enumerate(keys)}

    entries = opened(written(kind, state)).entries

    assert {key: entry.values() for key, entry in entries.items()} == {
        key: (float(number),) for number, key in enumerate(keys)
    }


@KINDS
def test_closes_its_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(written(kind, {"a": torch.ones(3)}))
    with open_checkpoint(path) as checkpoint:
        entry = checkpoint.entries["a"]

    with pytest.raises(ValueError, match="closed"):
        entry.read()


def test_reads_values_of_an_ordered_dict_and_of_a_dict(opened: Open) -> None:
    ordered = ordered_dict()
    ordered.items = [("a", tensor_call())]
    for value in (ordered, {"a": tensor_call()}):
        assert opened(zip_bytes(archive_records(value))).entries["a"].read() == FLOATS
        assert opened(legacy_bytes(value)).entries["a"].read() == FLOATS


# What is no model

NO_MODELS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "an empty file"),
    "page": (b"<!DOCTYPE html><html><body>404</body></html>", "a web page"),
    "page_behind_blanks": (b"\n\n  <html>not found</html>", "a web page"),
    "lfs_pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 100\n",
        "a Git LFS pointer",
    ),
    "random": (b"\x07" + random.Random(0).randbytes(500), "bytes 07"),
    "text": (b"epoch,loss\n1,0.5\n", "text, which begins with 'epoch,loss"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
    "bare_pickle": (write_pickle({"a": 1}), "expected a state dict"),
    "one_byte": (b"\x80", "bytes 80"),
    "begin_of_an_archive": (b"PK\3\4", "without its directory"),
    "empty_archive": (b"PK\5\6" + bytes(18), "an empty ZIP archive"),
    "other_archive": (zip_bytes({"word/document.xml": b"<w/>"}), "PyTorch did not write"),
    "object_that_is_no_model": (saved([1, 2]), "expected a state dict"),
    "number": (saved(1), "expected a state dict"),
    "text_object": (saved("x" * 10**6), "expected a state dict"),
    "legacy_object": (saved([1, 2], legacy=True), "expected a state dict"),
    "no_tensors": (saved({"epoch": 1}), "expected a state dict"),
    "short_safetensors": (b"\x07\0\0\0\0\0\0\0", "bytes 07"),
}


@pytest.mark.parametrize(("content", "message"), NO_MODELS.values(), ids=NO_MODELS)
def test_says_what_is_no_model(content: bytes, message: str, refused: Refuse) -> None:
    assert message in refused(content)


def test_refuses_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder") as caught:
        open_checkpoint(tmp_path)

    assert caught.value.exit_code == 3
    assert str(tmp_path) in str(caught.value)


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file") as caught:
        open_checkpoint(tmp_path / "missing.pt")

    assert caught.value.exit_code == 3
    assert "missing.pt" in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_refuses_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(saved({"a": torch.ones(1)}))
    path.chmod(0)

    with pytest.raises(InputError, match="Permission denied"):
        open_checkpoint(path)


def test_survives_random_files(tmp_path: Path) -> None:
    chance = random.Random(0)
    heads = [b"", b"PK\3\4", saved({}, legacy=True)[:14], b"\x10\0\0\0\0\0\0\0{", b"{", b"\x80\2"]
    for number in range(1200):
        content = heads[number % len(heads)] + chance.randbytes(chance.randrange(200))

        assert outcome(tmp_path / "random.pt", content), content


# What would be code

RARE_MODULE = """
import pathlib

class Struck:
    def __new__(cls, *_, **__):
        strike("instance")
        return super().__new__(cls)
    def __setstate__(self, state):
        strike("state")

def strike(kind, *_):
    pathlib.Path(__file__).with_name(f"marker-{kind}").touch()
    return kind

strike("imported")
"""


def payload(attribute: str, *arguments: Value, **fields: Any) -> Call:
    return Call(name(f"rare_payload.{attribute}"), arguments, **fields)


def stack_global(attribute: str, call: bytes) -> bytes:
    """Return opcodes that take the name from the stack, as protocol 4 does."""
    return (
        b"\x8c\x0crare_payload\x8c" + bytes([len(attribute)]) + attribute.encode() + b"\x93" + call
    )


PAYLOADS: dict[str, tuple[bytes, str]] = {
    "imported": (write_pickle(name("rare_payload.Struck")), "marker-imported"),
    "called": (write_pickle(payload("strike", "called")), "marker-called"),
    "instance": (write_pickle(payload("Struck", is_new=True)), "marker-instance"),
    "with_keywords": (
        write_pickle(payload("Struck", keywords={"a": 1}, is_new=True)),
        "marker-instance",
    ),
    "with_state": (
        write_pickle(payload("Struck", is_new=True, state={"a": 1}, has_state=True)),
        "marker-state",
    ),
    "stack_global": (b"\x80\4" + stack_global("Struck", b")\x81}b."), "marker-state"),
    "stack_reduce": (b"\x80\4" + stack_global("strike", b"\x8c\5stack\x85R."), "marker-stack"),
    "evaluated": (
        write_pickle(Call(name("builtins.exec"), ("import rare_payload",))),
        "marker-imported",
    ),
    "system": (write_pickle(Call(name("os.system"), ("echo > marker-system",))), "marker-system"),
}

OPEN_ALL = """
import json, os, sys
from pathlib import Path
sys.path.insert(0, os.getcwd())
from frozenbn_cli.checkpoints import open_checkpoint, pickled, safetensors
from frozenbn_cli.errors import InputError

modules, files = set(sys.modules), set(os.listdir())
read, refused = [], []
for path in sorted(Path().glob("*.pt")):
    try:
        with open_checkpoint(path) as checkpoint:
            entries = checkpoint.entries.values()
            read.append([path.name, [list(entry.values()) for entry in entries]])
            checkpoint.fingerprint()
    except InputError as error:
        refused.append(path.name)
print(json.dumps({
    "read": dict(read),
    "refused": refused,
    "modules": sorted(set(sys.modules) - modules),
    "files": sorted(set(os.listdir()) - files),
}))
"""


def run(script: str, folder: Path, *arguments: str) -> str:
    child = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout


def beside_a_tensor(hostile: bytes) -> bytes:
    """Return the pickle of ``{"a": tensor, "x": payload}``."""
    body = hostile[2:-1]
    return b"\x80\4}(X\1\0\0\0x" + body + b"X\1\0\0\0a" + write_pickle(tensor_call())[2:-1] + b"u."


@pytest.mark.parametrize("kind", PAYLOADS)
def test_these_payloads_strike_when_they_are_unpickled(kind: str, tmp_path: Path) -> None:
    pickled, marker = PAYLOADS[kind]
    (tmp_path / "rare_payload.py").write_text(RARE_MODULE)
    script = "import sys, pickle; sys.path.insert(0, '.'); pickle.load(sys.stdin.buffer)"

    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, input=pickled, check=True)

    assert (tmp_path / marker).exists()


def test_opening_runs_and_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "rare_payload.py").write_text(RARE_MODULE)
    for kind, (pickled, _) in PAYLOADS.items():
        inside = beside_a_tensor(pickled)
        (tmp_path / f"{kind}.zip.pt").write_bytes(zip_bytes(archive_records(inside)))
        (tmp_path / f"{kind}.legacy.pt").write_bytes(legacy_bytes(inside))
        (tmp_path / f"{kind}.root.pt").write_bytes(zip_bytes(archive_records(pickled)))
        (tmp_path / f"{kind}.root-legacy.pt").write_bytes(legacy_bytes(pickled, {}))
        (tmp_path / f"{kind}.bare.pt").write_bytes(pickled)

    found = json.loads(run(OPEN_ALL, tmp_path))

    assert found["modules"] == []
    assert found["files"] == []
    assert len(found["refused"]) == 3 * len(PAYLOADS)
    assert found["read"] == {
        f"{kind}.{container}.pt": [[1, 2, 3, 4]]
        for kind in PAYLOADS
        for container in ("zip", "legacy")
    }


def test_a_payload_in_place_of_a_tensors_part_is_refused(tmp_path: Path, refused: Refuse) -> None:
    hostile = payload("strike", "called")
    for call in (
        tensor_call(storage=hostile),
        tensor_call(hostile),
        tensor_call((4,), hostile),
        tensor_call(offset=hostile),
        Call(name("torch._utils._rebuild_parameter"), (hostile,)),
    ):
        assert "entry 'a'" in refused(zip_bytes(archive_records({"a": call})))


@KINDS
def test_opening_and_reading_imports_neither_torch_nor_numpy(kind: str, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(written(kind, small_state_dict()))
    script = """
import sys
from frozenbn_cli.checkpoints import open_checkpoint
with open_checkpoint("model.pt") as checkpoint:
    print(checkpoint.entries["half"].values())
    checkpoint.fingerprint()
print(sorted({"torch", "numpy", "safetensors"} & sys.modules.keys()))
"""

    assert run(script, tmp_path).split("\n")[:2] == ["(1.5, -2.0)", "[]"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@KINDS
def test_opening_holds_no_tensor_in_memory(kind: str, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(written(kind, {"a": torch.zeros(16 << 20)}))
    script = """
from pathlib import Path
from frozenbn_cli.checkpoints import open_checkpoint
def peak_kib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
before = peak_kib()
with open_checkpoint("model.pt") as checkpoint:
    checkpoint.fingerprint()
    count = sum(len(part) for part in checkpoint.entries["a"].chunks())
print(count >> 20, peak_kib() - before)
"""

    mebibytes, grown_kib = map(int, run(script, tmp_path).split())

    assert mebibytes == 64
    assert grown_kib < 16 << 10


@pytest.mark.parametrize("name", ["digits_backbone.torchscript.pt", "digits_backbone.pt2"])
def test_what_code_says_of_layers_can_be_left_out(name: str) -> None:
    path = Path(__file__).parents[2] / "samples" / name
    with open_checkpoint(path) as whole, open_checkpoint(path, with_layers=False) as names:
        (with_layers,), (without,) = whole.state_dicts, names.state_dicts

        assert with_layers.layers
        assert not without.layers
        assert [*without.entries] == [*with_layers.entries]
        assert without.left_out == with_layers.left_out
