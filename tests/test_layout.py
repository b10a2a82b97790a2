"""Imports run one way only, and the public names are what they are documented to be."""

import ast
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

import frozenbn_cli
from frozenbn_cli import cli, nn
from frozenbn_cli.batch_norms.batch_norm import Eps
from frozenbn_cli.batch_norms.record import METADATA_KEY, ConversionRecord
from frozenbn_cli.reports.documents import SCHEMA_VERSION

PACKAGE = Path(frozenbn_cli.__file__).parent
CONTRIBUTING = PACKAGE.parent / "CONTRIBUTING.md"


def read_map() -> list[list[str]]:
    """Return the rows of the map in CONTRIBUTING.md: each may import those below it alone."""
    _, _, rest = CONTRIBUTING.read_text(encoding="utf-8").partition("```text\n")
    rows = rest.partition("```")[0].splitlines()
    return [re.split(r"\s{2,}", row)[0].split() for row in rows]


ROWS = [["__main__.py"], *read_map()]
LEVEL = {
    part.removesuffix(".py").removesuffix("/"): level
    for level, parts in enumerate(ROWS)
    for part in parts
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def imported_modules(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, those that it waits to import too."""
    return {name for name in imported_by(path) if name.startswith("frozenbn_cli")}


def imported_by(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{name.name}" for name in node.names}
            modules = {name for name in inner if is_module(name)}
            found |= modules or {node.module}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
            "import_quietly",
            "import_torch_for",
        ):
            found |= {word.value for word in node.args if isinstance(word, ast.Constant)}
    return found


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imported_parts(path: Path) -> set[str]:
    """Return the parts that a file imports; the package's face counts as one that none may."""
    return {[*name.split("."), "the face"][1] for name in imported_modules(path)}


@pytest.mark.parametrize(
    "path",
    [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem != "__init__"],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_imports_run_downward(path: Path) -> None:
    part = part_of(path)

    upward = {
        name for name in imported_parts(path) if name != part and LEVEL.get(name, -1) <= LEVEL[part]
    }

    assert not upward


def test_the_map_names_all_that_is_there_and_nothing_else() -> None:
    there = {
        f"{path.name}/" if path.is_dir() else path.name
        for path in PACKAGE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }

    assert {part for parts in ROWS for part in parts} == there - {"__init__.py"}


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {module_of(path): imported_modules(path) for path in PACKAGE.rglob("*.py")}
    done: set[str] = set()

    def follow(module: str, behind: tuple[str, ...]) -> None:
        assert module not in behind, " -> ".join([*behind, module])
        if module not in done:
            for other in graph.get(module, ()):
                follow(other, (*behind, module))
            done.add(module)

    for module in graph:
        follow(module, ())


def imported_roots(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_by(path)}


def test_the_layer_imports_torch_and_the_door_to_torch_jit_alone() -> None:
    assert imported_modules(PACKAGE / "nn.py") == {"frozenbn_cli.torch_jit"}
    assert imported_roots(PACKAGE / "nn.py") == {"frozenbn_cli", "torch", "typing"}
    assert imported_roots(PACKAGE / "torch_jit.py") <= sys.stdlib_module_names | {"torch"}


def test_torch_jit_has_one_door() -> None:
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        asked = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert path.name == "torch_jit.py" or "torch.jit" not in asked, path


def test_only_the_reports_and_the_command_line_print() -> None:
    for path in PACKAGE.rglob("*.py"):
        if part_of(path) not in {"reports", "cli"}:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            assert not {"print", "rich", "typer"} & names, path


PUBLIC = {
    "ConversionResult", "ConvertOptions", "FileResult", "FrozenBNError", "FrozenBatchNorm2d",
    "Inspection", "Selection", "VerificationResult", "VerifyOptions", "__version__",
    "convert_bn_to_frozen", "convert_file", "convert_files", "convert_frozen_to_bn",
    "frozen_batch_norm", "inspect_file", "load_frozen", "survey_batch_norms", "verify_files",
}  # fmt: skip


def test_public_names_stay() -> None:
    assert set(frozenbn_cli.__all__) >= PUBLIC
    assert {"FrozenBatchNorm2d", "FrozenBatchNormAct2d", "frozen_batch_norm"} <= set(nn.__all__)
    project = (PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert 'frozenbn = "frozenbn_cli.cli:main"' in project
    assert callable(cli.main)


def test_what_is_stored_in_files_and_printed_for_programs_stays() -> None:
    record = ConversionRecord("0", {}, {"bn": Eps(1e-3, "given")}, ("contents",), {})

    assert METADATA_KEY == "frozenbn.conversion"
    document = json.loads(record.to_text())
    assert document == document | {
        "schema_version": 1,
        "frozenbn": "0",
        "source": {},
        "layers": {"bn": {"eps": 1e-3, "eps_source": "given"}},
        "verified": ["contents"],
        "options": {},
    }
    schema = json.loads((PACKAGE / "reports/schema.json").read_text(encoding="utf-8"))
    assert SCHEMA_VERSION == 1
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_every_public_name_can_be_imported() -> None:
    for name in frozenbn_cli.__all__:
        assert getattr(frozenbn_cli, name) is not None
    assert set(frozenbn_cli.__all__) <= set(dir(frozenbn_cli))


def test_options_tell_their_types() -> None:
    for name in ("ConvertOptions", "VerifyOptions", "CalibrateOptions", "ImageOptions"):
        options = getattr(frozenbn_cli, name)

        assert get_type_hints(options).keys() >= {field.name for field in fields(options)}


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        frozenbn_cli.nonsense  # noqa: B018


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, frozenbn_cli; frozenbn_cli.convert_file;sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_layer_has_the_path_that_files_store() -> None:
    layer = frozenbn_cli.FrozenBatchNorm2d

    assert f"{layer.__module__}.{layer.__qualname__}" == "frozenbn_cli.nn.FrozenBatchNorm2d"
