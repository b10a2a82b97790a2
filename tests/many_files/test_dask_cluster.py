"""A real Dask cluster on this machine: a scheduler and two worker processes, one of them killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import jsonschema
import pytest

from tests.builders.files import save, small_state
from tests.cli.test_convert_many import files_in
from tests.reports.test_terminal import SCHEMA

pytest.importorskip("distributed")

# The first worker that verifies the file that is wanted says who it is, and waits; whoever does it
# after that goes on.
_WAIT_ONCE = """
import os, time
from pathlib import Path
from frozenbn_cli.conversion import convert as conversion

check, victim = conversion._check_record, Path(os.environ["VICTIM"])

def wait_once(path, *arguments):
    if path.name.startswith(".model3") and not victim.exists():
        victim.with_suffix(".new").write_text(str(os.getpid()))
        victim.with_suffix(".new").rename(victim)
        time.sleep(60)
    check(path, *arguments)

conversion._check_record = wait_once
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
    environment = {**os.environ, "PYTHONPATH": search, "VICTIM": str(victim)}
    found = tmp_path / "scheduler.json"
    where = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(found)]
    worker = ["worker", *where[2:], "--host", "127.0.0.1", "--no-nanny", "--nthreads", "1"]
    worker += ["--preload", "preload", "--local-directory", str(tmp_path)]
    with ExitStack() as stack, (tmp_path / "cluster.log").open("wb") as log:
        for arguments in (["scheduler", *where, "--port", "0"], worker, worker):
            process = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "dask", *arguments],
                    env=environment, cwd="/", stdout=log, stderr=log,
                )
            )  # fmt: skip
            stack.callback(process.kill)
        until(found.exists)
        yield json.loads(found.read_text())["address"]


def until(condition: object) -> None:
    deadline = time.monotonic() + 20
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it takes too long"
        time.sleep(0.05)


def test_a_worker_that_is_killed_midway_costs_no_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: str, victim: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("zoo").mkdir()
    for index in range(6):
        save(Path("zoo", f"model{index}.pt"), small_state())
    Path("zoo", "bad.pt").write_bytes(b"PK\3\4junk")

    run = subprocess.Popen(
        [
            sys.executable, "-m", "frozenbn_cli", "convert", "zoo", "--output-dir", "out",
            "--no-verify", "--scheduler", cluster, "--json",
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(victim.exists)
    until(lambda: list(Path("out").glob(".model3.*.partial")))
    os.kill(int(victim.read_text()), signal.SIGKILL)
    shown, err = run.communicate(timeout=30)

    document = json.loads(shown)
    jsonschema.validate(document, SCHEMA)
    assert run.returncode == 3
    assert document["counts"] == {"done": 6, "skipped": 0, "failed": 1, "unfinished": 0}
    assert files_in(Path("out")) == [f"model{index}.frozen.safetensors" for index in range(6)]
    assert [file["path"] for file in document["files"]][:2] == ["zoo/bad.pt", "zoo/model0.pt"]
    assert "bad.pt: ZIP archive without its directory" in err


def test_a_scheduler_that_does_not_answer_is_wrong_usage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from frozenbn_cli.errors import UsageError
    from frozenbn_cli.many_files import dask_cluster

    monkeypatch.setattr(dask_cluster, "_PATIENCE_SECONDS", 0.3)

    for address in ("tcp://127.0.0.1:1", "nonsense://x"):
        with (
            pytest.raises(UsageError, match="no Dask scheduler answers"),
            dask_cluster.dask_executor(address),
        ):
            pass
