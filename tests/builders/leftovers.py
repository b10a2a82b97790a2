"""What a failed test leaves open fails no other: hooks of pytest, for a conftest to import."""

from __future__ import annotations

import gc
import sys
from collections.abc import Generator

import pytest


def _unheard(_: object) -> None:
    pass


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let nobody hear of what cannot be closed properly any more once a test has failed."""
    report = yield
    if report.failed:
        sys.unraisablehook = _unheard
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Generator[None, object, object]:
    """Collect what the traceback of a failure holds before the next test begins.

    A file or process in it would be collected in the middle of a later test otherwise, and the
    warning, which is an error, would fail that one. A test that passes is not let off.
    """
    hook = sys.unraisablehook
    try:
        return (yield)
    finally:
        if sys.unraisablehook is _unheard:
            _forget_the_traceback()
            gc.collect()
            sys.unraisablehook = hook


def _forget_the_traceback() -> None:
    """Drop what pytest keeps of the last failure, for debuggers that come later."""
    for name in ("last_exc", "last_type", "last_value", "last_traceback"):
        if hasattr(sys, name):
            delattr(sys, name)
