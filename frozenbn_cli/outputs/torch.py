"""The formats that are written: each takes tensors as they lie in the input, and a record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from frozenbn_cli.batch_norms.record import METADATA_KEY, ConversionRecord
from frozenbn_cli.checkpoints import StoredTensor
from frozenbn_cli.checkpoints.tensors import row_major_strides
from frozenbn_cli.checkpoints.torchscript import record_path
from frozenbn_cli.containers.safetensors_file import SafetensorsWriter
from frozenbn_cli.containers.source import chunks
from frozenbn_cli.containers.zip_writer import ZipWriter
from frozenbn_cli.errors import UnsupportedFileError, located
from frozenbn_cli.pickles.values import Call, Global, PersistentId, Value
from frozenbn_cli.pickles.writer import write_pickle
from frozenbn_cli.torchscript.rewriting import Rewriting
from frozenbn_cli.torchscript.script_archive import ScriptArchive

__all__ = [
    "OUTPUTS",
    "Output",
    "OutputFormat",
    "SafetensorsOutput",
    "TorchOutput",
    "TorchScriptOutput",
    "default_output",
]

OutputFormat = Literal["safetensors", "torch", "torchscript"]

_OUTPUT_SUFFIXES: dict[OutputFormat, str] = {
    "safetensors": ".safetensors",
    "torch": ".pt",
    "torchscript": ".pt",
}
_INPUT_SUFFIXES = {
    ".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl", ".model", ".safetensors", ".weights", ".index",
    ".json",
}  # fmt: skip


def default_output(path: Path, to: OutputFormat = "safetensors") -> Path:
    """Return where the result of converting ``path`` goes if the user does not say."""
    path = path.resolve() if path.name in ("", "..") else path
    name = path.name
    while (suffix := Path(name).suffix) in _INPUT_SUFFIXES:
        name = name.removesuffix(suffix)
    return path.parent / f"{name}.frozen{_OUTPUT_SUFFIXES[to]}"


class Output(Protocol):
    """A file in one format, being written.

    Records that are copied whole keep the checksum that the input states. So the input's checksums
    have to be checked (`Checkpoint.fingerprint`) before the output may be used.
    """

    def write_tensors(self, count: Callable[[int], None]) -> None:
        """Write every tensor; ``count`` is told the bytes of each piece."""

    def finish(self, record: ConversionRecord) -> None:
        """Write the record; may be called again, with one that is not longer than the first."""


class SafetensorsOutput:
    """A safetensors file, whose record is in its metadata."""

    def __init__(
        self,
        file: BinaryIO,
        tensors: Mapping[str, StoredTensor],
        *,
        metadata: Mapping[str, str],
        longest_record: ConversionRecord,
        versions: Mapping[str, int],  # noqa: ARG002  # There is no place for them.
    ) -> None:
        # Without holes between them, tensors are aligned only if wider elements come first.
        self._tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].dtype.item_bytes))
        self._metadata = {**metadata, "format": "pt"}
        self._writer = SafetensorsWriter(
            file,
            {name: _layout(name, tensor) for name, tensor in self._tensors.items()},
            room_for=self._with(longest_record),
        )

    def write_tensors(self, count: Callable[[int], None]) -> None:
        """Write every tensor."""
        for name, tensor in self._tensors.items():
            with located(f"entry {name!a}"):
                for chunk in tensor.chunks():
                    self._writer.write(chunk)
                    count(len(chunk))

    def finish(self, record: ConversionRecord) -> None:
        """Write the header with the record."""
        self._writer.finish(self._with(record))

    def _with(self, record: ConversionRecord) -> dict[str, str]:
        return {**self._metadata, METADATA_KEY: record.to_text()}


class TorchOutput:
    """A plain state dict as `torch.save` writes it, with the record as one more ZIP record."""

    def __init__(
        self,
        file: BinaryIO,
        tensors: Mapping[str, StoredTensor],
        *,
        metadata: Mapping[str, str],  # noqa: ARG002  # There is no place for it.
        longest_record: ConversionRecord,  # noqa: ARG002  # Records are as long as they are.
        versions: Mapping[str, int],
    ) -> None:
        self._versions = versions
        self._writer = ZipWriter(file)
        self._storages: dict[Value, tuple[str, StoredTensor]] = {}
        self._tensors = tensors
        self._finished = False

    def write_tensors(self, count: Callable[[int], None]) -> None:
        """Write the pickle, and the storage of every tensor."""
        entries = [(name, self._rebuilt(tensor)) for name, tensor in self._tensors.items()]
        state_dict = Call(_ORDERED_DICT, (), items=list(entries))
        if self._versions:
            described = [(name, {"version": number}) for name, number in self._versions.items()]
            state_dict.state = {"_metadata": Call(_ORDERED_DICT, (), items=list(described))}
            state_dict.has_state = True
        self._writer.add("archive/data.pkl", write_pickle(state_dict))
        self._writer.add("archive/byteorder", b"little")
        for key, tensor in self._storages.values():
            record = f"archive/data/{key}"
            with self._writer.record(record, tensor.size_bytes, crc32=tensor.crc32):
                for chunk in tensor.chunks():
                    self._writer.write(chunk)
                    count(len(chunk))
        self._writer.add("archive/version", b"3\n")

    def finish(self, record: ConversionRecord) -> None:
        """Write the record and the directory."""
        if self._finished:
            self._writer.drop_last()
        self._writer.add(f"archive/{METADATA_KEY}.json", record.to_text().encode())
        self._writer.write_directory()
        self._finished = True

    def _rebuilt(self, tensor: StoredTensor) -> Call:
        """Return the call that rebuilds ``tensor``; entries that share all of a tensor go on to."""
        shared = (
            id(tensor.storage),
            tensor.offset,
            tensor.shape,
            tensor.strides,
            tensor.dtype,
            tensor.conjugate,
        )
        key, _ = self._storages.setdefault(shared, (str(len(self._storages)), tensor))
        dtype = tensor.dtype
        typed = dtype.storage is not None and dtype.name not in _WITHOUT_TYPED_STORAGE
        kind = Global("torch", str(dtype.storage)) if typed else _UNTYPED
        count = tensor.elements if typed else tensor.size_bytes
        storage = PersistentId(("storage", kind, key, "cpu", count))
        strides = row_major_strides(tensor.shape)
        arguments: tuple[Value, ...] = (
            storage,
            0,
            tensor.shape,
            strides,
            False,
            Call(_ORDERED_DICT, ()),
        )
        if typed:
            return Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)
        arguments = (*arguments, Global("torch", dtype.name))
        return Call(Global("torch._utils", "_rebuild_tensor_v3"), arguments)


class TorchScriptOutput:
    """A TorchScript archive, whose record is one of its extra files."""

    def __init__(self, file: BinaryIO, script: ScriptArchive, rewriting: Rewriting) -> None:
        self._writer = ZipWriter(file)
        self._script = script
        self._rewriting = rewriting
        self._record_path = record_path(script.root)
        self._finished = False

    def write_tensors(self, count: Callable[[int], None]) -> None:
        """Write every record, changed or as it was."""
        archive, replaced = self._script.archive, dict(self._rewriting.replaced)
        for name in archive.records:
            if name in replaced:
                self._writer.add(name, replaced.pop(name))
            elif name not in self._rewriting.dropped and name != self._record_path:
                extent = archive.extent(name)
                with (
                    located(f"record {name}"),
                    self._writer.record(name, extent.size_bytes, crc32=extent.crc32),
                ):
                    for chunk in chunks(extent):
                        self._writer.write(chunk)
                        count(len(chunk))
        for name, content in replaced.items():
            self._writer.add(name, content)

    def finish(self, record: ConversionRecord) -> None:
        """Write the record and the directory."""
        if self._finished:
            self._writer.drop_last()
        self._writer.add(self._record_path, record.to_text().encode())
        self._writer.write_directory()
        self._finished = True


OUTPUTS: Mapping[OutputFormat, Callable[..., Output]] = {
    "safetensors": SafetensorsOutput,
    "torch": TorchOutput,
    "torchscript": TorchScriptOutput,
}
"""How to begin an output of each format."""

# What `torch.load` knows no typed storage for.
_WITHOUT_TYPED_STORAGE = {"float8_e4m3fn", "float8_e5m2", "complex32"}
_ORDERED_DICT = Global("collections", "OrderedDict")
_UNTYPED = Global("torch.storage", "UntypedStorage")


def _layout(name: str, tensor: StoredTensor) -> tuple[str, tuple[int, ...], int]:
    if name == "__metadata__":
        raise UnsupportedFileError(
            "safetensors keeps the entry name __metadata__ to itself",
            advice="Write --to torch instead.",
        )
    if tensor.dtype.code is None:
        raise UnsupportedFileError(
            f"safetensors cannot hold dtype {tensor.dtype}",
            where=(f"entry {name!a}",),
            advice="Write --to torch instead.",
        )
    return tensor.dtype.code, tensor.shape, tensor.size_bytes
