"""The version of PyTorch is read without importing it, wherever it is installed."""

import sys
from importlib import metadata
from pathlib import Path

import pytest

from frozenbn_cli.version import torch_version


def test_is_that_of_the_package() -> None:
    assert torch_version() == metadata.version("torch")


def test_finds_what_is_installed_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is built in place lies beside no metadata."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    assert torch_version() == metadata.version("torch")


def test_is_empty_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch").mkdir()  # A folder of that name is no package.
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    assert torch_version() == ""
