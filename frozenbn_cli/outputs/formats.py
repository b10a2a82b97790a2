"""The formats that are written: their names, what their files are called, and which one is meant.

A new format is a line in `FORMATS`, beside what writes it and what reads it back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from frozenbn_cli.errors import UsageError

if TYPE_CHECKING:  # The command line need not wait for what opens files.
    from frozenbn_cli.checkpoints import Checkpoint

__all__ = [
    "BY_KIND",
    "FORMATS",
    "FormatFacts",
    "OutputFormat",
    "calibrated_output",
    "check_name",
    "default_output",
    "format_of",
    "own_format",
]

OutputFormat = Literal["safetensors", "torch", "torchscript", "pt2", "checkpoint"]


@dataclass(frozen=True, slots=True)
class FormatFacts:
    """What there is to know of a format.

    Attributes:
        title: What such a file holds, in a few words.
        suffixes: What the name of such a file may end in; the first for one that nobody named.
        is_program: Whether it holds a program, which is made of a live model by running it.
    """

    title: str
    suffixes: tuple[str, ...]
    is_program: bool = False


FORMATS: Mapping[OutputFormat, FormatFacts] = {
    "safetensors": FormatFacts("a state dict", (".safetensors",)),
    "torch": FormatFacts("a state dict for torch.load", (".pt", ".pth", ".bin", ".ckpt", ".tar")),
    "torchscript": FormatFacts(
        "an archive for torch.jit.load",
        (".pt", ".pth", ".ts", ".torchscript", ".jit"),
        is_program=True,
    ),
    "checkpoint": FormatFacts(
        "the training checkpoint as it was, its optimizer made to fit",
        (".pt", ".pth", ".bin", ".ckpt", ".tar"),
    ),
    "pt2": FormatFacts("a program for torch.export.load", (".pt2",), is_program=True),
}
"""Of formats that may have the same name, the first is written where the input decides nothing."""

BY_KIND: tuple[OutputFormat, ...] = ("safetensors", "torchscript", "pt2")
"""What inputs may become where nobody says what."""

_INPUT_SUFFIXES = {
    ".pt", ".pth", ".bin", ".ckpt", ".tar", ".ts", ".torchscript", ".jit", ".pkl", ".model",
    ".safetensors", ".weights", ".index", ".json", ".pt2",
}  # fmt: skip


def default_output(path: Path, to: OutputFormat = "safetensors") -> Path:
    """Return where the result of converting ``path`` goes if the user does not say."""
    path = path.resolve() if path.name in ("", "..") else path
    name = _without_suffixes(path.name)
    own, usual = path.name.removeprefix(name), FORMATS[to].suffixes
    # A training checkpoint is looked for by the name that it has.
    suffix = own if to == "checkpoint" and Path(path.name).suffix in usual else usual[0]
    return path.parent / f"{name}.frozen{suffix}"


def calibrated_output(path: Path) -> Path:
    """Return where a copy of ``path`` with new statistics goes if the user does not say."""
    name = _without_suffixes(path.name)
    return path.parent / f"{name}.calibrated{path.name.removeprefix(name)}"


def _without_suffixes(name: str) -> str:
    while (suffix := Path(name).suffix) in _INPUT_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def format_of(
    checkpoint: Checkpoint, to: OutputFormat | None, output: Path | None = None
) -> OutputFormat:
    """Return the format that the result of converting an input gets.

    Args:
        checkpoint: The input, whose kind decides among what else is left open.
        to: The format that is asked for; None if the name says it.
        output: The name that is asked for, which `check_name` has accepted.
    """
    usual = own_format(checkpoint) or "safetensors"
    named = _named(output)
    return to or (usual if usual in named or not named else named[0])


def own_format(checkpoint: Checkpoint) -> OutputFormat | None:
    """Return the format that an archive of code or graphs has; None for all other files."""
    if checkpoint.script:
        return "torchscript"
    return "pt2" if checkpoint.program else None


def check_name(output: Path | None, to: OutputFormat | None) -> None:
    """Refuse a name that promises another format than the one that is written.

    Raises:
        UsageError: The name ends in what stands for another format, or for none that is written.
    """
    if output is None or not output.suffix:
        return
    named = _named(output)
    if to in named or (to is None and named):
        return
    usable = [to] if to else FORMATS
    suffixes = dict.fromkeys(suffix for name in usable for suffix in FORMATS[name].suffixes)
    stands_for = f", which stands for {' or '.join(named)}" if named else ""
    raise UsageError(
        f"the format is {to}" if to else "the name says which format is written",
        where=(str(output),),
        expected=f"a name in {' or '.join(suffixes)}",
        found=f"{output.suffix}{stands_for}",
    )


def _named(output: Path | None) -> list[OutputFormat]:
    """Return the formats that a name may stand for."""
    suffix = "" if output is None else output.suffix.lower()
    return [name for name, facts in FORMATS.items() if suffix in facts.suffixes]
