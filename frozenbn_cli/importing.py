"""Imports of what takes seconds, or lies elsewhere than the packages that are installed."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

__all__ = ["import_quietly", "importable"]


def import_quietly(name: str) -> ModuleType:
    """Import a module of this package that imports torch, which takes seconds."""
    with warnings.catch_warnings():
        # PyTorch says so where NumPy is not installed, which nothing here needs.
        warnings.filterwarnings("ignore", "Failed to initialize NumPy", UserWarning)
        return importlib.import_module(name)


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let modules in ``folder`` be imported, after all that is installed."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        with suppress(ValueError):  # Code that was imported may have removed it.
            sys.path.remove(str(folder))
