"""Begins to read the file that a command converts before the parser is there.

To import and build the parser takes as long as to hash 100 MB.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

__all__ = ["looking_ahead"]

# With these, no file is hashed here.
_ELSEWHERE = ("-h", "--help", "--dry-run", "--output-dir")


def looking_ahead(arguments: Sequence[str]) -> AbstractContextManager[None]:
    """Return what has the input of a conversion read within, as far as it can be guessed.

    Args:
        arguments: What was typed. A file that turns out to be none to convert is left alone then.
    """
    command, *others = arguments or [""]
    if command != "convert" or any(other.startswith(_ELSEWHERE) for other in others):
        return nullcontext()
    path = next((other for other in others if os.path.isfile(other)), None)  # noqa: PTH113
    if path is None:
        return nullcontext()
    from pathlib import Path

    from frozenbn_cli.containers.fingerprint import reading_ahead

    return reading_ahead(Path(path))
