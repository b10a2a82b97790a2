"""The versions that are promised are those that are tested."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What builds the package and what runs before a commit, which no test imports.
ELSEWHERE = {"hatchling", "pre-commit"}


def test_the_lowest_versions_are_those_of_the_project():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    promised = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', project))
    lines = (ROOT / "tests" / "lowest.txt").read_text(encoding="utf-8").split("# What those")[0]
    lowest = dict(re.findall(r"^([\w-]+)==([\d.]+)$", lines, re.MULTILINE))

    assert lowest.keys() == promised.keys() - ELSEWHERE
    for name, version in lowest.items():
        assert version.removeprefix(promised[name]).strip(".0") == "", name


def test_the_workflow_runs_the_commands_that_contributors_run():
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    (block,) = re.findall(
        r"```bash\n(python -m venv .venv-lowest\n.*?)```", contributing, re.DOTALL
    )

    assert "- run: bash .ci/run" in workflow
    assert [line for line in block.splitlines() if line not in workflow] == []


def test_every_check_of_continuous_integration_runs_before_a_commit():
    checks = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")

    for command in ("ruff check", "ruff format", "mypy"):
        assert f"\n.venv/bin/{command}" in checks
        assert f"entry: .venv/bin/{command}" in hooks
