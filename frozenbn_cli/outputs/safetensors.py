"""Safetensors files, as they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import BinaryIO

from frozenbn_cli.batch_norms.record import METADATA_KEY, ConversionRecord
from frozenbn_cli.checkpoints import StoredTensor
from frozenbn_cli.containers.safetensors_file import SafetensorsWriter
from frozenbn_cli.errors import UnsupportedFileError, located

__all__ = ["SafetensorsOutput"]


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
                for chunk in tensor.views():
                    self._writer.write(chunk)
                    count(len(chunk))

    def finish(self, record: ConversionRecord) -> None:
        """Write the header with the record."""
        self._writer.finish(self._with(record))

    def _with(self, record: ConversionRecord) -> dict[str, str]:
        return {**self._metadata, METADATA_KEY: record.to_text()}


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
