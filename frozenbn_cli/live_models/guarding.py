"""Runs code of models, which is the user's and may do and raise anything. Imports torch."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

__all__ = ["first_line", "foreign_code", "last_line"]

_SEED = 0


@contextlib.contextmanager
def foreign_code() -> Iterator[None]:
    """Run code of a model: seeded, its words on stderr, its warnings unheard.

    Where it leads the process elsewhere (another folder, another default device, gradients off),
    that is undone; where it would end it, that is an error like any other.
    """
    try:
        with (
            _same_place(),
            torch.random.fork_rng(devices=[]),
            torch.set_grad_enabled(torch.is_grad_enabled()),
            _words_on_stderr(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            torch.manual_seed(_SEED)
            yield
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # Such as SystemExit, which would look like an answer.
        raise RuntimeError(f"{type(error).__name__} {error}".rstrip()) from error


@contextlib.contextmanager
def _words_on_stderr() -> Iterator[None]:
    """Send what is printed to stderr, also by other processes and by code that is not Python."""
    try:
        sys.stdout.flush()
        stdout = os.dup(1)
        os.dup2(2, 1)
    except (OSError, ValueError):  # One of them is closed.
        stdout = -1
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if stdout >= 0:
            os.dup2(stdout, 1)
            os.close(stdout)


@contextlib.contextmanager
def _same_place() -> Iterator[None]:
    """Keep the current folder, which relative paths are of, and the device of new tensors."""
    device = _device_of_new_tensors()
    try:
        folder = str(Path.cwd())
    except FileNotFoundError:  # It was deleted.
        folder = ""
    try:
        yield
    finally:
        if folder:
            os.chdir(folder)
        if _device_of_new_tensors() != device:
            torch.set_default_device(None if device.type == "cpu" else device)


def _device_of_new_tensors() -> torch.device:
    # torch.get_default_device fails in PyTorch 2.6 once it was set to None, as is done above.
    return torch.empty(0).device


def first_line(error: BaseException) -> str:
    """Return what an error says first."""
    lines = _lines(error)
    return lines[0][:200] if lines else type(error).__name__


def last_line(error: BaseException) -> str:
    """Return the last line of an error, which in TorchScript comes after its traceback."""
    lines = _lines(error)
    return lines[-1][:200] if lines else type(error).__name__


def _lines(error: BaseException) -> list[str]:
    return [line.strip() for line in str(error).splitlines() if line.strip()]
