"""The command line with many files: what is seen, the exit code, and how it ends when it has to."""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from rich.console import Console

from frozenbn_cli.errors import DependencyError, UsageError
from frozenbn_cli.many_files.file_results import FileResult
from frozenbn_cli.reports.batch_view import BatchView
from tests.builders.files import save, small_state
from tests.builders.processes import HANG_SECONDS, running, wait_until
from tests.cli.test_app import SIGNALS, run_here
from tests.reports.test_terminal import SCHEMA


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of two good files and one that is damaged."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.pt", "x/a.pt"):
        (tmp_path / "zoo" / name).parent.mkdir(exist_ok=True)
        save(tmp_path / "zoo" / name, small_state())
    (tmp_path / "zoo" / "bad.pt").write_bytes(b"PK\3\4junk")
    return Path("zoo")


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


TO = ("--output-dir", "out", "--no-verify", "--jobs", "1")


@pytest.mark.usefixtures("zoo")
class TestWhatIsSeen:
    def test_a_line_for_each_file_in_a_pipe_and_the_exit_code_of_the_worst(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, out, err = run_here(capsys, "convert", "zoo", "-r", *TO)

        lines = out.splitlines()
        assert code == 3
        assert lines[0].startswith("done    zoo/a.pt → out/a.frozen.safetensors · 2 of 2 layers · ")
        assert lines[1].startswith("failed  zoo/bad.pt · exit code 3 · ")
        assert all(re.search(r" · \d+\.\d+ s$", line) for line in lines)
        assert lines[2].startswith("done    zoo/x/a.pt → out/x/a.frozen.safetensors · 2 of")
        assert lines[3].startswith("3 files: 2 done, 1 failed · not verified · ")
        assert len(lines) == 4
        assert not set(out) & set("─━│…\x1b")
        assert err.startswith("frozenbn: zoo/bad.pt: ZIP archive without its directory")
        assert files_in(Path("out")) == ["a.frozen.safetensors", "x/a.frozen.safetensors"]

    def test_one_json_document(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = run_here(capsys, "convert", "zoo", "-r", *TO, "--json")

        document = json.loads(out)
        jsonschema.validate(document, SCHEMA)
        assert (code, document["exit_code"], document["outcome"]) == (3, 3, "failed")
        assert document["counts"] == {"done": 2, "skipped": 0, "failed": 1, "unfinished": 0}
        good, bad, _ = document["files"]
        assert (good["path"], good["output_path"]) == ("zoo/a.pt", "out/a.frozen.safetensors")
        assert (good["conversion"]["frozen"], good["error"]) == (2, None)
        assert (bad["conversion"], bad["error"]["exit_code"]) == (None, 3)

        code, out, _ = run_here(capsys, "convert", "zoo/*.pt", *TO, "--json", "--skip-existing")
        document = json.loads(out)
        jsonschema.validate(document, SCHEMA)
        assert [file["state"] for file in document["files"]] == ["skipped", "failed"]

    @pytest.mark.parametrize("suffix", ["html", "md", "json"])
    def test_one_report_of_all(self, capsys: pytest.CaptureFixture[str], suffix: str) -> None:
        report = f"report.{suffix}"
        code, out, _ = run_here(capsys, "convert", "zoo", "-r", *TO, "--report", report)

        text = Path(report).read_text(encoding="utf-8")
        assert (code, out.splitlines()[-1]) == (3, f"report: {report}")
        for path in ("zoo/a.pt", "zoo/bad.pt", "zoo/x/a.pt", "out/x/a.frozen.safetensors"):
            assert path in text
        assert "ZIP archive without its directory" in text
        if suffix == "html":
            assert text.count('<a href="#s') == text.count('<section id="s') == 3
            assert text.count("bn2") > 2
            assert "2 of 2" in text

    def test_a_report_of_the_rest_says_what_was_there(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run_here(capsys, "convert", "zoo/a.pt", *TO)

        run_here(capsys, "convert", "zoo", *TO, "--skip-existing", "--report", "r.md")

        assert "| `zoo/a.pt` | – | – | – | ▫️ Skipped | out/a.frozen" in Path("r.md").read_text()

    def test_quiet_prints_nothing_but_errors(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, err = run_here(capsys, "convert", "zoo", *TO, "--quiet")

        assert (code, out) == (3, "")
        assert len(err.splitlines()) == 1

    def test_skip_existing_resumes(self, capsys: pytest.CaptureFixture[str]) -> None:
        run_here(capsys, "convert", "zoo/a.pt", *TO)

        code, out, _ = run_here(capsys, "convert", "zoo/a.pt", *TO, "--skip-existing")
        assert (code, out.splitlines()[1][:18]) == (0, "1 file: 1 skipped ")

        code, _, err = run_here(capsys, "convert", "zoo/a.pt", *TO)
        assert code == 2
        assert "exists already" in err

    def test_a_dry_run_is_told_from_a_conversion(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, out, _ = run_here(capsys, "convert", "zoo/a.pt", "zoo/x/a.pt", *TO, "--dry-run")

        assert code == 0
        assert out.startswith("planned zoo/a.pt → out/a.frozen.safetensors")
        assert "2 files: 2 planned · " in out
        assert not Path("out").exists()


@pytest.mark.usefixtures("zoo")
class TestWrongUsage:
    @pytest.mark.parametrize(
        "arguments",
        [
            ["zoo/a.pt", "zoo/bad.pt"],
            ["zoo"],
            ["zoo/*.pt"],
            ["zoo/a.pt", "--recursive"],
            ["zoo/a.pt", "--skip-existing"],
            ["zoo/a.pt", "--jobs", "2"],
            ["zoo/a.pt", "--scheduler", "tcp://127.0.0.1:1"],
        ],
    )
    def test_several_files_need_a_folder_for_the_results(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str]
    ) -> None:
        code, out, err = run_here(capsys, "convert", *arguments)

        assert (code, out) == (2, "")
        assert "--output-dir" in err

    def test_what_excludes_each_other(self, capsys: pytest.CaptureFixture[str]) -> None:
        both = run_here(capsys, "convert", "zoo", *TO, "-o", "x")
        none = run_here(capsys, "convert", "zoo", "--output-dir", "out", "--jobs", "0")

        assert both[0] == none[0] == 2

    def test_a_collision_is_refused_before_anything_is_written(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        save(Path("zoo/a.pth"), small_state())

        code, out, err = run_here(capsys, "convert", "zoo", *TO)

        assert (code, out) == (2, "")
        assert "is the output of zoo/a.pt and zoo/a.pth" in err
        assert not Path("out").exists()

    def test_a_cluster_needs_dask(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "distributed", None)

        code, _, err = run_here(
            capsys, "convert", "zoo", "--output-dir", "out", "--scheduler", "tcp://127.0.0.1:1"
        )

        assert code == DependencyError.exit_code
        assert "pip install 'frozenbn-cli[dask]'" in err


def terminal(width: int) -> Console:
    return Console(
        file=io.StringIO(), width=width, height=12, force_terminal=True, color_system=None,
        markup=False, emoji=False, highlight=False,
    )  # fmt: skip


def shown(view: BatchView, console: Console) -> list[str]:
    with console.capture() as capture:
        console.print(view.rendered())
    return capture.get().splitlines()


class TestTheLiveTable:
    @pytest.fixture(params=[80, 120])
    def console(self, request: pytest.FixtureRequest) -> Console:
        return terminal(request.param)

    @pytest.fixture
    def view(self, console: Console) -> BatchView:
        """Return the view of 40 files of which 12 are finished, one of them failed, and 2 run."""
        view = BatchView(console, show=None, complain=lambda _: None)
        paths = [Path(f"zoo/model{index}.pt") for index in range(40)]
        for path in paths:
            view(FileResult(path=path, state="waiting"), 0, 40)
        for done, path in enumerate(paths[:14]):
            view(FileResult(path=path, state="running"), min(done, 12), 40)
            if done < 12:
                error = UsageError("why") if done == 11 else None
                state = "failed" if error else "done"
                view(FileResult(path=path, state=state, error=error, seconds=1.0), done + 1, 40)
        return view

    def test_is_folded_to_what_fits(self, view: BatchView, console: Console) -> None:
        lines = shown(view, console)

        assert len(lines) <= console.height - 2
        assert all(len(line) <= console.width for line in lines)
        assert lines[0] == "8 files finished before"
        assert [line.split()[0] for line in lines[1:7]] == [
            f"zoo/model{index}.pt" for index in range(8, 14)
        ]
        assert "✗ failed" in lines[4]
        assert "running" in lines[5]
        assert "12/40 files · 1 failed" in lines[-1]

    def test_long_names_fold(self, view: BatchView, console: Console) -> None:
        long = Path("zoo", *(f"folder{index}" for index in range(30)), "a.pt")
        view(FileResult(path=long, state="running"), 12, 40)

        lines = shown(view, console)

        assert all(len(line) <= console.width for line in lines)
        assert not any("…" in line for line in lines)

    def test_results_are_in_the_order_of_the_inputs(self) -> None:
        view = BatchView(None, show=None, complain=lambda _: None)
        for state in ("waiting", "done"):
            for name in sorted("ab", reverse=state == "done"):
                view(FileResult(path=Path(name), state=state), 0, 2)  # type: ignore[arg-type]

        assert [result.path.name for result in view.results] == ["a", "b"]

    def test_errors_wait_until_the_table_is_gone(self) -> None:
        console, told = terminal(80), []
        with BatchView(console, show=None, complain=told.append) as view:
            view(FileResult(path=Path("a"), state="waiting"), 0, 1)
            view(FileResult(path=Path("a"), state="failed", error=UsageError("x")), 1, 1)
            assert not told
        assert len(told) == 1


@pytest.fixture
def stuck(zoo: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A run that has finished one file, and is in the middle of another, its file half written.

    It stays there as long as it lives.
    """
    code = (
        "import os, pathlib, sys, time\n"
        "from frozenbn_cli.conversion import convert as conversion\n"
        "check = conversion.check_written\n"
        "def wait(path, *arguments):\n"
        "    if path.name.startswith('.stuck'):\n"
        "        pathlib.Path(os.environ['READY']).touch()\n"
        "        parent = os.getppid()\n"
        "        while os.getppid() == parent:\n"
        "            time.sleep(0.02)\n"
        "    check(path, *arguments)\n"
        "conversion.check_written = wait\n"
    )
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(code)
    save(zoo / "stuck.pt", small_state())
    save(zoo / "waiting.pt", small_state())
    ready = tmp_path / "ready"
    search = os.pathsep.join([str(tmp_path / "site"), *filter(None, sys.path)])
    with running(
        [sys.executable, "-m", "frozenbn_cli", "convert", "zoo", *TO, "--json"],
        env={**os.environ, "READY": str(ready), "PYTHONPATH": search},
        start_new_session=True,
    ) as process:
        wait_until(ready.exists, process)
        yield process


@pytest.mark.parametrize("sent", SIGNALS)
def test_an_interruption_leaves_what_is_finished_and_nothing_else(
    stuck: "subprocess.Popen[str]", sent: signal.Signals
) -> None:
    out = Path("out")
    assert len(files_in(out)) == 2

    # As a terminal does: to the whole group.
    os.killpg(stuck.pid, sent)
    shown, err = stuck.communicate(timeout=HANG_SECONDS)

    document = json.loads(shown)
    jsonschema.validate(document, SCHEMA)
    assert stuck.returncode == document["exit_code"] == 130
    assert document["outcome"] == "interrupted"
    assert document["counts"] == {"done": 1, "skipped": 0, "failed": 1, "unfinished": 2}
    assert files_in(out) == ["a.frozen.safetensors"]
    assert err.splitlines()[1:] == ["frozenbn: interrupted; nothing unfinished was left behind"]


def test_a_worker_that_is_killed_fails_its_file_alone(stuck: "subprocess.Popen[str]") -> None:
    if not shutil.which("pgrep"):
        pytest.skip("nothing here lists child processes")
    (worker,) = subprocess.run(
        ["pgrep", "-P", str(stuck.pid)], capture_output=True, text=True, check=True
    ).stdout.split()

    os.kill(int(worker), signal.SIGKILL)
    shown, err = stuck.communicate(timeout=HANG_SECONDS)

    document = json.loads(shown)
    assert stuck.returncode == 4
    assert document["counts"] == {"done": 2, "skipped": 0, "failed": 2, "unfinished": 0}
    assert files_in(Path("out")) == ["a.frozen.safetensors", "waiting.frozen.safetensors"]
    assert "zoo/stuck.pt: the worker process died (signal 9)" in err
