"""What every format that is written has in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from frozenbn_cli.batch_norms.record import ConversionRecord

__all__ = ["Output"]


class Output(Protocol):
    """A file in one format, being written.

    Records that are copied whole keep the checksum that the input states. So the input's checksums
    have to be checked (`Checkpoint.fingerprint`) before the output may be used.
    """

    def write_tensors(self, count: Callable[[int], None]) -> None:
        """Write every tensor; ``count`` is told the bytes of each piece."""

    def finish(self, record: ConversionRecord) -> None:
        """Write the record; may be called again, with one that is not longer than the first."""
