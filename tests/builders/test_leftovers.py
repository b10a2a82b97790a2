"""One test's failure fails no other."""

import os
import subprocess
import sys
from pathlib import Path

# As files and processes are held by the frames of a traceback, also in cycles, and are collected
# when the next failure replaces it or the collector comes by.
LEAVES_MUCH_OPEN = """
import gc, subprocess, sys

class Resource:
    def __del__(self):
        raise RuntimeError("not closed")

def leave_open():
    file, resource = open(__file__), Resource()
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    cycle = [file, resource, process]
    cycle.append(cycle)
    raise ValueError(cycle)

def test_that_fails():
    leave_open()

def test_that_is_innocent():
    gc.collect()
    gc.collect()
"""
FROM_THE_SUITE = """
from tests.builders.leftovers import pytest_runtest_makereport, pytest_runtest_protocol
"""


def test_what_a_failed_test_leaves_open_fails_no_other(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (tmp_path / "conftest.py").write_text(FROM_THE_SUITE)
    (tmp_path / "test_two.py").write_text(LEAVES_MUCH_OPEN)

    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.stdout.splitlines()[-1].startswith("1 failed, 1 passed"), run.stdout
    assert "FAILED test_two.py::test_that_fails" in run.stdout
