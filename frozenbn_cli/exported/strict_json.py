"""JSON that every reader takes for the same values, read strictly and written as PyTorch does."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from frozenbn_cli.errors import DamagedFileError

__all__ = ["json_text", "read_json"]


def read_json(text: bytes) -> dict[str, Any]:
    """Return the object that a JSON document is.

    Raises:
        DamagedFileError: It is no JSON object, or a key stands in it twice, of which readers
            differ in which one counts.
    """
    try:
        document = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(expected="JSON", found=str(error)[:120]) from error
    if not isinstance(document, dict):
        raise DamagedFileError(expected="a JSON object", found=type(document).__name__)
    return document


def json_text(document: dict[str, Any]) -> bytes:
    """Return a document as the text that PyTorch writes of it."""
    return json.dumps(document).encode()


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise DamagedFileError(f"key {twice[:80]!a} stands twice in one JSON object")
    return fields
