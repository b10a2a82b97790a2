"""Bounds the names in a pickle: objects that are shared have one for each way to them."""

from __future__ import annotations

from frozenbn_cli.errors import DamagedFileError
from frozenbn_cli.pickles.values import Value

__all__ = ["NameBudget"]

_MAX_DEPTH = 200
_MAX_NAME_CHARACTERS = 4096
_MAX_CHARACTERS = 32 << 20
_MAX_FURTHER_NAMES = 20_000


class NameBudget:
    """Counts the names that are given to the modules and tensors of one file.

    With two ways to each module from the one above, a few hundred bytes have more names than memory
    can hold. Models share some layers, each under a few names.
    """

    def __init__(self) -> None:
        self._named: set[int] = set()
        self._further = 0
        self._characters = 0

    def take(self, name: str, value: Value, depth: int = 0) -> None:
        """Count a name of an object, which has to stay alive.

        Args:
            name: From the root, with dots.
            value: The object.
            depth: How many others it stands in.

        Raises:
            DamagedFileError: There are more, or longer ones, than any model has.
        """
        self._characters += len(name)
        self._further += id(value) in self._named
        self._named.add(id(value))
        if (
            depth > _MAX_DEPTH
            # One that stands in the file as it is may be longer.
            or (depth and len(name) > _MAX_NAME_CHARACTERS)
            or self._characters > _MAX_CHARACTERS
            or self._further > _MAX_FURTHER_NAMES
        ):
            raise DamagedFileError("more modules within each other than any model has")
