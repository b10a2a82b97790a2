"""Tells an output that an earlier run finished from one of another source or other options."""

from __future__ import annotations

import os
from pathlib import Path

from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.checkpoints import Checkpoint, open_checkpoint
from frozenbn_cli.conversion.convert import ConvertOptions
from frozenbn_cli.errors import InputError, UsageError
from frozenbn_cli.outputs import OutputFormat, default_output, format_of

__all__ = ["find_existing"]


def find_existing(path: Path, output_dir: Path, options: ConvertOptions) -> Path | None:
    """Return the output of ``path`` if it is there and need not be made again.

    It counts if its own record says that it was made of a source with the same sha256, with the
    options that decide what it holds, and was verified if that is asked for.

    Args:
        path: The input.
        output_dir: Where its output belongs.
        options: Those of the conversion that is to be spared.

    Returns:
        None if it is not there, or does not count and may be replaced.

    Raises:
        InputError: The input cannot be read.
        UsageError: It is there, does not count, and may not be replaced; says why.
    """
    with options.open(path) as checkpoint:
        to = format_of(checkpoint, options.to)
        target = output_dir / default_output(path, to).name
        if not os.path.lexists(target):
            return None
        record = _record(target)
        obstacle = _obstacle(record, checkpoint, options, to)
        if not obstacle:
            return target
    if options.force:
        return None
    raise UsageError(
        f"exists already, and does not count: {obstacle}",
        where=(str(target),),
        advice="Pass --force to replace it.",
    )


def _record(target: Path) -> ConversionRecord | None:
    try:
        with open_checkpoint(target, keep_prefix=True) as written:
            return ConversionRecord.from_metadata(written.metadata)
    except InputError:
        return None


def _obstacle(
    record: ConversionRecord | None,
    checkpoint: Checkpoint,
    options: ConvertOptions,
    to: OutputFormat,
) -> str:
    """Return why a record does not stand for what would be made; empty if it does."""
    if record is None:
        return "it is no file that frozenbn wrote"
    if record.options is None:
        return "it does not say with which options it was made"
    # Some options are only there where they are given; how names differ is found, not given.
    wanted, had = options.deciding(to), {**record.options, "renamed": None}
    if differing := [name for name in {**wanted, **had} if had.get(name) != wanted.get(name)]:
        return f"it was made with another {differing[0]}"
    if options.verify and not record.verified:
        return "it was not verified"
    if missing := [claim for claim in options.require if claim not in record.verified]:
        return f"its {missing[0]} was not verified, which is required"
    if record.source.get("size_bytes") != checkpoint.size_bytes:
        return "it was made of another source"
    if record.source.get("sha256") != checkpoint.fingerprint():
        return "it was made of another source"
    return ""
