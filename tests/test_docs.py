"""README and docs: every block does what it says, links lead somewhere, signatures hold.

Blocks run in a folder with the files that they speak of. A block that imports a package that is not
installed is compiled, and skipped with the name of that package.
"""

from __future__ import annotations

import ast
import concurrent.futures
import dataclasses
import importlib.util
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import frozenbn_cli
from frozenbn_cli import ImageOptions, Selection
from frozenbn_cli.cli import run
from tests.builders.archives import script
from tests.builders.dask_processes import PATIENT, address_in
from tests.builders.files import save, small_state
from tests.builders.models import build
from tests.builders.processes import HANG_SECONDS, running
from tests.builders.programs import export, saved

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKED = [*PAGES, ROOT / "samples/README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
# No test needs these. Where they are installed, what they warn of is theirs.
OTHERS = {"detectron2", "lightning", "mmengine", "transformers", "ultralytics"}
# These install, measure, or start clusters: the tests below run them in another way.
ELSEWHERE = ("pip install", "torchrun", "dask", "import ray", "sbatch", "srun", "tests.benchmarks")

# What takes seconds, among many blocks that do not.
TRAINS = ".backward()"


class Block(NamedTuple):
    """A block of code on a page."""

    page: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page} {self.text.splitlines()[-1].strip()[:50]}"


def blocks_of(page: Path) -> Iterator[Block]:
    for language, text in re.findall(
        r"^```(\w+)\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL
    ):
        yield Block(page.name, language, text)


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def runnable(language: str) -> list[Block]:
    return [
        block
        for block in BLOCKS
        if block.language == language and not any(word in block.text.lower() for word in ELSEWHERE)
    ]


def test_blocks_are_found() -> None:
    assert len(PAGES) >= 12
    assert len(runnable("python")) >= 25
    assert len(runnable("bash")) >= 10
    assert {block.language for block in BLOCKS} <= {"python", "pyi", "bash", "text"}


# Python


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    resnet18 = build(torchvision.models.resnet18)
    save(folder / "model.pth", resnet18.state_dict())
    save(folder / "timm.pth", resnet18.state_dict())
    mobilenet = build(torchvision.models.mobilenet_v3_large)
    save(folder / "mobilenet_v3_large.pth", mobilenet.state_dict())
    small = small_state()
    save(folder / "last.ckpt", {"model": small, "model_ema": small, "epoch": 3})
    prefixed = {f"model.{name}": value for name, value in resnet18.state_dict().items()}
    save(folder / "lightning.ckpt", {"state_dict": prefixed, "epoch": 3})
    save(folder / "float32.safetensors", small)
    (folder / "my_model.py").write_text("from torchvision.models import resnet18 as build\n")
    for name in ("a.pth", "b.pth", "zoo/deep/c.pth", "runs/1/last.ckpt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        save(folder / name, small)
    script(resnet18, folder / "scripted.pt")
    program = export(resnet18, torch.rand(2, 3, 64, 64), any_batch=True)
    (folder / "model.pt2").write_bytes(saved(program))
    quick = ["--no-verify", "--quiet"]
    for source, output in (
        ("model.pth", "model.frozen.safetensors"),
        ("model.pth", "backbone.safetensors"),
        ("lightning.ckpt", "lightning.frozen.safetensors"),
        ("scripted.pt", "scripted.frozen.pt"),
        ("model.pt2", "model.frozen.pt2"),
    ):
        given = [] if source in ("scripted.pt", "model.pt2") else ["--eps", "1e-5"]
        arguments = [str(folder / source), *given, *quick, "-o", str(folder / output)]
        assert run(["convert", *arguments]) == 0
    _data_to_calibrate_with(folder)
    if importlib.util.find_spec("ultralytics"):
        _images_for_ultralytics(folder)
    return folder


def _data_to_calibrate_with(folder: Path) -> None:
    """Write a folder of images, a file of tensors and a module that gives batches."""
    (folder / "images").mkdir()
    for name in ("a", "b"):
        image = torchvision.transforms.functional.to_pil_image(torch.rand(3, 64, 80))
        image.save(folder / f"images/{name}.png")
    numpy.savez(folder / "inputs.npz", x=torch.rand(6, 3, 64, 64).numpy())
    (folder / "my_data.py").write_text(
        "import torch\ndef batches():\n    while True:\n        yield torch.rand(2, 3, 64, 64)\n"
    )


def _images_for_ultralytics(folder: Path) -> None:
    """Write two images with a box each, as ultralytics wants them."""
    for kind in ("images", "labels"):
        (folder / "things" / kind).mkdir(parents=True)
    for name in ("a", "b"):
        image = torchvision.transforms.functional.to_pil_image(torch.rand(3, 64, 64))
        image.save(folder / f"things/images/{name}.png")
        (folder / f"things/labels/{name}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    where = f"path: {folder / 'things'}\ntrain: images\nval: images\nnames: {{0: thing}}\n"
    (folder / "things.yaml").write_text(where)


def imported_packages(text: str) -> set[str]:
    """Return the packages that a block imports."""
    names = {
        alias.name if isinstance(node, ast.Import) else str(node.module)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    return {name.partition(".")[0] for name in names}


# What a block shows may be deprecated by now in the package that it is for; and models are built
# without weights here, so that freezing them is warned of.
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore:(?s).*statistics that mean nothing",
)
@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, marks=pytest.mark.slow if TRAINS in block.text else ())
        for block in runnable("python")
    ],
    ids=str,
)
def test_python_blocks_run(folder: Path, monkeypatch: pytest.MonkeyPatch, block: Block) -> None:
    monkeypatch.chdir(folder)
    code = compile(block.text, block.page, "exec")
    packages = imported_packages(block.text)
    if missing := sorted(name for name in packages if importlib.util.find_spec(name) is None):
        pytest.skip(f"compiled, not run: {', '.join(missing)} not installed")

    with warnings.catch_warnings():
        if packages & OTHERS:
            warnings.simplefilter("ignore")
        exec(code, {"__name__": "block"})


# The command line


def command_lines() -> list[str]:
    lines = [line for block in runnable("bash") for line in block.text.splitlines()]
    commands = (line.partition("#")[0].strip() for line in lines if line.startswith("frozenbn "))
    return list(dict.fromkeys(commands))


@pytest.fixture(scope="module")
def commands_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same files again: commands replace and remove what the blocks of Python need."""
    return shutil.copytree(folder, tmp_path_factory.mktemp("commands") / "docs")


@pytest.mark.slow
@pytest.mark.parametrize("line", command_lines())
def test_command_lines_run(
    commands_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
) -> None:
    monkeypatch.chdir(commands_folder)
    arguments = [name for word in shlex.split(line)[1:] for name in _expanded(word, line)]
    _prepare(arguments)

    code = run(arguments)

    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")


def _expanded(word: str, line: str) -> list[str]:
    """Return what a shell makes of a word of a line."""
    return [word] if f"'{word}'" in line else sorted(map(str, Path().glob(word))) or [word]


def _prepare(arguments: list[str]) -> None:
    """Make what a command needs, and clear away what it makes."""
    if arguments[0] == "convert":
        named = [Path(name) for option, name in pairwise(arguments) if option == "-o"]
        for output in (*Path().glob("*.frozen.*"), *named):
            output.unlink(missing_ok=True)
    if arguments[0] == "calibrate":
        for output in Path().glob("*.calibrated.*"):
            output.unlink()
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
    (text,) = (block.text for block in BLOCKS if word in block.text)
    return text


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Stands for /data of the docs: a zoo of two folders."""
    for name in ("zoo/first/a.pth", "zoo/second/b.pth"):
        (tmp_path / name).parent.mkdir(parents=True)
        save(tmp_path / name, small_state())
    return tmp_path


def shell(text: str, data: Path, **environment: str) -> None:
    """Run what the docs show, on this machine's data and with this installation's commands."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-ec", text.replace("/data/", f"{data}/")],
        env={**os.environ, "PATH": path, **environment},
        check=True,
    )


@pytest.mark.slow
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

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(remote=Remote))  # type: ignore[misc]
    text = block_with("ray.remote").replace("/data/", f"{data}/")

    exec(compile(text, "many-files.md", "exec"), {"__name__": "block"})

    assert (data / "frozen/first/a.frozen.safetensors").exists()
    assert (data / "frozen/second/b.frozen.safetensors").exists()


@pytest.mark.slow
def test_a_dask_cluster_converts(data: Path) -> None:
    found = data / "scheduler.json"
    dask = [sys.executable, "-m", "dask"]
    where = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(found)]
    worker, convert = block_with("dask worker").splitlines()
    options = {
        "env": {**os.environ, **PATIENT},
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    with ExitStack() as stack:

        def start(*words: str) -> subprocess.Popen[str]:
            process = stack.enter_context(running([*dask, *words], **options))
            # A worker's nanny has to end the worker.
            stack.callback(process.wait, HANG_SECONDS)
            stack.callback(process.terminate)
            return process

        address = address_in(found, start("scheduler", *where))
        words = worker.partition("#")[0].replace("tcp://10.0.0.1:8786", address).split()[1:]
        words[words.index("--nworkers") + 1] = "1"
        start(*words, "--host", "127.0.0.1", "--local-directory", str(data))
        shell(convert.replace("tcp://10.0.0.1:8786", address), data, **PATIENT)

    assert (data / "frozen/first/a.frozen.safetensors").exists()
    assert (data / "frozen/second/b.frozen.safetensors").exists()


# Links


def without_code(text: str) -> str:
    return re.sub(r"`[^`]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links() -> list[tuple[Path, str]]:
    return [
        (page, target)
        for page in LINKED
        for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text("utf-8")))
        if not target.startswith("https://")
    ]


def test_links_are_found() -> None:
    assert len(links()) >= 80


@pytest.mark.parametrize(
    ("page", "target"), links(), ids=lambda part: part.name if isinstance(part, Path) else part
)
def test_links_lead_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    goal = (page.parent / path).resolve() if path else page

    assert goal.exists()
    assert not anchor or anchor in anchors_of(goal)


def test_every_page_is_in_the_index_and_in_the_readme() -> None:
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}

    for index in (ROOT / "docs/README.md", ROOT / "README.md"):
        found = {Path(target).name for page, target in links() if page == index}
        assert pages <= {name.partition("#")[0] for name in found}


# Signatures


def documented() -> dict[str, ast.FunctionDef | ast.ClassDef]:
    trees = [ast.parse(block.text) for block in BLOCKS if block.language == "pyi"]
    return {
        node.name: node
        for tree in trees
        for node in tree.body
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }


DOCUMENTED = documented()


def test_every_public_name_is_documented() -> None:
    names = set(frozenbn_cli.__all__)
    page = (ROOT / "docs/python.md").read_text("utf-8")

    assert DOCUMENTED.keys() == names - {"__version__"}
    assert all(f"`{name}" in page for name in names)


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_documented_signatures_are_those_of_the_code(name: str) -> None:
    node, public = DOCUMENTED[name], getattr(frozenbn_cli, name)
    shown = _fields_shown(node) if dataclasses.is_dataclass(public) else _parameters_shown(node)
    own = [
        (parameter.name, _annotation(parameter.annotation), parameter.default)
        for parameter in inspect.signature(public).parameters.values()
    ]
    if dataclasses.is_dataclass(public):
        made = {field.name: field.default_factory for field in dataclasses.fields(public)}
        own = [
            (field, annotation, made[field]())  # type: ignore[operator]
            if callable(made[field])
            else (field, annotation, default)
            for field, annotation, default in own
        ]

    assert shown == own
    if isinstance(node, ast.FunctionDef) and node.returns:
        assert ast.unparse(node.returns) == _annotation(inspect.signature(public).return_annotation)


def test_documented_arguments_are_by_name_where_those_of_the_code_are() -> None:
    for name, node in DOCUMENTED.items():
        if not dataclasses.is_dataclass(getattr(frozenbn_cli, name)):
            parameters = inspect.signature(getattr(frozenbn_cli, name)).parameters.values()
            by_name = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]
            assert [argument.arg for argument in _arguments(node).kwonlyargs] == by_name


def _arguments(node: ast.FunctionDef | ast.ClassDef) -> ast.arguments:
    if isinstance(node, ast.FunctionDef):
        return node.args
    (made,) = (inner for inner in node.body if isinstance(inner, ast.FunctionDef))
    return made.args


def _parameters_shown(node: ast.FunctionDef | ast.ClassDef) -> list[tuple[str, str, Any]]:
    arguments = _arguments(node)
    positional = [argument for argument in arguments.args if argument.arg != "self"]
    missing: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    defaults = [*missing, *arguments.defaults, *arguments.kw_defaults]
    return [
        (argument.arg, _written(argument.annotation), _value(default))
        for argument, default in zip([*positional, *arguments.kwonlyargs], defaults, strict=True)
    ]


def _fields_shown(node: ast.FunctionDef | ast.ClassDef) -> list[tuple[str, str, Any]]:
    return [
        (ast.unparse(field.target), _written(field.annotation), _value(field.value))
        for field in node.body
        if isinstance(field, ast.AnnAssign)
    ]


def _written(annotation: ast.expr | None) -> str:
    assert annotation is not None
    return ast.unparse(annotation)


def _annotation(annotation: Any) -> str:
    """Return an annotation of the code in one spelling, whatever the version of Python."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return ast.unparse(ast.parse(re.sub(r"(?:typing\.)?Optional\[([\w.]+)\]", r"\1 | None", text)))


def _value(default: ast.expr | None) -> Any:
    if default is None:
        return inspect.Parameter.empty
    return eval(ast.unparse(default), {"ImageOptions": ImageOptions, "Selection": Selection})
