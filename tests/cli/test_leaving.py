"""The process ends as it should, however quickly."""

from __future__ import annotations

import subprocess
import sys

import pytest

LEAVES = """
import atexit, threading, time
from frozenbn_cli.cli.leaving import leave

atexit.register(print, "at the end")
print("said", end=" ")
{beside}
leave({code})
"""
BESIDE = "threading.Thread(target=lambda: (time.sleep({}), print('went on'))).start()"
SOON = BESIDE.format(0.3)
# Whoever waited for it would print it; and would do so in time for the tests to end.
LATE = BESIDE.format(60)


def left(code: int, *, beside: str = "") -> tuple[int, str]:
    script = LEAVES.format(beside=beside, code=code)
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert run.stderr == ""
    return run.returncode, run.stdout


@pytest.mark.parametrize("code", [0, 1, 130])
def test_says_all_and_does_what_is_to_be_done_at_the_end(code: int) -> None:
    assert left(code) == (code, "said at the end\n")


def test_waits_for_what_goes_on_beside() -> None:
    code, said = left(0, beside=SOON)

    assert (code, said) == (0, "said went on\nat the end\n")


def test_whoever_interrupts_does_not_wait() -> None:
    assert left(130, beside=LATE) == (130, "said at the end\n")


@pytest.mark.parametrize("watched", ["setprofile", "settrace"])
def test_whoever_profiles_it_gets_to_its_end(watched: str) -> None:
    beside = f"import sys; sys.{watched}(lambda *_: None)\ntry: leave(0)\nfinally: print('finally')"

    assert left(0, beside=beside) == (0, "said finally\nat the end\n")
