"""The process that runs the code of files: one for all tests, or one of a test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from frozenbn_cli.foreign_code import apart

_FOR_ARCHIVES = apart._MODULES
_PATIENT = "from frozenbn_cli.foreign_code import server; server._IDLE_SECONDS = 3600; "


@pytest.fixture(scope="session", autouse=True)
def _one_for_programs_too() -> Iterator[None]:
    """Have it import beforehand what programs need, and wait for jobs as long as tests run.

    Whoever converts a program has it import that, which takes seconds; here it may have been
    started for something else, and each job would. Between folders it would end, and start anew.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apart, "_MODULES", (*_FOR_ARCHIVES, *apart._MODULES_OF_PROGRAMS))
        patch.setattr(apart, "_CODE", apart._CODE.replace("main(*", f"{_PATIENT}main(*"))
        yield


@pytest.fixture
def process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a test have its process ended, while the one of the other tests goes on."""
    monkeypatch.setattr(apart, "_MODULES", _FOR_ARCHIVES)
    monkeypatch.setattr(apart, "_servers", [])
    yield
    apart._drop_server()
