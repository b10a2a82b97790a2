"""Freezing the sample backbone in two ways, through the library and on the command line."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import torch
from backbone import Backbone
from torch import Tensor, nn

from frozenbn_cli import convert_bn_to_frozen, load_frozen

__all__ = ["frozen_by_command_line", "frozen_by_library", "frozenbn", "same_bits"]


def frozen_by_library(trained: Backbone) -> nn.Module:
    """Return a frozen copy of ``trained``."""
    return convert_bn_to_frozen(copy.deepcopy(trained))


def frozen_by_command_line(trained: Backbone, folder: Path) -> tuple[nn.Module, str]:
    """Return a new backbone that loaded what `frozenbn convert` wrote, and its report."""
    torch.save(trained.state_dict(), folder / "backbone.pt")
    run = frozenbn("convert", "backbone.pt", folder=folder)
    if run.returncode != 0:
        raise RuntimeError(f"frozenbn convert ended with {run.returncode}: {run.stderr}")
    return load_frozen(Backbone(), folder / "backbone.frozen.safetensors"), run.stdout


def frozenbn(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in ``folder``."""
    return subprocess.run(  # noqa: S603
        [sys.executable, "-X", "utf8", "-m", "frozenbn_cli", *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "FORCE_COLOR"},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def same_bits(first: nn.Module, second: nn.Module) -> bool:
    """Return whether both models hold the same entries, to the last bit."""
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(
        torch.equal(_bits(entry), _bits(other[name])) for name, entry in one.items()
    )


def _bits(entry: Tensor) -> Tensor:
    return entry.contiguous().view(torch.uint8)
