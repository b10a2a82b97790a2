import json
import os
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import frozenbn_cli
from frozenbn_cli import cli
from frozenbn_cli.cli import convert
from tests.builders.files import batch_norm, nested, save, small_state
from tests.builders.processes import HANG_SECONDS, running


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save(tmp_path / "model.pt", small_state())


def frozenbn(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "frozenbn_cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
        check=False,
    )


def test_converts_and_reports_on_stdout(model: Path) -> None:
    run = frozenbn("convert", model)

    assert (run.returncode, run.stderr) == (0, "")
    assert "layers    ✓ equal" in run.stdout
    assert model.with_name("model.frozen.safetensors").exists()


def test_the_installed_command_is_the_module() -> None:
    command = Path(sys.executable).with_name("frozenbn")

    shown = subprocess.run([command, "--version"], capture_output=True, text=True, check=True)

    assert shown.stdout == f"frozenbn {frozenbn_cli.__version__}\n"


def run_here(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_json_is_one_document(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    code, out, err = run_here(capsys, "convert", model, "--json")

    document = json.loads(out)
    assert (code, err, document["outcome"], document["schema_version"]) == (0, "", "converted", 1)
    assert [layer["name"] for layer in document["layers"]] == ["bn1", "bn2"]
    assert {claim["name"]: claim["status"] for claim in document["claims"]}["layers"] == "equal"


def test_quiet_prints_nothing(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    assert run_here(capsys, "convert", model, "--quiet") == (0, "", "")


def test_options_reach_the_conversion(
    capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.safetensors"
    target.write_text("old")

    code, out, _ = run_here(
        capsys, "convert", model, "-o", target, "--force", "--eps", "1e-3", "--include", "bn*",
        "--exclude", "bn2", "--no-verify", "--json",
    )  # fmt: skip

    document = json.loads(out)
    assert code == 0
    assert document["output"]["path"] == str(target)
    assert document["layers"][0]["eps"] == 1e-3
    assert document["layers"][1]["reason"] == "excluded by 'bn2'"
    assert document["claims"][0]["detail"] == "skipped by --no-verify"
    assert target.stat().st_size > 100


def test_removes_what_a_killed_run_left_and_says_so(
    capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    left = model.with_name(".other.frozen.pt.0a1b2c3d.partial")
    left.write_bytes(b"unfinished")
    os.utime(left, (0, 0))

    code, _, err = run_here(capsys, "convert", model, "--dry-run")
    assert (code, err, left.exists()) == (0, "", True)

    code, _, err = run_here(capsys, "convert", model)

    said = f"frozenbn: removed {left}, which a run that was killed had left\n"
    assert (code, err, left.exists()) == (0, said, False)


def test_dry_run_writes_nothing(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    code, out, _ = run_here(capsys, "convert", model, "--dry-run")

    assert code == 0
    assert "dry run" in out
    assert [path.name for path in model.parent.iterdir()] == ["model.pt"]


def test_all_shows_every_layer(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    _, out, _ = run_here(capsys, "convert", model, "--all", "--dry-run")

    assert "bn1" in out
    assert "bn2" in out


class TestInspect:
    def test_reports_several_files(
        self, capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
    ) -> None:
        other = save(tmp_path / "other.safetensors", small_state())

        code, out, err = run_here(capsys, "inspect", model, other)

        assert (code, err) == (0, "")
        assert out.count("frozenbn convert would freeze 2 of 2 layers.") == 2

    def test_one_file_that_cannot_be_read_does_not_hide_the_others(
        self, capsys: pytest.CaptureFixture[str], model: Path
    ) -> None:
        code, out, err = run_here(capsys, "inspect", "missing.pt", model)

        assert code == 3
        assert "would freeze 2 of 2" in out
        assert err.startswith("frozenbn: missing.pt: there is no such file")

    def test_json_is_one_document_for_all_files(
        self, capsys: pytest.CaptureFixture[str], model: Path
    ) -> None:
        code, out, _ = run_here(capsys, "inspect", "missing.pt", model, "--json")

        missing, found = json.loads(out)["files"]
        assert code == 3
        assert (missing["path"], missing["outcome"]) == ("missing.pt", "error")
        assert (found["outcome"], found["healthy"]) == ("inspected", True)

    def test_check_makes_the_exit_code_an_answer(
        self, capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path
    ) -> None:
        state = small_state()
        state["bn1.running_var"][0] = -1
        sick = save(tmp_path / "sick.pt", state)

        assert run_here(capsys, "inspect", sick)[0] == 0
        assert run_here(capsys, "inspect", sick, "--check")[0] == 1
        assert run_here(capsys, "inspect", model, "--check", "--quiet") == (0, "", "")

    def test_options_reach_the_inspection(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        both = {"a": {f"module.{name}": t for name, t in small_state().items()}, "b": small_state()}
        path = save(tmp_path / "a.pt", both)

        _, out, _ = run_here(
            capsys, "inspect", path, "--key", "a", "--keep-prefix", "--eps", "1e-3", "--json",
            "--include", "*bn1",
        )  # fmt: skip

        (part,) = json.loads(out)["files"][0]["state_dicts"]
        assert [layer["name"] for layer in part["layers"]] == ["module.bn1", "module.bn2"]
        assert [layer["action"] for layer in part["layers"]] == ["freeze", "leave"]
        assert part["layers"][0]["eps"] == 1e-3


def test_converts_to_a_plain_state_dict(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    code, out, _ = run_here(capsys, "convert", model, "--to", "torch", "--no-verify")

    assert code == 0
    assert "model.frozen.pt" in out
    assert model.with_name("model.frozen.pt").exists()


class TestExitCodes:
    def test_1_for_unhealthy_statistics_whose_report_is_shown(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        state = small_state()
        state["bn1.running_mean"][0] = float("nan")
        path = save(tmp_path / "a.pt", state)

        code, out, err = run_here(capsys, "convert", path)

        assert code == 1
        assert "not converted: unhealthy statistics" in out
        assert err.startswith(f"frozenbn: {path}: broken or never formed statistics in 1 of")
        assert "--force-unhealthy" in err
        assert run_here(capsys, "convert", path, "--force-unhealthy")[0] == 0

    def test_1_for_nothing_to_freeze_also_as_json(
        self, capsys: pytest.CaptureFixture[str], model: Path
    ) -> None:
        frozen = model.with_name("model.frozen.safetensors")
        run_here(capsys, "convert", model)

        code, out, _ = run_here(capsys, "convert", frozen, "--json")

        document = json.loads(out)
        assert (code, document["outcome"]) == (1, "nothing to freeze")
        assert document["error"]["exit_code"] == 1

    @pytest.mark.parametrize(
        "arguments",
        [
            ["convert"],
            ["convert", "a.pt", "--eps", "many"],
            ["convert", "a.pt", "--eps", "-1"],
            ["convert", "a.pt", "--eps", "nan"],
            ["convert", "a.pt", "--nonsense"],
            ["convert", "a.pt", "--to", "onnx"],
            ["inspect"],
            ["nonsense"],
        ],
    )
    def test_2_for_wrong_usage(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str]
    ) -> None:
        code, out, err = run_here(capsys, *arguments)

        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1

    def test_2_for_an_output_that_exists(
        self, capsys: pytest.CaptureFixture[str], model: Path
    ) -> None:
        run_here(capsys, "convert", model)

        code, out, err = run_here(capsys, "convert", model)

        assert (code, out) == (2, "")
        assert err.endswith("exists already. Pass --force to replace it.\n")

    def test_3_for_an_input_that_cannot_be_read_also_as_json(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        missing = tmp_path / "a [v2] x.pth"

        code, out, err = run_here(capsys, "convert", missing)
        assert (code, out) == (3, "")
        assert err == f"frozenbn: {missing}: there is no such file\n"

        code, out, _ = run_here(capsys, "convert", missing, "--json")
        assert json.loads(out)["error"]["kind"] == "InputError"

    def test_4_for_an_output_that_cannot_be_written(
        self, capsys: pytest.CaptureFixture[str], model: Path
    ) -> None:
        code, _, err = run_here(capsys, "convert", model, "-o", model.parent / "no" / "out")

        assert code == 4
        assert "folder does not exist" in err

    def test_70_for_a_bug(
        self, capsys: pytest.CaptureFixture[str], model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def crash(*_: object, **__: object) -> None:
            raise ZeroDivisionError("oops")

        monkeypatch.setattr(convert, "convert_file", crash)

        code, _, err = run_here(capsys, "convert", model)
        assert code == 70
        assert "internal error (ZeroDivisionError: oops)" in err
        assert "Traceback" not in err

        monkeypatch.setenv("FROZENBN_DEBUG", "1")
        assert "Traceback" in run_here(capsys, "convert", model)[2]

    def test_130_when_interrupted(
        self, capsys: pytest.CaptureFixture[str], model: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(convert, "convert_file", interrupt)

        assert run_here(capsys, "convert", model)[0] == 130


def test_closed_and_full_streams_are_told_from_the_answer(model: Path) -> None:
    shell = f'"{sys.executable}" -m frozenbn_cli inspect "{model}"'

    closed = subprocess.run(["bash", "-c", f"{shell} >&-"], capture_output=True, check=False)
    full = subprocess.run(
        ["bash", "-c", f"{shell} --json >/dev/full"], capture_output=True, text=True, check=False
    )

    assert closed.returncode == 0
    assert (full.returncode, full.stderr) == (
        4,
        "frozenbn: standard output: cannot be written (No space left on device)\n",
    )


def test_help_in_an_ascii_locale() -> None:
    assert frozenbn("--help", PYTHONIOENCODING="ascii").returncode == 0


def test_no_arguments_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run_here(capsys)

    assert (code, err) == (2, "")
    assert "Usage: frozenbn" in out


def test_names_cannot_steer_the_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    state = nested(**{"evil\x1b[31m\nlayers ✓ equal": batch_norm(4)})
    path = save(tmp_path / "a.pt", state)

    for arguments in (["inspect", path], ["convert", path, "--key", "\x1b[1m"]):
        _, out, err = run_here(capsys, *arguments)
        assert "\x1b" not in out + err
        assert "\nlayers ✓ equal" not in out


# Stops in the middle of the output, and goes on once a file is there. It sleeps in small pieces: a
# signal that came just before a long sleep would be noticed after it.
STOPS_MIDWAY = """
import pathlib, sys, time
from frozenbn_cli import cli
from frozenbn_cli.conversion import convert as conversion

check, go_on = conversion.check_written, pathlib.Path(sys.argv.pop())

def wait(*arguments):
    print("ready", flush=True)
    while not go_on.exists():
        time.sleep(0.02)
    check(*arguments)

conversion.check_written = wait
cli.main()
"""
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@contextmanager
def stopped_midway(
    model: Path, go_on: Path, *, ignored: Collection[signal.Signals] = ()
) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-c", STOPS_MIDWAY, "convert", model, "--no-verify", go_on]
    with running(command, ignored=ignored) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        assert len(list(model.parent.iterdir())) == 2
        yield process


@pytest.mark.parametrize("sent", SIGNALS)
def test_a_signal_leaves_nothing_behind(model: Path, sent: signal.Signals) -> None:
    with stopped_midway(model, model.with_name("never")) as process:
        process.send_signal(sent)
        _, err = process.communicate(timeout=HANG_SECONDS)

    assert process.returncode == 130
    assert "interrupted" in err
    assert [path.name for path in model.parent.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("sent", SIGNALS)
def test_a_signal_that_is_ignored_where_it_is_started_stays_ignored(
    model: Path, tmp_path_factory: pytest.TempPathFactory, sent: signal.Signals
) -> None:
    """`nohup` protects it from the end of the session, `&` in a script from Ctrl-C."""
    go_on = tmp_path_factory.mktemp("elsewhere") / "go on"
    with stopped_midway(model, go_on, ignored=[sent]) as process:
        process.send_signal(sent)
        go_on.touch()
        _, err = process.communicate(timeout=HANG_SECONDS)

    assert (process.returncode, err) == (0, "")
    assert model.with_name("model.frozen.safetensors").exists()


def test_a_reader_that_has_seen_enough_is_no_error(model: Path) -> None:
    shell = f'"{sys.executable}" -m frozenbn_cli convert "{model}" --no-verify | true'

    run = subprocess.run(
        ["bash", "-o", "pipefail", "-c", shell], capture_output=True, text=True, check=False
    )

    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.slow
def test_a_report_in_an_ascii_locale(model: Path) -> None:
    run = frozenbn("convert", model, PYTHONIOENCODING="ascii")

    assert run.returncode == 0
    assert "layers    ok equal" in run.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["convert", "--help"]])
def test_help_and_version_load_nothing_large(arguments: list[str]) -> None:
    code = (
        "import sys; from frozenbn_cli import cli; assert cli.run(sys.argv[1:]) == 0;"
        "large = {'torch', 'numpy', 'safetensors', 'pydantic', 'frozenbn_cli.checkpoints'};"
        "sys.exit(bool(large & sys.modules.keys()))"
    )

    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, check=False)

    assert run.returncode == 0, run.stderr


def test_conversion_waits_for_the_imports_of_what_it_does_alone(model: Path) -> None:
    program = Path(__file__).parents[1] / "exported" / "written_by" / "2.9-eval.pt2"
    code = (
        "import sys; from frozenbn_cli import cli; assert cli.run(sys.argv[2:]) == 0;"
        "print(*sys.modules.keys() & set(sys.argv[1].split()), file=sys.stderr)"
    )
    of_programs = "frozenbn_cli.exported.comparing"
    others = (
        "torch pydantic rich importlib.metadata frozenbn_cli.training frozenbn_cli.inspection "
        "frozenbn_cli.foreign_code frozenbn_cli.many_files.batch"
    )
    of_pickles = "frozenbn_cli.checkpoints.pickled frozenbn_cli.architectures"

    for path, unwanted in ((model, of_programs), (program, of_pickles)):
        output = model.with_name("out.pt2" if path == program else "out.safetensors")
        command = ["convert", str(path), "--no-verify", "--quiet", "-o", str(output)]
        run = subprocess.run(
            [sys.executable, "-c", code, f"{others} {unwanted}", *command],
            capture_output=True,
            text=True,
            check=False,
        )

        assert (run.returncode, run.stderr) == (0, "\n")


def test_help_names_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_here(capsys, "--help")

    assert code == 0
    assert "Exit codes" in out


AWKWARD = os.fsdecode(b"a\xff|<b>\x1b[2J\n# x")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
class TestNamesThatAreNoText:
    @pytest.fixture
    def awkward(self, tmp_path: Path) -> Path:
        folder = tmp_path / os.fsdecode(b"folder\xfe")
        folder.mkdir()
        return save(tmp_path / "model.pt", small_state()).rename(folder / f"{AWKWARD}.pt")

    @pytest.mark.parametrize("to", ["torch", "safetensors"])
    def test_are_converted_and_verified(
        self, capsys: pytest.CaptureFixture[str], awkward: Path, to: str
    ) -> None:
        code, out, err = run_here(capsys, "convert", awkward, "--to", to, "--json")

        document = json.loads(out)
        output = awkward.with_name(f"{AWKWARD}.frozen." + {"torch": "pt"}.get(to, to))
        assert (code, err, document["outcome"], output.exists()) == (0, "", "converted", True)
        assert run_here(capsys, "verify", awkward, output, "--quiet")[0] == 0

    @pytest.mark.parametrize("suffix", ["html", "md"])
    def test_are_escaped_in_reports(
        self, capsys: pytest.CaptureFixture[str], awkward: Path, suffix: str, tmp_path: Path
    ) -> None:
        report = tmp_path / f"report.{suffix}"

        for arguments in (
            ["inspect", awkward],
            ["convert", awkward, "--dry-run"],
            ["verify", awkward, awkward],
        ):
            run_here(capsys, *arguments, "--report", report, "--force")

            text = report.read_text()
            assert "\x1b" not in text
            assert "\n# x" not in text
            assert "\\udcff" in text
            assert "a\\udcff|<b>" not in text.replace("\\|", "|") or suffix == "md"
