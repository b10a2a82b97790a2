"""The processes of a Dask cluster on this machine, which may be left little of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.builders.processes import HANG_SECONDS, wait_until

# An environment in which they wait for each other as long as it takes.
PATIENT = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": f"{HANG_SECONDS}s"}


def address_in(scheduler_file: Path, scheduler: subprocess.Popen[str]) -> str:
    """Return where a scheduler listens, once it has said so to the end."""
    wait_until(lambda: _said_by(scheduler_file), scheduler)
    return _said_by(scheduler_file)


def _said_by(scheduler_file: Path) -> str:
    try:
        return str(json.loads(scheduler_file.read_text("utf-8"))["address"])
    except (FileNotFoundError, json.JSONDecodeError):
        return ""
