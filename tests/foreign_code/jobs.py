"""What the code of a file might do, as functions that another process can import."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from frozenbn_cli.errors import UsageError
from frozenbn_cli.stages import begin


def add(first: int, second: int) -> int:
    return first + second


def crash() -> None:
    ctypes.string_at(0)


def leave() -> None:
    os._exit(7)


def loop(interrupted: int = 0) -> None:
    """Go on for ever, and interrupt another process first."""
    if interrupted:
        os.kill(interrupted, signal.SIGINT)
    while True:
        pass


def allocate() -> int:
    import torch  # The server has imported it.

    # What is reserved and never touched counts, and takes nothing from others.
    return len([torch.empty(1 << 30) for _ in range(1 << 20)])


def write(path: Path) -> None:
    path.write_bytes(b"x")


def descriptors() -> list[str]:
    listed = list(Path("/proc/self/fd").iterdir())
    # The one that the folder was listed by is closed by now.
    return [str(path.readlink()).partition(":")[0] for path in listed if path.is_symlink()]


def leave_a_process_behind() -> int:
    return subprocess.Popen(["/bin/sleep", "1000"]).pid


def talk(lines: int) -> None:
    for _ in range(lines):
        print("said", flush=True)
    os.system("echo shouted >&2")


def refuse() -> None:
    raise UsageError("what", where=("a", "b"), expected="x", found="y", advice="Do it.")


def fail(kind: Any) -> None:
    raise kind("as expected")


def answer_itself() -> None:
    """Write something else where the result belongs."""
    os.write(3, b'{"value": 1')
    os._exit(0)


def is_imported(name: str) -> bool:
    return name in sys.modules


def folder_for_files() -> str:
    return tempfile.gettempdir()


def work_in_steps() -> str:
    """Tell two steps as this package does, and lines of its own."""
    count = begin("running the model (1 of 4)", 2)
    count(1)
    os.write(3, b'not JSON\n[1, 2, 3]\n["\\u001b[31mforged", -5, 7]\n' + b"[" * 10_000 + b"\n")
    begin("done")
    return "result"
