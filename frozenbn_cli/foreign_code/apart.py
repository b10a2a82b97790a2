"""Runs a job in a process of its own, and says what became of it, whatever it did."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import selectors
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from frozenbn_cli import errors
from frozenbn_cli.errors import FrozenBNError
from frozenbn_cli.stages import tell
from frozenbn_cli.wording import printable

__all__ = ["CAN_RUN", "NUMBER", "JobFailed", "is_prepared", "prepare", "run_apart"]

CAN_RUN = sys.platform == "linux"
"""Whether jobs get a process of their own; elsewhere, PyTorch does not outlive a fork for sure."""

NUMBER = struct.Struct("<i")
"""How the server tells the process id of a job, and the exit code of that process."""

_MODULES = tuple(
    f"frozenbn_cli.verification.{name}" for name in ("layer_runs", "models", "running")
)
_MODULES_OF_PROGRAMS = (
    "torch.export.pt2_archive._package",
    "torch._functorch.aot_autograd",
    "torch._export.serde.serialize",
)
_CODE = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from frozenbn_cli.foreign_code.server import main; main(*sys.argv[1].split())"
)
_START_SECONDS = 300.0
_MAX_RESULT_BYTES = 64 << 20
_MAX_WORDS_BYTES = 16 << 10
_CHUNK_BYTES = 1 << 16
_MOST_LETTERS = 80  # Of the name of a step.


class JobFailed(Exception):  # noqa: N818  # No error of the user's, nor of ours.
    """A job came to no result; the message says why, as the end of a sentence on it."""


def prepare(*, for_programs: bool = False) -> None:
    """Start the process that will run jobs, which takes it some seconds; returns at once.

    Args:
        for_programs: Whether jobs load exported programs, for which PyTorch imports as much again.
    """
    if CAN_RUN and sys.executable:
        with _lock:
            _server((*_MODULES, *_MODULES_OF_PROGRAMS) if for_programs else _MODULES)


def is_prepared() -> bool:
    """Return whether a process is there, or starting, that will run jobs."""
    return bool(_servers) and _servers[0].is_there


def run_apart(
    job: Callable[[], Any], *, timeout: float, say: Callable[[str], None] | None = None
) -> Any:
    """Return what a job returns, as far as JSON can tell it.

    Args:
        job: Can be pickled.
        timeout: In seconds.
        say: Is given what the job printed.

    Raises:
        JobFailed: It crashed, ran out of time or memory, or raised what is no `FrozenBNError`.
        FrozenBNError: As the job raised it.
    """
    try:
        called = pickle.dumps(partial(_as_here, _folder(), [*sys.path], pickle.dumps(job)))
    except Exception as error:  # Pickling runs code of the model.
        raise JobFailed(
            f"a model cannot be sent to the process that runs code of a file ({error}); name a "
            "function of a module"
        ) from error
    with _lock:
        try:
            served = _served(called, timeout)
        except BaseException:
            _drop_server()
            raise
    if say and served.words:
        say(served.words.decode("utf-8", "backslashreplace"))
    return _result(served)


def _folder() -> str:
    """Return where this process is now, which may be elsewhere than when the other was started."""
    with contextlib.suppress(OSError):  # It may have been removed.
        return str(Path.cwd())
    return ""


def _as_here(folder: str, path: list[str], pickled: bytes) -> Any:
    """Run a job where its asker is, with the modules that are found there."""
    with contextlib.suppress(OSError):  # As above.
        os.chdir(folder)
    sys.path[:] = path
    return pickle.loads(pickled)()  # noqa: S301  # It is ours.


def _served(called: bytes, timeout: float) -> _Served:
    """Have a job run, by a new process where the one that was there is about to end."""
    with contextlib.suppress(_Ending):
        return _server().serve(called, timeout)
    _drop_server()
    try:
        return _server().serve(called, timeout)
    except _Ending:
        raise JobFailed("the process that runs it has ended") from None


class _Ending(Exception):  # noqa: N818  # It is told by another process.
    """The process took no job: it ends by itself when none came for long."""


@dataclass(slots=True)
class _Served:
    """What came back from a job: its result, what it printed, and the exit code of its process."""

    result: bytearray = field(default_factory=bytearray)
    words: bytearray = field(default_factory=bytearray)
    exit_code: int = 0


def _result(served: _Served) -> Any:
    try:
        answer = json.loads(served.result)
    except (ValueError, RecursionError):
        raise JobFailed(f"it ended the process that ran it ({_ended(served.exit_code)})") from None
    if not isinstance(answer, dict):
        raise JobFailed("it came to no result")
    if "failure" in answer:
        raise JobFailed(f"it failed ({answer['failure']})")
    if "error" in answer:
        raise _error(answer)
    return answer.get("value")


def _ended(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit code {exit_code}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-exit_code).name
    return f"signal {-exit_code}"


def _error(answer: dict[str, Any]) -> FrozenBNError:
    kind = getattr(errors, str(answer["error"]), None)
    if not (isinstance(kind, type) and issubclass(kind, FrozenBNError)):
        kind = FrozenBNError
    fields = {name: str(answer.get(name, "")) for name in ("expected", "found", "advice")}
    where = answer.get("where")
    places = tuple(map(str, where)) if isinstance(where, list) else ()
    return kind(str(answer.get("what", "")), where=places, **fields)


class _Server:
    """The process that forks for each job, see `server`."""

    def __init__(self, modules: tuple[str, ...]) -> None:
        self.owner = os.getpid()
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603  # Python itself.
                [sys.executable, "-c", _CODE, " ".join(modules), *sys.path],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for us, who then end it.
            )

    @property
    def is_there(self) -> bool:
        """Whether it takes jobs: it ends when none came for long, and is none of a fork of ours."""
        return self.owner == os.getpid() and self._process.poll() is None

    def serve(self, called: bytes, timeout: float) -> _Served:
        """Have a job run, and return what came of it.

        Raises:
            JobFailed: There is no process to run it, or it ran out of time.
            _Ending: This process takes no more jobs.
        """
        with contextlib.ExitStack() as stack:
            (job, to_job), (result, from_job), (words, from_model) = (
                [stack.enter_context(file) for file in _pipe()] for _ in range(3)
            )
            theirs = (job, from_job, from_model)
            try:
                socket.send_fds(self._control, [b"j"], [file.fileno() for file in theirs])
                for file in theirs:
                    file.close()
                process_id = self._number(_START_SECONDS)
            except TimeoutError:
                raise JobFailed("no process could be started for it") from None
            except (OSError, JobFailed) as error:
                raise _Ending from error
            deadline = time.monotonic() + timeout
            served = _Served()
            try:
                _exchange(called, to_job, {result: served.result, words: served.words}, deadline)
                served.exit_code = self._number(deadline - time.monotonic())
                _drain(words, served.words)
            except BaseException as error:
                with contextlib.suppress(OSError):
                    os.killpg(process_id, signal.SIGKILL)
                if isinstance(error, TimeoutError):
                    raise JobFailed(
                        f"it was not done after {timeout:g} seconds; --timeout allows more"
                    ) from None
                raise
            return served

    def _number(self, seconds: float) -> int:
        self._control.settimeout(max(seconds, 0.001))
        received = self._control.recv(NUMBER.size, socket.MSG_WAITALL)
        if len(received) < NUMBER.size:
            raise JobFailed("the process that runs it has ended")
        return int(NUMBER.unpack(received)[0])

    def close(self) -> None:
        """End the process, and with it what it runs."""
        self._control.close()
        if self.owner == os.getpid():
            self._process.kill()
            self._process.wait()


def _pipe() -> tuple[BinaryIO, BinaryIO]:
    read, write = os.pipe()
    return open(read, "rb", buffering=0), open(write, "wb", buffering=0)  # noqa: PTH123


def _exchange(
    called: bytes, to_job: BinaryIO, read: dict[BinaryIO, bytearray], deadline: float
) -> None:
    """Send a job, and read what it writes until its result is whole; what is printed is cut off."""
    result, words = read
    limits = {result: _MAX_RESULT_BYTES, words: _MAX_WORDS_BYTES}
    unsent = memoryview(called)
    os.set_blocking(to_job.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(to_job, selectors.EVENT_WRITE)
        for file in read:
            selector.register(file, selectors.EVENT_READ)
        while result in {key.fileobj for key in selector.get_map().values()}:
            ready = selector.select(max(deadline - time.monotonic(), 0))
            if time.monotonic() > deadline:
                raise TimeoutError
            for key, _ in ready:
                if key.fileobj is to_job:
                    with contextlib.suppress(BrokenPipeError):
                        unsent = unsent[to_job.write(unsent) or 0 :]
                        if unsent:
                            continue
                    selector.unregister(to_job)
                    to_job.close()
                    continue
                file = cast(BinaryIO, key.fileobj)
                if chunk := file.read(_CHUNK_BYTES):
                    read[file] += chunk[: limits[file] - len(read[file])]
                    if file is result and b"\n" in chunk:
                        _pass_on(read[file])
                else:
                    selector.unregister(file)


def _pass_on(read: bytearray) -> None:
    """Tell the steps that a job has told, a line each, and leave what comes after them.

    The code of a file has run where they come from, and may tell anything.
    """
    *lines, rest = bytes(read).split(b"\n")
    read[:] = rest
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            match json.loads(line):
                case [str(step), int(done), int(total)]:
                    tell(printable(step[:_MOST_LETTERS]), max(done, 0), max(total, 0))


def _drain(words: BinaryIO, read: bytearray) -> None:
    """Read what was printed last, and does not wait for more."""
    os.set_blocking(words.fileno(), False)
    while len(read) < _MAX_WORDS_BYTES and (chunk := words.read(_CHUNK_BYTES)):
        read += chunk[: _MAX_WORDS_BYTES - len(read)]


_lock = threading.Lock()
_servers: list[_Server] = []


def _server(modules: tuple[str, ...] = _MODULES) -> _Server:
    """Return the process that is there, or start one that imports modules beforehand."""
    if _servers and not _servers[0].is_there:
        _drop_server()
    if not _servers:
        _servers.append(_Server(modules))
    return _servers[0]


def _drop_server() -> None:
    while _servers:
        _servers.pop().close()


atexit.register(_drop_server)
