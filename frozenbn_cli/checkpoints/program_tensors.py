"""The tensors of an exported program, lazy: from records of their own or from a file within."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frozenbn_cli.checkpoints.tensors import DTYPES, StoredTensor
from frozenbn_cli.containers.source import Extent
from frozenbn_cli.errors import DamagedFileError, UnsupportedFileError, located
from frozenbn_cli.exported.program_archive import Part, Payload, ProgramArchive
from frozenbn_cli.pickles.values import Call, describe, items_of

__all__ = ["ProgramTensors", "program_tensors"]

_STRIDED = 7
# Of ScalarType in torch/_export/serde/schema.py.
_SCALAR_TYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32",
    8: "float64", 9: "complex32", 10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16",
    28: "uint16", 29: "float8_e4m3fn", 30: "float8_e5m2", 31: "float8_e4m3fnuz",
    32: "float8_e5m2fnuz", 33: "float8_e8m0fnu", 34: "uint32", 35: "uint64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProgramTensors:
    """The weights or the constants of a program.

    Attributes:
        entries: The tensors by name, in the file's order.
        unsupported: What is no tensor that could be read: name and description.
    """

    entries: Mapping[str, StoredTensor]
    unsupported: Mapping[str, str]


def program_tensors(archive: ProgramArchive, model: str, part: Part = "weights") -> ProgramTensors:
    """Return the tensors of a program; none is read before it is asked for.

    Raises:
        DamagedFileError: A tensor contradicts its storage, or the file itself.
    """
    if archive.nested_record(model, part) is None:
        return _from_records(archive, model, part)
    return _from_nested(archive, model, part)


def _from_records(archive: ProgramArchive, model: str, part: Part) -> ProgramTensors:
    entries: dict[str, StoredTensor] = {}
    unsupported: dict[str, str] = {}
    extents: dict[str, Extent] = {}
    for name, payload in archive.payloads(model, part).items():
        with located(f"entry {name[:80]!a}"):
            if payload.record not in extents:
                extents[payload.record] = archive.extent(payload.record)
            try:
                entries[name] = _tensor(payload, extents[payload.record])
            except UnsupportedFileError as error:
                unsupported[name] = error.problem
    return ProgramTensors(entries, unsupported)


def _tensor(payload: Payload, storage: Extent) -> StoredTensor:
    meta = payload.meta
    if payload.is_pickled or meta is None:
        raise UnsupportedFileError("an object that only unpickling would make")
    if meta.get("layout") != _STRIDED:
        raise UnsupportedFileError("a tensor of another layout than strided")
    if meta["dtype"] not in _SCALAR_TYPES:
        raise UnsupportedFileError(f"dtype number {meta['dtype']} is not known")
    shape, strides = _numbers(meta["sizes"]), _numbers(meta["strides"])
    (offset,) = _numbers([meta.get("storage_offset")])
    if len(shape) != len(strides):
        raise DamagedFileError(
            "a tensor's strides", expected=f"{len(shape)}", found=f"{len(strides)}"
        )
    if not storage.size_bytes and 0 not in shape:
        # Written of a tensor that held none; PyTorch fills in zeros.
        raise UnsupportedFileError("a tensor without values")
    return StoredTensor(DTYPES[_SCALAR_TYPES[meta["dtype"]]], shape, strides, offset, storage)


def _numbers(values: list[Any]) -> tuple[int, ...]:
    numbers = [value.get("as_int") if isinstance(value, dict) else None for value in values]
    if any(type(number) is not int for number in numbers):
        raise DamagedFileError("a size of a tensor", expected="a number", found=str(values)[:80])
    return tuple(numbers)  # type: ignore[arg-type]


def _from_nested(archive: ProgramArchive, model: str, part: Part) -> ProgramTensors:
    from frozenbn_cli.checkpoints.pickled import read_value
    from frozenbn_cli.checkpoints.pickled_tensors import is_tensor

    nested = archive.nested(model, part)
    if nested is None:
        return ProgramTensors({}, {})
    entries: dict[str, StoredTensor] = {}
    unsupported: dict[str, str] = {}
    with located(f"record {archive.nested_record(model, part)}"):
        value, finder = read_value(nested.source)
        items = items_of(value)
        if items is None:
            raise DamagedFileError(expected="tensors by name", found=describe(value))
        for name, entry in items:
            if not isinstance(name, str):
                raise DamagedFileError("a name", expected="text", found=describe(name))
            with located(f"entry {name[:80]!a}"):
                if not isinstance(entry, Call) or not is_tensor(entry):
                    unsupported[name] = describe(entry)
                    continue
                finder.names.take(name, entry)
                try:
                    entries[name] = finder.tensor(entry)
                except UnsupportedFileError as error:
                    unsupported[name] = error.problem
    return ProgramTensors(entries, unsupported)
