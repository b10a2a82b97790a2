"""Which cases are slow: `pytest -m 'not slow'` leaves them out, and answers within minutes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow_except(quick: str, cases: Iterable[str]) -> list[Any]:
    """Return ``cases`` for `parametrize`, all slow but those that ``quick`` names."""
    kept, cases = quick.split(), list(cases)
    assert set(kept) <= set(cases), "what shall be quick is a case"
    return [case if case in kept else pytest.param(case, marks=pytest.mark.slow) for case in cases]
