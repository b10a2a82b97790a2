"""The process that runs the code of files: one for all tests, or one of a test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from frozenbn_cli.foreign_code import apart

_FOR_ARCHIVES = apart._MODULES


@pytest.fixture(scope="session", autouse=True)
def _one_for_programs_too() -> Iterator[None]:
    """Have it import beforehand what programs need, or each job of theirs would, for a second.

    Whoever converts a program has it do so; here it may have been started for something else.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apart, "_MODULES", (*_FOR_ARCHIVES, *apart._MODULES_OF_PROGRAMS))
        yield


@pytest.fixture
def process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a test have its process ended, while the one of the other tests goes on."""
    monkeypatch.setattr(apart, "_MODULES", _FOR_ARCHIVES)
    monkeypatch.setattr(apart, "_servers", [])
    yield
    apart._drop_server()
