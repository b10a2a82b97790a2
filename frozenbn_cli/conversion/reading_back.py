"""Reads back an output with its record."""

from __future__ import annotations

from collections.abc import Mapping, Set
from contextlib import closing
from pathlib import Path

from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.containers.zip_archive import Record, ZipArchive
from frozenbn_cli.errors import VerificationError

__all__ = ["check_record", "check_written"]

_MAX_BYTES = 16 << 20  # As readers have it.


def check_written(
    path: Path, record: ConversionRecord, names: Set[str] | None, key: str | None = None
) -> Mapping[str, Record]:
    """Read back an output; return the records of an archive, none for other formats.

    Args:
        path: The output.
        record: Which it is to have.
        names: Those of the one state dict, or of that at a key; None if they do not matter.
        key: Where the state dict is.

    Raises:
        VerificationError: It is not what it has to be.
    """
    with open_checkpoint(path, keep_prefix=True, with_layers=False) as written:
        if ConversionRecord.from_metadata(written.metadata) != record or (
            names is not None and written.state_dict(key).entries.keys() != names
        ):
            raise _wrong()
        return written.archive.records if written.archive else {}


def check_record(path: Path, record: ConversionRecord, before: Mapping[str, Record]) -> None:
    """Read back the record of an archive, which was read back when it had another.

    Args:
        path: The output.
        record: Which it is to have.
        before: Its records then, as `check_written` returned them.

    Raises:
        VerificationError: It is not what it has to be.
    """
    with closing(ByteSource(path)) as source:
        archive = ZipArchive(source)
        *others, last = archive.records.items()
        *same, (name, _) = before.items()
        content = archive.read(name, at_most_bytes=_MAX_BYTES)
        if (others, last[0]) != (same, name) or content != record.to_text().encode():
            raise _wrong()


def _wrong() -> VerificationError:
    return VerificationError("the record was not written as it has to be")
