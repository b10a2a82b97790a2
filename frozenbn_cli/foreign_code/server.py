"""The process that runs the code of files: it imports PyTorch once, and forks for each job.

What is forked can write no file, has no descriptors but its own pipes, and ends with this process,
as this one does with the process that started it. A job is a pickled callable, which comes from
there; its result is written as JSON, since by then the code of a file may have done anything here.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import math
import os
import pickle
import resource
import select
import signal
import socket
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from frozenbn_cli.errors import FrozenBNError
from frozenbn_cli.foreign_code.apart import NUMBER
from frozenbn_cli.stages import telling

__all__ = ["main"]

_IDLE_SECONDS = 60
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl.
_SHARE_OF_MEMORY = 0.75
_LEAST_BYTES = 1 << 30
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def main(*modules: str) -> None:
    """Take jobs from standard input, a socket, until it is closed or nothing comes for long.

    Args:
        modules: That jobs need, imported beforehand, as far as this PyTorch has them.
    """
    _die_with_parent(os.getppid())
    warnings.simplefilter("ignore")
    for module in modules:
        with suppress(ImportError):
            importlib.import_module(module)
    tempfile.gettempdir()  # It writes to find out, which a job may not; so it is known by then.
    with suppress(ImportError, AttributeError):  # So does this when PyTorch 2.6 imports it.
        importlib.import_module("torch.distributed.nn")
    with socket.socket(fileno=0) as control:
        while select.select([control], [], [], _IDLE_SECONDS)[0]:
            message, descriptors, _, _ = socket.recv_fds(control, 1, 3)
            if not message:
                return
            server_id = os.getpid()
            process_id = os.fork()
            if not process_id:
                _serve(server_id, *descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
            control.sendall(NUMBER.pack(process_id))
            os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOWAIT)
            with suppress(OSError):  # What it started goes with it.
                os.killpg(process_id, signal.SIGKILL)
            _, status = os.waitpid(process_id, 0)
            control.sendall(NUMBER.pack(os.waitstatus_to_exitcode(status)))


def _serve(server_id: int, job: int, result: int, words: int) -> NoReturn:
    """Run one job, and end the process."""
    code = 1
    try:
        os.setsid()
        _die_with_parent(server_id)
        _keep_only(job, result, words)
        with open(0, "rb", closefd=False) as file:
            called = file.read()
        _limit()
        written = json.dumps(_answer(called)).encode()
        with open(3, "wb", closefd=False) as file:
            file.write(written)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        code = 0
    finally:
        os._exit(code)


def _keep_only(job: int, result: int, words: int) -> None:
    """Make the job descriptor 0, what is printed 1 and 2, the result 3, and close all others."""
    for place, descriptor in enumerate((job, words, words, result), start=100):
        os.dup2(descriptor, place)
    for place in range(4):
        os.dup2(100 + place, place, inheritable=place < 3)
    os.closerange(4, os.sysconf("SC_OPEN_MAX"))
    for name in ("stdout", "stderr"):
        place = ("stdout", "stderr").index(name) + 1
        setattr(sys, name, open(place, "w", errors="backslashreplace", closefd=False))  # noqa: SIM115


def _answer(called: bytes) -> dict[str, Any]:
    try:
        with telling(_tell):
            return {"value": pickle.loads(called)()}  # noqa: S301  # It comes from who started us.
    except FrozenBNError as error:
        fields = {name: getattr(error, name) for name in ("what", "expected", "found", "advice")}
        return {"error": type(error).__name__, "where": list(error.where), **fields}
    except MemoryError:
        return {"failure": "it takes more memory than there is"}
    except BaseException as error:  # The code of a file may raise anything.
        return {"failure": f"{type(error).__name__} {error}".strip()[:500]}


def _tell(step: str, done: int, total: int) -> None:
    """Say how far a job has come: a line each, before the result."""
    with suppress(OSError):
        os.write(3, json.dumps([step, done, total]).encode() + b"\n")


def _die_with_parent(parent_id: int) -> None:
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent_id:
        os._exit(1)


def _limit() -> None:
    """Let no file grow, and leave memory to others."""
    with suppress(OSError):  # Where memory runs out all the same, this process is the one to end.
        Path("/proc/self/oom_score_adj").write_text("1000")
    limits = {
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_DATA: max(int(_free_bytes() * _SHARE_OF_MEMORY), _LEAST_BYTES),
    }
    for kind, wanted in limits.items():
        _, hard = resource.getrlimit(kind)
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (most, most))


def _free_bytes() -> float:
    """Return how much memory there is to be had; infinite bounds are left out."""
    free = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = min(free, int(line.split()[1]) * 1024)
    for path in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # It says "max" where there is none.
            free = min(free, int(Path(path).read_text()) or math.inf)
    return free
