"""Loads the models that files hold or belong to, to be run. Imports torch."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from frozenbn_cli import torch_jit
from frozenbn_cli.batch_norms.batch_norm import Eps
from frozenbn_cli.checkpoints import StateDict
from frozenbn_cli.importing import importable
from frozenbn_cli.live_models.describing import load_state
from frozenbn_cli.live_models.guarding import foreign_code
from frozenbn_cli.live_models.stored_values import to_tensor
from frozenbn_cli.loading import freeze_layers
from frozenbn_cli.verification.loaders import Loader
from frozenbn_cli.verification.watching import submodule
from frozenbn_cli.verification.written import WrittenFile

__all__ = ["frozen", "load_archive", "unpickle", "with_entries"]


def with_entries(blank: Callable[[], nn.Module], part: StateDict) -> nn.Module:
    """Return a model with the entries of a state dict."""
    model = blank()
    load_state(model, {name: to_tensor(entry) for name, entry in part.entries.items()})
    return model


def frozen(blank: Loader, written: WrittenFile, layers: Mapping[str, Eps]) -> nn.Module:
    """Return a model with these layers frozen, and the entries of a converted file."""
    with foreign_code():
        model = freeze_layers(blank(), layers)
    load_state(model, {name: written.tensor(name) for name in written.names()})
    return model


def unpickle(path: Path, key: str, prefix: str) -> Any:
    """Return a pickled module; this executes code in the file, which the user trusts."""
    with importable(Path.cwd()), foreign_code():
        value: Any = torch.load(path, map_location="cpu", weights_only=False)
        model = submodule(_at_key(value, key), prefix)
        model.eval()
    return model


def _at_key(value: Any, key: str) -> Any:
    """Return what stands at a key of a file; a key may hold dots of its own."""
    if not key:
        return value
    if isinstance(value, Mapping):
        children: Iterable[tuple[Any, Any]] = value.items()
    else:
        children = enumerate(value) if isinstance(value, Sequence) else vars(value).items()
    for name, child in children:
        if key == str(name):
            return child
        if key.startswith(f"{name}."):
            with contextlib.suppress(LookupError, TypeError):
                return _at_key(child, key.removeprefix(f"{name}."))
    raise LookupError(key)


def load_archive(path: Path) -> Any:
    """Return a TorchScript archive as a module; this can run code that is in it."""
    try:
        return _load_archive_now(path)
    except RuntimeError as error:
        if "torchvision::" not in str(error) or not _import_torchvision():
            raise
        return _load_archive_now(path)


def _load_archive_now(path: Path) -> Any:
    with contextlib.redirect_stdout(sys.stderr):
        return torch_jit.load(path)


def _import_torchvision() -> bool:
    """Import what defines the operators of detection models, if it is installed."""
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        return False
    return True
