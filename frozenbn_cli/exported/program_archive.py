"""An archive of exported programs, open: its layout, its models, and the record of each thing.

`torch.export.save` has written three layouts, all of stored ZIP records; their names are those of
``torch/csrc/export/pt2_archive_constants.h`` and ``torch/export/pt2_archive/_package.py``:

- *A* (PyTorch 2.6 and 2.7): no folder around it, ``serialized_exported_program.json`` and beside it
  ``serialized_state_dict.pt`` and others, each a file of `torch.save`.
- *B* (2.8): a folder, ``models/NAME.json``, and ``data/weights/NAME.pt``, a file of `torch.save`.
- *C* (since 2.9): as B, but each storage of the weights is a record of its own, and
  ``data/weights/NAME_weights_config.json`` says which tensor is which part of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from frozenbn_cli.containers.source import Extent, FileExtent, SourceWindow
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.errors import DamagedFileError, UnsupportedFileError, located
from frozenbn_cli.exported.program_shape import check_config, check_program
from frozenbn_cli.exported.strict_json import read_json

__all__ = ["Layout", "Part", "Payload", "ProgramArchive", "is_program_archive"]

Layout = Literal["A", "B", "C"]
Part = Literal["weights", "constants"]

_OLD_PROGRAM = "serialized_exported_program.json"
_OLD_PARTS: Mapping[Part, str] = {
    "weights": "serialized_state_dict.pt",
    "constants": "serialized_constants.pt",
}
_FORMAT = "archive_format"
_COMPILED = "data/aotinductor/"
_MAX_JSON_BYTES = 64 << 20
_SCHEMA_MAJOR = 8


@dataclass(frozen=True, slots=True)
class Payload:
    """Where a tensor of a program lies, in layout C.

    Attributes:
        record: The record that is its storage, shared with others perhaps.
        is_param: Whether it is a parameter.
        is_pickled: Whether the record is a file of `torch.save` instead, or another pickle.
        meta: Its dtype, sizes, strides and more, as in the schema; None for other objects.
    """

    record: str
    is_param: bool
    is_pickled: bool
    meta: Mapping[str, Any] | None


def is_program_archive(archive: ZipArchive) -> bool:
    """Return whether an archive is one of exported programs, or of code compiled from one."""
    return _OLD_PROGRAM in archive.records or any(
        name.partition("/")[2] == _FORMAT for name in archive.records
    )


class ProgramArchive:
    """The programs of an archive; nothing in it is loaded, unpickled or evaluated.

    Attributes:
        archive: The file.
        layout: How it is laid out; ``C`` too where it holds no program.
        root: The folder around all records, with a slash; empty in layout A.
        models: The names of its programs; the one of layout A is called ``model``.

    Raises:
        DamagedFileError: The records contradict the layout.
        UnsupportedFileError: It was written on a big-endian machine.
    """

    def __init__(self, archive: ZipArchive) -> None:
        self.archive = archive
        self._checked: dict[str, bytes] = {}
        self._payloads: dict[tuple[str, Part], dict[str, Payload]] = {}
        self.root = "" if _OLD_PROGRAM in archive.records else _root(archive)
        if not self.root:
            self.layout: Layout = "A"
            self.models: tuple[str, ...] = ("model",)
        else:
            self.models = tuple(_models(archive, self.root))
            old = [f"{self.root}data/weights/{model}.pt" for model in self.models]
            self.layout = "B" if any(name in archive.records for name in old) else "C"
        order = f"{self.root}byteorder"
        if order in archive.records and archive.read(order) != b"little":
            raise UnsupportedFileError("written on a big-endian machine, whose bytes are swapped")

    @property
    def has_compiled_code(self) -> bool:
        """Whether there is code that was compiled from a program, which no edit reaches."""
        return any(name.startswith(f"{self.root}{_COMPILED}") for name in self.archive.records)

    def program_record(self, model: str) -> str:
        """Return the record that holds the JSON of a program."""
        return _OLD_PROGRAM if self.layout == "A" else f"{self.root}models/{model}.json"

    def program_text(self, model: str) -> bytes:
        """Return the JSON of a program as it stands in the file."""
        return self.archive.read(self.program_record(model), at_most_bytes=_MAX_JSON_BYTES)

    def program(self, model: str) -> dict[str, Any]:
        """Return a program as plain values, new ones, of the shape that the schema says.

        Raises:
            DamagedFileError: It is no JSON, or not of that shape.
            UnsupportedFileError: Its schema is of another major version.
        """
        text = self.program_text(model)
        if text == self._checked.get(model):
            return json.loads(text)  # type: ignore[no-any-return]
        with located(f"record {self.program_record(model)}"):
            document = read_json(text)
            _check_schema_version(document)
            check_program(document)
        self._checked[model] = text
        return document

    def nested_record(self, model: str, part: Part) -> str | None:
        """Return the record that is a file of `torch.save`, of all weights or constants.

        None in layout C, which has none.
        """
        if self.layout == "A":
            return _OLD_PARTS[part]
        name = f"{self.root}data/{part}/{model}.pt"
        return name if name in self.archive.records else None

    def nested(self, model: str, part: Part) -> ZipArchive | None:
        """Return that file of `torch.save`, open; None if there is none, or it is empty."""
        record = self.nested_record(model, part)
        if record is None or not (extent := self.archive.extent(record)).size_bytes:
            return None
        if not isinstance(extent, FileExtent):
            raise UnsupportedFileError(f"record {record!a} is compressed, as PyTorch writes none")
        with located(f"record {record}"):
            return ZipArchive(SourceWindow(extent.source, extent.start, extent.size_bytes))

    def config_record(self, model: str, part: Part) -> str:
        """Return the record that says which tensor lies where, in layout C."""
        return f"{self.root}data/{part}/{model}_{part}_config.json"

    def config(self, model: str, part: Part) -> dict[str, Any]:
        """Return that record as plain values, of the shape that the schema says.

        Raises:
            DamagedFileError: It is missing, no JSON, or not of that shape.
        """
        record = self.config_record(model, part)
        text = self.archive.read(record, at_most_bytes=_MAX_JSON_BYTES)
        with located(f"record {record}"):
            document = read_json(text)
            check_config(document)
        return document

    def payloads(self, model: str, part: Part) -> Mapping[str, Payload]:
        """Return where each tensor lies, by name, in layout C."""
        if (model, part) not in self._payloads:
            self._payloads[model, part] = {
                name: Payload(
                    f"{self.root}data/{part}/{entry['path_name']}",
                    entry["is_param"],
                    entry["use_pickle"],
                    entry.get("tensor_meta"),
                )
                for name, entry in self.config(model, part)["config"].items()
            }
        return self._payloads[model, part]

    def extra_record(self, name: str) -> str:
        """Return where a file that goes along with the programs has its place."""
        return f"{self.root}{'extra_files' if self.layout == 'A' else 'extra'}/{name}"

    def extent(self, record: str) -> Extent:
        """Return the bytes of a record."""
        return self.archive.extent(record)


def _check_schema_version(document: dict[str, Any]) -> None:
    """Refuse a program whose schema says something else than what is known here.

    Raises:
        UnsupportedFileError: Its major version is another one.
    """
    version = document.get("schema_version")
    major = version.get("major") if isinstance(version, dict) else version
    if type(major) is not int or major != _SCHEMA_MAJOR:
        raise UnsupportedFileError(
            "schema of the exported program",
            expected=f"version {_SCHEMA_MAJOR}",
            found=str(major)[:20],
            advice="Load it with the PyTorch that wrote it, and save it with another.",
        )


def _root(archive: ZipArchive) -> str:
    """Return the folder of layouts B and C, in which PyTorch looks for every record."""
    roots = {name.partition("/")[0] for name in archive.records}
    if len(roots) != 1:
        raise DamagedFileError(
            "an archive of exported programs", expected="one folder", found=f"{len(roots):,}"
        )
    root = f"{roots.pop()}/"
    if archive.read(f"{root}{_FORMAT}") != b"pt2":
        raise UnsupportedFileError("an archive of another format than pt2")
    return root


def _models(archive: ZipArchive, root: str) -> list[str]:
    prefix, suffix = f"{root}models/", ".json"
    names = [name.removeprefix(prefix) for name in archive.records if name.startswith(prefix)]
    if other := next((name for name in names if not name.endswith(suffix)), None):
        raise DamagedFileError(f"record models/{other[:80]} is no program")
    return [name.removesuffix(suffix) for name in names]
