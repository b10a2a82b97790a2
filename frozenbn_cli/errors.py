"""The errors that frozenbn raises, each with the exit code that the command line gives it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from frozenbn_cli.argument_words import as_arguments

__all__ = [
    "INTERRUPTED",
    "DamagedFileError",
    "DependencyError",
    "FrozenBNError",
    "InputError",
    "NothingToFreezeError",
    "OutputError",
    "RefusedError",
    "UnhealthyStatisticsError",
    "UnsupportedFileError",
    "UsageError",
    "VerificationError",
    "internal_error",
    "located",
]

INTERRUPTED = 130
"""The exit code of what was interrupted, which is no error."""


class FrozenBNError(Exception):
    """Base of every error that frozenbn raises on purpose.

    The message reads *where: what: expected X, found Y. What to do.*

    Args:
        what: What went wrong, without a closing full stop.
        where: The place, outermost first (file, record, byte); callers further up add theirs.
        expected: What should have been there.
        found: What was there.
        advice: What the user can do about it, as a sentence.
    """

    exit_code = 70

    def __init__(
        self,
        what: str = "",
        *,
        where: tuple[str, ...] = (),
        expected: str = "",
        found: str = "",
        advice: str = "",
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.expected = expected
        self.found = found
        self.advice = advice

    @property
    def problem(self) -> str:
        """The message without the advice."""
        contrast = ", ".join(
            f"{label} {value}"
            for label, value in (("expected", self.expected), ("found", self.found))
            if value
        )
        return ": ".join(part for part in (", ".join(self.where), self.what, contrast) if part)

    @property
    def shown(self) -> str:
        """The message for who reads of options; as text, it speaks of arguments."""
        return f"{self.problem}. {self.advice}" if self.advice else self.problem

    def __str__(self) -> str:
        return as_arguments(self.shown)


class UsageError(FrozenBNError):
    """The call itself is wrong: an option, a name or a combination that makes no sense."""

    exit_code = 2


class RefusedError(FrozenBNError):
    """The answer is no: nothing was written, for a reason that the result shows.

    Attributes:
        result: The `ConversionResult` up to there.
    """

    exit_code = 1
    result: Any = None


class UnhealthyStatisticsError(RefusedError):
    """The running statistics are broken or were never formed; freezing them would keep that."""


class NothingToFreezeError(RefusedError):
    """The input holds no BatchNorm2d that could be frozen."""


class VerificationError(RefusedError):
    """What was written is not what it has to be; nothing was left behind."""


class InputError(FrozenBNError):
    """The input cannot be read."""

    exit_code = 3


class DamagedFileError(InputError):
    """The bytes contradict the format: a truncated, corrupted or hostile file."""


class UnsupportedFileError(InputError):
    """The file is sound as far as it was read, but it is of a kind that is not supported."""


class DependencyError(FrozenBNError):
    """A package that this step needs is not installed."""

    exit_code = 2


class OutputError(FrozenBNError):
    """The output could not be written."""

    exit_code = 4


def internal_error(bug: BaseException, where: tuple[str, ...] = ()) -> FrozenBNError:
    """Return the error for what should never be raised: it must not look like an answer."""
    return FrozenBNError(
        f"internal error ({type(bug).__name__}: {bug})",
        where=where,
        advice="This is a bug of frozenbn; FROZENBN_DEBUG=1 shows where it happened.",
    )


@contextmanager
def located(place: str) -> Iterator[None]:
    """Put ``place`` in front of the location of every `FrozenBNError` raised inside."""
    try:
        yield
    except FrozenBNError as error:
        error.where = (place, *error.where)
        raise
