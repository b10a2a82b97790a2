"""Begins to read the file that a command converts before the parser is there.

To import and build the parser takes as long as to hash 100 MB.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from frozenbn_cli.containers.fingerprint import Fingerprint

__all__ = ["looking_ahead"]

# With these, no file is hashed here.
_ELSEWHERE = ("-h", "--help", "--dry-run", "--output-dir")


@contextmanager
def looking_ahead(arguments: Sequence[str]) -> Iterator[None]:
    """Have the input of a conversion read within, as far as it can be guessed.

    Args:
        arguments: What was typed. A file that turns out to be none to convert is left alone then.
    """
    begun = None
    with suppress(Exception):  # It can be read later, by whoever says what is wrong.
        begun = _begun(arguments)
    try:
        yield
    finally:
        if begun:
            begun.close()


def _begun(arguments: Sequence[str]) -> Fingerprint | None:
    command, *others = arguments or [""]
    if command != "convert" or any(other.startswith(_ELSEWHERE) for other in others):
        return None
    path = next((other for other in others if os.path.isfile(other)), None)  # noqa: PTH113
    if path is None:
        return None
    from pathlib import Path

    from frozenbn_cli.containers.fingerprint import Fingerprint

    return Fingerprint.ahead(Path(path))
