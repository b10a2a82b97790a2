"""Archives of exported programs are read as they lie in the file, and refused where they lie."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.checkpoints.program_tensors import program_tensors
from frozenbn_cli.containers.source import ByteSource, SourceWindow
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.errors import DamagedFileError, InputError, UnsupportedFileError
from frozenbn_cli.exported.program_archive import ProgramArchive, is_program_archive
from frozenbn_cli.exported.strict_json import json_text, read_json
from frozenbn_cli.inspection import inspect_file
from tests.builders.archives import rewrite_records
from tests.builders.programs import edited, records, write_records

WRITTEN_BY = Path(__file__).parent / "written_by"
LAYOUTS = {"2.6": "A", "2.8": "B", "2.9": "C"}
CONFIG = "data/weights/model_weights_config.json"
PROGRAM = "models/model.json"


@contextmanager
def opened(path: Path) -> Iterator[ProgramArchive]:
    with closing(ByteSource(path)) as source:
        yield ProgramArchive(ZipArchive(source))


@pytest.fixture
def newest(tmp_path: Path) -> Path:
    path = tmp_path / "a.pt2"
    path.write_bytes((WRITTEN_BY / "2.9-eval.pt2").read_bytes())
    return path


@pytest.fixture(params=[f"{version}-{mode}" for version in LAYOUTS for mode in ("eval", "train")])
def older(request: pytest.FixtureRequest) -> Iterator[tuple[str, ProgramArchive]]:
    with opened(WRITTEN_BY / f"{request.param}.pt2") as archive:
        yield request.param[:3], archive


class TestLayouts:
    def test_are_told_by_their_records(self, older: tuple[str, ProgramArchive]) -> None:
        version, archive = older

        assert is_program_archive(archive.archive)
        assert archive.layout == LAYOUTS[version]
        assert archive.models == ("model",)

    def test_an_unedited_program_is_the_same_text(self, older: tuple[str, ProgramArchive]) -> None:
        _, archive = older

        assert json_text(archive.program("model")) == archive.program_text("model")

    def test_weights_are_those_that_were_saved(self, older: tuple[str, ProgramArchive]) -> None:
        _, archive = older

        entries = program_tensors(archive, "model").entries

        assert entries["bn.weight"].storage is entries["norm.weight"].storage
        shapes = {name: entry.shape for name, entry in entries.items()}
        assert shapes["conv.weight"] == (4, 3, 3, 3)
        assert shapes["bn.num_batches_tracked"] == ()
        assert entries["bn.num_batches_tracked"].values() == (1000,)
        assert min(entries["bn.running_var"].values()) >= 0.5
        assert program_tensors(archive, "model", "constants").entries == {}


def test_all_layouts_hold_the_same_model() -> None:
    found = []
    for version in LAYOUTS:
        with opened(WRITTEN_BY / f"{version}-eval.pt2") as archive:
            entries = program_tensors(archive, "model").entries
            found.append({name: entry.read() for name, entry in entries.items()})

    assert found[0] == found[1] == found[2]


def test_a_part_of_a_file_is_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")
    with closing(ByteSource(path)) as source:
        window = SourceWindow(source, 2, 5)

        assert window.read(1, 3) == b"345"
        with pytest.raises(DamagedFileError):
            window.read(3, 3)
        with pytest.raises(DamagedFileError):
            window.read(-1, 2)
        assert window.extent(1, 3).source is source
        assert window.extent(1, 3).read(0, 3) == b"345"


class TestJson:
    def test_a_key_that_stands_twice_is_refused(self) -> None:
        with pytest.raises(DamagedFileError, match="key 'a' stands twice"):
            read_json(b'{"b": {"a": 1, "a": 2}}')

    @pytest.mark.parametrize("text", [b"[]", b"{", b"\xff", b'{"a": ' + b"[" * 100_000, b"1"])
    def test_what_is_no_object_is_refused(self, text: bytes) -> None:
        with pytest.raises(DamagedFileError):
            read_json(text)


def test_inspecting_needs_no_torch(newest: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from frozenbn_cli.inspection import inspect_file\n"
        "from frozenbn_cli.conversion.convert import ConvertOptions, convert_file\n"
        "assert len(inspect_file(sys.argv[1]).state_dicts[0].plan.frozen) == 2\n"
        "convert_file(sys.argv[1], options=ConvertOptions(verify=False))\n"
    )

    subprocess.run([sys.executable, "-c", code, newest], check=True)

    assert newest.with_name("a.frozen.pt2").exists()


def spoil(change: Callable[[dict[str, Any]], None]) -> Callable[[Any], None]:
    return lambda document: change(document["graph_module"])


BROKEN: dict[str, tuple[str, Callable[[Any], object], str]] = {
    "schema": (PROGRAM, lambda d: d["schema_version"].update(major=9), "expected version 8"),
    "no schema": (PROGRAM, lambda d: d.pop("schema_version"), "expected version 8"),
    "no graph": (PROGRAM, lambda d: d["graph_module"].pop("graph"), "graph is missing"),
    "two kinds": (
        PROGRAM,
        spoil(lambda m: m["graph"]["inputs"][0].update(as_int=1)),
        "expected one kind",
    ),
    "text for a node": (
        PROGRAM,
        spoil(lambda m: m["graph"]["nodes"].insert(1, "x")),
        "node 1: a node: expected dict, found str",
    ),
    "a name twice": (
        PROGRAM,
        spoil(lambda m: m["graph"]["nodes"].append(m["graph"]["nodes"][0])),
        "two values of one graph",
    ),
    "one spec less": (
        PROGRAM,
        spoil(lambda m: m["signature"]["input_specs"].pop()),
        "one for each input",
    ),
    "eps is text": (
        PROGRAM,
        spoil(lambda m: m["graph"]["nodes"][1]["inputs"][-2].update(arg={"as_string": "x"})),
        "eps of torch.ops.aten.batch_norm.default: expected a number",
    ),
    "eps beyond all floats": (
        PROGRAM,
        spoil(lambda m: m["graph"]["nodes"][1]["inputs"][-2].update(arg={"as_int": 10**400})),
        "eps of torch.ops.aten.batch_norm.default: expected a number",
    ),
    "an argument twice": (
        PROGRAM,
        spoil(
            lambda m: m["graph"]["nodes"][1]["inputs"].append(m["graph"]["nodes"][1]["inputs"][-2])
        ),
        "an argument that is given twice, 'eps'",
    ),
    "out of the folder": (
        CONFIG,
        lambda d: d["config"]["conv.weight"].update(path_name="../../x"),
        "leads out of its folder",
    ),
    "out of the storage": (
        CONFIG,
        lambda d: d["config"]["conv.weight"]["tensor_meta"]["storage_offset"].update(as_int=9),
        "reaches outside its storage",
    ),
    "no such record": (
        CONFIG,
        lambda d: d["config"]["conv.weight"].update(path_name="weight_99"),
        "weight_99' is missing",
    ),
    "a size that is an expression": (
        CONFIG,
        lambda d: d["config"]["conv.weight"]["tensor_meta"].update(
            sizes=[{"as_expr": {"expr_str": "__import__('os')"}}] * 4
        ),
        "expected a number",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_contradicts_itself_is_refused(case: str, newest: Path) -> None:
    record, change, message = BROKEN[case]
    edited(newest, record, change)

    with pytest.raises(InputError, match=message):
        inspect_file(newest)


class TestRecords:
    def test_a_record_beside_the_folder(self, newest: Path) -> None:
        content = {f"archive/{name}": part for name, part in records(newest).items()}
        write_records(newest, content | {"other/x": b""}, root="")

        with pytest.raises(DamagedFileError, match="expected one folder"):
            open_checkpoint(newest)

    def test_what_is_no_program_among_the_programs(self, newest: Path) -> None:
        write_records(newest, records(newest) | {"models/x.so": b""})

        with pytest.raises(DamagedFileError, match=r"models/x\.so is no program"):
            open_checkpoint(newest)

    def test_swapped_bytes(self, newest: Path) -> None:
        rewrite_records(newest, lambda name, part: b"big" if name == "byteorder" else part)

        with pytest.raises(UnsupportedFileError, match="big-endian"):
            open_checkpoint(newest)

    def test_a_tensor_without_values_is_named(self, newest: Path) -> None:
        rewrite_records(newest, lambda name, part: b"" if name.endswith("weight_0") else part)

        (inspected,) = inspect_file(newest).state_dicts

        assert inspected.unsupported == {"conv.weight": "a tensor without values"}

    def test_compiled_code_alone_is_named(self, tmp_path: Path) -> None:
        content = {"archive_format": b"pt2", "data/aotinductor/model/x.so": b"code"}
        path = write_records(tmp_path / "a.pt2", content)

        assert inspect_file(path).kind == "package of compiled code (AOTInductor)"
        with open_checkpoint(path) as checkpoint, pytest.raises(UnsupportedFileError):
            checkpoint.state_dict()


def test_truncation_is_said(newest: Path) -> None:
    content = newest.read_bytes()
    for size in range(0, len(content), len(content) // 23):
        newest.write_bytes(content[:size])
        with pytest.raises(InputError):
            inspect_file(newest)


def test_the_pickle_within_is_inert(tmp_path: Path) -> None:
    marker = tmp_path / "executed"

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (marker,)

    path = tmp_path / "a.pt2"
    content = records(WRITTEN_BY / "2.8-eval.pt2")
    torch.save({"conv.weight": Hostile()}, tmp_path / "weights")
    content["data/weights/model.pt"] = (tmp_path / "weights").read_bytes()
    write_records(path, content)

    (inspected,) = inspect_file(path).state_dicts

    assert inspected.unsupported.keys() == {"conv.weight"}
    assert not marker.exists()


def test_a_damaged_program_is_named_once(newest: Path) -> None:
    with opened(newest) as archive:
        extent = archive.archive.extent(archive.program_record("model"))
    content = bytearray(newest.read_bytes())
    content[extent.start + extent.size_bytes // 2] ^= 0xFF
    newest.write_bytes(content)

    with pytest.raises(DamagedFileError) as caught:
        inspect_file(newest)

    assert str(caught.value).count(PROGRAM) == 1
