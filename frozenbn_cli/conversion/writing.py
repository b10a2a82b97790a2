"""Begins the output of a conversion, in whatever format, and makes the archive that it may need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.checkpoints import StoredTensor
from frozenbn_cli.containers.rewriting import Rewriting
from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.containers.temporary_folder import temporary_folder
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.conversion.planning import ConversionPlan
from frozenbn_cli.outputs import OutputFormat
from frozenbn_cli.outputs.output import Output
from frozenbn_cli.outputs.rewritten import RewrittenOutput
from frozenbn_cli.stages import import_torch_for

if TYPE_CHECKING:
    from frozenbn_cli.conversion.making import Made

__all__ = ["begun_output"]

_ROOM_BYTES = 16 << 20  # For the code of an archive, beside its tensors.
_MAKERS: Mapping[OutputFormat, str] = {
    "torchscript": "frozenbn_cli.conversion.scripting",
    "pt2": "frozenbn_cli.conversion.exporting",
}
"""What makes archives of live models; each imports torch."""


@contextmanager
def begun_output(
    plan: ConversionPlan,
    file: BinaryIO,
    kept: Mapping[str, StoredTensor],
    *,
    longest: ConversionRecord,
) -> Iterator[tuple[Output, Made | None]]:
    """Begin the output; what it is made of is there until its tensors are written.

    Args:
        plan: What is to be written.
        file: To write to.
        kept: The entries that the output is to have.
        longest: The record, as long as it can become.

    Returns:
        The output, and what came of making an archive for it, where that took a live model.
    """
    if plan.edited:
        from frozenbn_cli.outputs.checkpoint import CheckpointOutput

        yield CheckpointOutput(file, plan.edited, longest), None
    elif plan.rewriting and (own := plan.archive):
        yield RewrittenOutput(file, own.archive, plan.rewriting, own.record_path), None
    elif plan.to in _MAKERS:
        room_bytes = _ROOM_BYTES + sum(entry.size_bytes for entry in kept.values())
        with (
            temporary_folder(room_bytes) as folder,
            _made_archive(plan, folder, longest) as (archive, made),
        ):
            yield RewrittenOutput(file, archive, Rewriting(), made.record_path), made
    else:
        # A BatchNorm2d adds its count to what has no version; below version 3, old layers of
        # detectron2 subtract eps from the variance.
        versions = {
            name: version
            for name, version in plan.part.versions.items()
            if name not in longest.layers
        }
        begin, metadata = _beginner(plan.to), plan.checkpoint.metadata
        yield begin(file, kept, metadata=metadata, longest_record=longest, versions=versions), None


def _beginner(to: OutputFormat) -> Callable[..., Output]:
    """Return what begins an output that holds tensors alone."""
    if to == "safetensors":
        from frozenbn_cli.outputs.safetensors import SafetensorsOutput

        return SafetensorsOutput
    from frozenbn_cli.outputs.torch import TorchOutput

    return TorchOutput


@contextmanager
def _made_archive(
    plan: ConversionPlan, folder: str, record: ConversionRecord
) -> Iterator[tuple[ZipArchive, Made]]:
    """Make an archive of the live model, with the layers of a record frozen."""
    path = Path(folder, f"model.{plan.to}")
    maker = import_torch_for(_MAKERS[plan.to])
    made = maker.make(plan.checkpoint, plan.part, record.layers, path, plan.options)
    with closing(ByteSource(path)) as source:
        yield ZipArchive(source), made
