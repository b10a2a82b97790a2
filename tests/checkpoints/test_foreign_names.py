"""What `torch.load` would import or call beyond a model's needs is listed, however it is hidden."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.pickles.values import Call, Global, Value
from frozenbn_cli.pickles.writer import write_pickle
from tests.conftest import (
    Refuse,
    archive_records,
    legacy_bytes,
    name,
    ordered_dict,
    small_state_dict,
    storage_id,
    tensor_call,
    zip_bytes,
)

STOP = b"."
Listed = Callable[[Value], dict[str, bool]]


@pytest.fixture
def listed(tmp_path: Path) -> Listed:
    """Return the foreign names of a file that holds a value beside an entry."""

    def foreign_names(value: Value) -> dict[str, bool]:
        path = tmp_path / "model.pt"
        path.write_bytes(zip_bytes(archive_records(value)))
        with open_checkpoint(path) as checkpoint:
            return dict(checkpoint.foreign_names)

    return foreign_names


def module(**attributes: Value) -> Call:
    """Return a pickled module with one entry."""
    state = {
        "_parameters": {"a": tensor_call()},
        "_buffers": {},
        "_modules": {},
        "training": True,
        **attributes,
    }
    return Call(name("nets.Net"), (), is_new=True, state=state, has_state=True)


def test_expects_the_classes_of_a_module(listed: Listed) -> None:
    assert listed(module(other=Call(name("nets.Config"), (), is_new=True))) == {}


def test_lists_a_class_that_is_called_as_well_as_made(listed: Listed) -> None:
    made = Call(name("subprocess.Popen"), (), is_new=True)
    called = Call(name("subprocess.Popen"), (["id"],))

    assert listed(module(first=made, second=called)) == {"subprocess.Popen": True}
    assert listed(module(first=called, second=made)) == {"subprocess.Popen": True}


@pytest.mark.parametrize(
    "caller",
    [
        Call(name("torch._tensor._rebuild_from_type_v2"), (name("os.system"), name("x.Y"), (), {})),
        Call(name("copyreg._reconstructor"), (name("x.Y"), name("os.system"), ["id"])),
        Call(name("copy_reg._reconstructor"), (name("x.Y"), name("os.system"), ["id"])),
    ],
)
def test_lists_what_is_called_through_a_function_that_is_expected(
    caller: Call, listed: Listed
) -> None:
    assert listed(module(hidden=caller)) == {"os.system": True}


def test_expects_what_other_pythons_rebuild_objects_with(listed: Listed) -> None:
    arguments = (name("nets.Net"), name("builtins.object"), None)

    assert listed(module(rebuilt=Call(name("copyreg._reconstructor"), arguments))) == {}


@pytest.mark.parametrize(
    "whitelisted",
    ["_rebuild_tensor_v2.__builtins__.get", "_rebuild_tensor_v2.__globals__", "_rebuild_else"],
)
def test_expects_functions_of_pytorch_by_their_whole_names(
    whitelisted: str, listed: Listed
) -> None:
    called = Call(Global("torch._utils", whitelisted), ("eval",))

    found = {f"torch._utils.{whitelisted}": True}
    assert listed({"a": tensor_call(), "b": called}) == found
    assert listed(module(b=called)) == found


def test_expects_every_function_that_rebuilds_tensors(listed: Listed) -> None:
    wrapped = Call(name("torch._utils._rebuild_parameter"), (tensor_call(), True, ordered_dict()))

    assert listed({"a": wrapped}) == {}


# Pickles that `torch.save` did not write hold each storage as a file of its own. A legacy stream
# is five pickles, all of which `torch.load` unpickles.

LOADS = name("torch.storage._load_from_bytes")
EVIL = Call(name("os.system"), ("id",))


def system(**more: Value) -> dict[str, Value]:
    return {"protocol_version": 1001, "little_endian": True, **more}


def loading(content: Value) -> Call:
    """Return a tensor on a storage that is loaded from bytes."""
    return tensor_call(storage=Call(LOADS, (content,)))


@pytest.fixture
def bare(tmp_path: Path) -> Listed:
    """Return the foreign names of a pickle of a state dict with one more entry."""

    def foreign_names(value: Value) -> dict[str, bool]:
        path = tmp_path / "model.pkl"
        path.write_bytes(write_pickle({"a": value}))
        with open_checkpoint(path) as checkpoint:
            return dict(checkpoint.foreign_names)

    return foreign_names


@pytest.mark.parametrize("protocol", [2, 4])
def test_expects_what_loads_storages_of_tensors(protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(small_state_dict(), protocol=protocol))

    with open_checkpoint(path) as checkpoint:
        assert checkpoint.foreign_names == {}


def test_lists_what_the_file_of_a_storage_would_call(bare: Listed) -> None:
    hidden = legacy_bytes(storage_id(), system=system(evil=EVIL))

    assert bare(loading(hidden)) == {"os.system": True}


@pytest.mark.parametrize(
    "hidden",
    [
        b"PK\3\4 is another kind of file",
        b"\x80\2cos\nsystem\n.",
        name("os.environ"),
        legacy_bytes([storage_id(), Call(LOADS, (legacy_bytes(storage_id()),))]),
    ],
)
def test_lists_what_loads_anything_but_storages(hidden: Value, bare: Listed) -> None:
    value = {"hidden": Call(LOADS, (hidden,)), "a": loading(legacy_bytes(storage_id()))}

    assert bare(value)["torch.storage._load_from_bytes"]


def test_lists_what_is_loaded_and_dropped(tmp_path: Path) -> None:
    dropped = write_pickle(Call(LOADS, (legacy_bytes(EVIL, {}),)))[:-1] + b"0"
    path = tmp_path / "model.pkl"
    path.write_bytes(dropped + write_pickle({"a": loading(legacy_bytes(storage_id()))})[2:])

    with open_checkpoint(path) as checkpoint:
        assert checkpoint.foreign_names == {"os.system": True}


@pytest.mark.parametrize("place", ["system", "keys"])
def test_lists_what_the_pickles_around_a_legacy_object_would_call(
    place: str, tmp_path: Path
) -> None:
    dropped = b"\x80\2" + write_pickle(EVIL)[2:-1] + b"0"
    keys = dropped + write_pickle(["0"])[2:]
    path = tmp_path / "model.pt"
    whole = legacy_bytes({"a": tensor_call()}, system=system(evil=EVIL))
    if place == "keys":
        whole = legacy_bytes({"a": tensor_call()}).replace(write_pickle(["0"]), keys)
    path.write_bytes(whole)

    with open_checkpoint(path) as checkpoint:
        assert checkpoint.foreign_names == {"os.system": True}


# A frame is what Python's unpickler reads at once. Of a name that goes on behind its frame it takes
# the rest alone.


def in_frame(content: bytes, behind: bytes) -> bytes:
    return b"\x80\x04\x95" + len(content).to_bytes(8, "little") + content + behind


def test_refuses_a_name_that_goes_on_behind_its_frame(refused: Refuse) -> None:
    # Python takes this for os.system.
    hidden = in_frame(b"}(X\x01\x00\x00\x00acnn.modules", b"os\nsystem\nu" + STOP)

    message = refused(zip_bytes(archive_records(hidden)))

    assert "an opcode reaches beyond its frame" in message


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        (in_frame(b"}" + in_frame(b"", b"")[2:], STOP), "a frame begins within another"),
        (b"\x80\x04\x95" + (9).to_bytes(8, "little") + b"}" + STOP, "ends within a frame"),
    ],
)
def test_refuses_frames_that_python_reads_otherwise(
    hidden: bytes, message: str, refused: Refuse
) -> None:
    assert message in refused(zip_bytes(archive_records(hidden)))
