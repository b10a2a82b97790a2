"""Every block of code in the README does what it says, in a folder with what it speaks of."""

from __future__ import annotations

import concurrent.futures
import json
import os
import re
import shlex
import subprocess
import sys
import time
import types
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from frozenbn_cli import convert_files
from frozenbn_cli.cli.app import run
from tests.builders.archives import script
from tests.builders.files import save, small_state
from tests.builders.models import build

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README.read_text("utf-8"), re.MULTILINE | re.DOTALL)
# These install, measure, or start clusters: the tests below run them in another way.
ELSEWHERE = ("pip install", "torchrun", "dask", "ray", "sbatch", "srun", "tests.benchmarks")


def runnable(language: str) -> list[str]:
    return [
        text
        for kind, text in BLOCKS
        if kind == language and not any(word in text.lower() for word in ELSEWHERE)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    model = build(torchvision.models.resnet50)
    state = model.state_dict()
    save(folder / "model.pth", state)
    save(folder / "last.ckpt", {"model": state, "model_ema": state, "epoch": 3})
    save(folder / "float32.safetensors", model.state_dict())
    (folder / "my_model.py").write_text("from torchvision.models import resnet50 as build\n")
    for name in ("a.pth", "b.pth", "zoo/deep/c.pth", "runs/1/last.ckpt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save(folder / name, small_state())
    script(build(torchvision.models.resnet18), folder / "scripted.pt")
    return folder


def test_blocks_are_found() -> None:
    assert len(runnable("python")) >= 6
    assert len(runnable("bash")) >= 2
    assert {kind for kind, _ in BLOCKS} <= {"python", "bash"}


@pytest.mark.parametrize("block", runnable("python"), ids=lambda text: text.splitlines()[-1][:50])
def test_python_blocks_run(folder: Path, monkeypatch: pytest.MonkeyPatch, block: str) -> None:
    monkeypatch.chdir(folder)
    if not Path("model.frozen.safetensors").exists():
        assert run(["convert", "model.pth", "--eps", "1e-5", "--no-verify", "--quiet"]) == 0

    exec(compile(block, "README.md", "exec"), {})


def command_lines() -> list[str]:
    lines = [line for block in runnable("bash") for line in block.splitlines()]
    return [line.partition("#")[0].strip() for line in lines if line.startswith("frozenbn ")]


@pytest.mark.parametrize("line", command_lines())
def test_command_lines_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    monkeypatch.chdir(folder)
    arguments = [name for word in shlex.split(line)[1:] for name in _expanded(word)]
    _prepare(arguments)

    code = run(arguments)

    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")


def _expanded(word: str) -> list[str]:
    """Return what a shell makes of a word."""
    return sorted(map(str, Path().glob(word))) or [word]


def _prepare(arguments: list[str]) -> None:
    """Make what a command needs, and clear away what it makes."""
    if arguments[0] == "convert":
        for output in (*Path().glob("*.frozen.*"), Path("out.safetensors")):
            output.unlink(missing_ok=True)
    if "--include" in arguments and "backbone.*" in arguments:
        state = torch.load("model.pth", weights_only=True)
        save(Path("nested.pth"), {f"backbone.{name}": value for name, value in state.items()})
        arguments[1] = "nested.pth"
    if arguments[0] == "verify":
        original, converted = arguments[1:3]
        to = "torch" if converted.endswith(".pt") else "safetensors"
        command = ["convert", original, "--eps", "1e-5", "--no-verify", "--quiet", "--force"]
        assert run([*command, "--to", to, "-o", converted]) == 0
        if converted.startswith("float16"):
            with safe_open(converted, framework="pt") as file:
                metadata = file.metadata()
            state = {name: tensor.half() for name, tensor in load_file(converted).items()}
            save_file(state, converted, metadata)


# Past one machine


def block_with(word: str) -> str:
    (text,) = (text for _, text in BLOCKS if word in text)
    return text


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Stands for /data of the README: a zoo of two folders."""
    for name in ("zoo/first/a.pth", "zoo/second/b.pth"):
        (tmp_path / name).parent.mkdir(parents=True)
        save(tmp_path / name, small_state())
    return tmp_path


def shell(text: str, data: Path, **environment: str) -> None:
    """Run what the README shows, on this machine's data and with this installation's commands."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-ec", text.replace("/data/", f"{data}/")],
        env={**os.environ, "PATH": path, **environment},
        check=True,
    )


def test_a_slurm_task_converts_its_folder(data: Path) -> None:
    shell(block_with("SBATCH"), data, SLURM_ARRAY_TASK_ID="2")

    assert [path.name for path in (data / "frozen").iterdir()] == ["second"]
    assert (data / "frozen/second/b.frozen.safetensors").exists()


def test_an_engine_of_futures_is_an_executor(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself is large; what the block asks of it is remote functions with futures."""

    class Reference:
        def __init__(self, value: Any) -> None:
            self._value = value

        def future(self) -> concurrent.futures.Future[Any]:
            future: concurrent.futures.Future[Any] = concurrent.futures.Future()
            future.set_result(self._value)
            return future

    class Remote:
        def __init__(self, function: Any) -> None:
            self._function = function

        def remote(self, *arguments: Any) -> Reference:
            return Reference(self._function(*arguments))

    names = {
        "concurrent": concurrent,
        "ray": types.SimpleNamespace(remote=Remote),
        "convert_files": convert_files,
    }

    exec(
        compile(block_with("ray.remote").replace("/data/", f"{data}/"), "README.md", "exec"), names
    )

    assert (data / "frozen/first/a.frozen.safetensors").exists()
    assert (data / "frozen/second/b.frozen.safetensors").exists()


def test_a_dask_cluster_converts(data: Path) -> None:
    found = data / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    where = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(found)]
    worker, convert = block_with("dask worker").splitlines()
    with ExitStack() as stack:

        def start(*words: str) -> None:
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            process = stack.enter_context(subprocess.Popen([*dask, *words], **quiet))
            stack.callback(process.terminate)

        start("scheduler", *where)
        deadline = time.monotonic() + 20
        while not found.exists():
            assert time.monotonic() < deadline, "the scheduler does not start"
            time.sleep(0.05)
        address = json.loads(found.read_text())["address"]
        words = worker.partition("#")[0].replace("tcp://10.0.0.1:8786", address).split()[1:]
        words[words.index("--nworkers") + 1] = "1"
        start(*words, "--host", "127.0.0.1", "--local-directory", str(data))
        shell(convert.replace("tcp://10.0.0.1:8786", address), data)

    assert (data / "frozen/first/a.frozen.safetensors").exists()
    assert (data / "frozen/second/b.frozen.safetensors").exists()
