"""Words that several parts of the package say alike."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from datetime import datetime, timezone
from itertools import islice

__all__ = ["counted", "date_text", "is_it", "listed", "printable"]


def counted(count: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def date_text(date: datetime) -> str:
    """Return a date for programs: ISO 8601, to the second, in UTC."""
    return date.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def listed(names: Collection[str], at_most: int = 3) -> str:
    """Return the first names, and whether there are more."""
    return ", ".join(islice(names, at_most)) + (", …" if len(names) > at_most else "")


def is_it(word: str, known: Iterable[str]) -> str:
    """Return the question whether ``word`` should be a name that exists; empty if none is near.

    What merely begins like it counts as near too: a module of several, a name without its end.
    """
    names = list(dict.fromkeys(name for name in known if name))
    near = difflib.get_close_matches(word, names, 2)
    near = near or [name for name in names if len(word) > 2 and name.startswith(word)][:2]
    return f"Is it {' or '.join(repr(name) for name in near)}?" if near else ""


def printable(text: object) -> str:
    """Return ``text`` with what a terminal would obey, or could not show, escaped.

    Names come out of files that nobody vouches for.
    """
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in str(text)
    )
