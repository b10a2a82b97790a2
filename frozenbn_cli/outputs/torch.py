"""Plain state dicts for `torch.load`, as they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import BinaryIO

from frozenbn_cli.batch_norms.record import METADATA_KEY, ConversionRecord
from frozenbn_cli.checkpoints import StoredTensor
from frozenbn_cli.checkpoints.tensors import row_major_strides
from frozenbn_cli.containers.zip_writer import ZipWriter
from frozenbn_cli.pickles.values import Call, Global, PersistentId, Value
from frozenbn_cli.pickles.writer import write_pickle

__all__ = ["TorchOutput"]

# What `torch.load` knows no typed storage for.
_WITHOUT_TYPED_STORAGE = {
    "float8_e4m3fn", "float8_e5m2", "complex32", "uint16", "uint32", "uint64",
}  # fmt: skip
_ORDERED_DICT = Global("collections", "OrderedDict")
_UNTYPED = Global("torch.storage", "UntypedStorage")


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
                for chunk in tensor.views():
                    self._writer.write(chunk)
                    count(len(chunk))
        self._writer.add("archive/version", b"3\n")

    def finish(self, record: ConversionRecord) -> None:
        """Write the record and the directory."""
        self._writer.finish_with(f"archive/{METADATA_KEY}.json", record.to_text().encode())

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
