"""Imports run one way only, and the public names are what they are documented to be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import frozenbn_cli

PACKAGE = Path(frozenbn_cli.__file__).parent

# Each part may import those below it, never those beside or above.
LEVELS = [
    {"__main__"},
    {"cli"},
    {"commands"},
    {"options"},
    {"option_values"},
    {"reports"},
    {"batch"},
    {"resuming", "file_results"},
    {"conversion", "inspection"},
    {"conversion_terms"},
    {"scripting"},
    {"verification"},
    {"summaries"},
    {"plan", "model_files"},
    {"outputs"},
    {"loading", "live_models"},
    {"modules", "findings", "metadata"},
    {"batch_norm", "nn", "claims", "model_target"},
    {"checkpoints"},
    {"torchscript"},
    {"containers"},
    {"pickles", "selection", "worker_pool", "dask_cluster"},
    {"errors", "importing", "stages", "wording"},
]
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [
        name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
    ]
    parts = {
        module.split(".")[1] for module in modules if module and module.startswith("frozenbn_cli.")
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "frozenbn_cli":
            parts |= {name.name for name in node.names} & LEVEL.keys()
    return parts


@pytest.mark.parametrize(
    "path",
    [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_imports_run_downward(path: Path) -> None:
    part = part_of(path)

    upward = {name for name in imported_parts(path) if name != part and LEVEL[name] <= LEVEL[part]}

    assert not upward


def test_the_layer_imports_torch_alone() -> None:
    tree = ast.parse((PACKAGE / "nn.py").read_text(encoding="utf-8"))
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {
        name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names
    }

    assert {module.split(".")[0] for module in modules if module} == {"torch", "typing"}


def test_only_the_reports_and_the_command_line_print() -> None:
    for path in PACKAGE.rglob("*.py"):
        if part_of(path) not in {"reports", "cli", "commands", "options", "option_values"}:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            assert not {"print", "rich", "typer"} & names, path


def test_every_public_name_can_be_imported() -> None:
    for name in frozenbn_cli.__all__:
        assert getattr(frozenbn_cli, name) is not None
    assert set(frozenbn_cli.__all__) <= set(dir(frozenbn_cli))


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        frozenbn_cli.nonsense  # noqa: B018


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, frozenbn_cli; frozenbn_cli.convert_file;sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_layer_has_the_path_that_files_store() -> None:
    layer = frozenbn_cli.FrozenBatchNorm2d

    assert f"{layer.__module__}.{layer.__qualname__}" == "frozenbn_cli.nn.FrozenBatchNorm2d"
