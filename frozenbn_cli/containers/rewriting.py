"""What becomes of an archive that is rewritten: everything else goes over byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from frozenbn_cli.containers.source import Extent

__all__ = ["NestedRecords", "Rewriting"]

NestedRecords = Mapping[str, bytes | Extent]


@dataclass(frozen=True, slots=True)
class Rewriting:
    """What becomes of an archive.

    Attributes:
        replaced: Records with new contents, by name; some of them new.
        dropped: Records that are left out.
        kept_counts: The frozen layers whose ``num_batches_tracked`` stays, since something reads
            it.
        nested: Records that are archives, and the records that each of these has then.
    """

    replaced: Mapping[str, bytes] = field(default_factory=dict)
    dropped: frozenset[str] = frozenset()
    kept_counts: frozenset[str] = frozenset()
    nested: Mapping[str, NestedRecords] = field(default_factory=dict)
