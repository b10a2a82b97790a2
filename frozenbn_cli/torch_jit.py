"""The one door to `torch.jit`, which PyTorch deprecates: where PyTorch has none, the answer is no.

Imports torch alone, as the layer does.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

__all__ = [
    "IS_THERE",
    "MISSING",
    "as_written",
    "is_script_module",
    "is_scripting",
    "is_tracing",
    "load",
    "save",
    "script",
    "trace",
]

_jit: Any = getattr(torch, "jit", None)

IS_THERE = all(hasattr(_jit, name) for name in ("ScriptModule", "load", "save", "script", "trace"))
"""Whether this PyTorch has TorchScript; without it, only the questions below may be asked."""

MISSING = "this PyTorch has no TorchScript"
"""What is said where it would be needed."""


def _no() -> bool:
    return False


# The compiler knows this very function, and leaves out what is not for it; so none is put around.
is_scripting: Any = getattr(_jit, "is_scripting", _no)
is_tracing: Any = getattr(_jit, "is_tracing", _no)


def is_script_module(value: object) -> bool:
    """Return whether ``value`` is a module of TorchScript."""
    return IS_THERE and isinstance(value, _jit.ScriptModule)


def load(path: Path) -> Any:
    """Return the archive at ``path``, on the CPU; this can run code that is in it."""
    with _deprecation_unheard():
        return _jit.load(path, map_location="cpu")


def save(module: Any, path: Path) -> None:
    """Write a compiled module to ``path``."""
    with _deprecation_unheard():
        _jit.save(module, path)


def script(module: nn.Module) -> Any:
    """Return a module compiled from its source."""
    with _deprecation_unheard():
        return _jit.script(module)


def trace(module: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Return a module compiled from what it does with these arguments; unchecked."""
    with _deprecation_unheard():
        return _jit.trace(
            module,
            arguments or None,
            example_kwarg_inputs=keywords or None,
            check_trace=False,
            strict=False,
        )


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Run TorchScript as it is written, without an optimiser that learns from run to run."""
    if hasattr(_jit, "optimized_execution"):
        with _jit.optimized_execution(False):
            yield
    else:
        yield


@contextlib.contextmanager
def _deprecation_unheard() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.*")
        yield
