"""A real Dask cluster on this machine: a scheduler and two worker processes, one of them killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import jsonschema
import pytest

from tests.builders.dask_processes import PATIENT, address_in
from tests.builders.files import save, small_state
from tests.builders.processes import HANG_SECONDS, running, wait_until
from tests.cli.test_convert_many import files_in
from tests.reports.test_terminal import SCHEMA

pytest.importorskip("distributed")

# The first worker that verifies the file that is wanted says who it is, and waits; whoever does it
# after that goes on.
_WAIT_ONCE = """
import os, time
from pathlib import Path
from frozenbn_cli.conversion import convert as conversion

check, victim = conversion.check_written, Path(os.environ["VICTIM"])

def wait_once(path, *arguments):
    if path.name.startswith(".model3") and not victim.exists():
        victim.with_suffix(".new").write_text(str(os.getpid()))
        victim.with_suffix(".new").rename(victim)
        while True:
            time.sleep(1)
    check(path, *arguments)

conversion.check_written = wait_once
"""


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    return tmp_path / "victim"


@pytest.fixture
def cluster(tmp_path: Path, victim: Path) -> Iterator[str]:
    """Start a scheduler and two workers without nannies; return the scheduler's address."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "preload.py").write_text(_WAIT_ONCE)
    search = os.pathsep.join([str(tmp_path / "site"), *filter(None, sys.path)])
    environment = {**os.environ, **PATIENT, "PYTHONPATH": search, "VICTIM": str(victim)}
    found = tmp_path / "scheduler.json"
    where = ["--host", "127.0.0.1", "--no-dashboard"]
    worker = [*where, "--no-nanny", "--nthreads", "1"]
    worker += ["--preload", "preload", "--local-directory", str(tmp_path)]
    with ExitStack() as stack, (tmp_path / "cluster.log").open("wb") as log:

        def start(*arguments: str) -> "subprocess.Popen[str]":
            command = [sys.executable, "-m", "dask", *arguments]
            options = {"env": environment, "cwd": "/", "stdout": log, "stderr": log}
            return stack.enter_context(running(command, **options))

        address = address_in(
            found, start("scheduler", *where, "--port", "0", "--scheduler-file", str(found))
        )
        for _ in range(2):
            start("worker", address, *worker)
        yield address


def test_a_worker_that_is_killed_midway_costs_no_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str, victim: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("zoo").mkdir()
    for index in range(6):
        save(Path("zoo", f"model{index}.pt"), small_state())
    Path("zoo", "bad.pt").write_bytes(b"PK\3\4junk")

    command = [
        sys.executable, "-m", "frozenbn_cli", "convert", "zoo", "--output-dir", "out",
        "--no-verify", "--scheduler", cluster, "--json",
    ]  # fmt: skip
    search = os.pathsep.join(filter(None, sys.path))
    with running(command, env={**os.environ, **PATIENT, "PYTHONPATH": search}) as run:
        wait_until(victim.exists, run)
        wait_until(lambda: list(Path("out").glob(".model3.*.partial")), run)
        os.kill(int(victim.read_text()), signal.SIGKILL)
        shown, err = run.communicate(timeout=HANG_SECONDS)

    document = json.loads(shown)
    jsonschema.validate(document, SCHEMA)
    assert run.returncode == 3, err
    assert document["counts"] == {"done": 6, "skipped": 0, "failed": 1, "unfinished": 0}
    assert files_in(Path("out")) == [f"model{index}.frozen.safetensors" for index in range(6)]
    assert [file["path"] for file in document["files"]][:2] == ["zoo/bad.pt", "zoo/model0.pt"]
    assert "bad.pt: ZIP archive without its directory" in err


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://x"])
def test_a_scheduler_that_does_not_answer_is_wrong_usage(address: str) -> None:
    import dask

    from frozenbn_cli.errors import UsageError
    from frozenbn_cli.many_files.dask_cluster import dask_executor

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "0.3s"}),
        pytest.raises(UsageError, match="no Dask scheduler answers"),
        dask_executor(address),
    ):
        pass
