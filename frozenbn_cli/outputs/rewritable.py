"""Inputs that are archives of code or graphs, and become archives of their own kind by an edit."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

from frozenbn_cli.checkpoints import Checkpoint, StateDict
from frozenbn_cli.checkpoints.exported_programs import model_of, program_record_path, storages_of
from frozenbn_cli.checkpoints.torchscript import record_path
from frozenbn_cli.containers.rewriting import Rewriting
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.exported.comparing import other_change
from frozenbn_cli.exported.program_archive import ProgramArchive
from frozenbn_cli.exported.rewriting import rewrite_program
from frozenbn_cli.torchscript.rewriting import rewrite

__all__ = ["Rewritable", "rewritable"]


@dataclass(frozen=True, slots=True)
class Rewritable:
    """An archive that can be edited.

    Attributes:
        archive: Its records.
        record_path: Where it carries the record of a conversion.
        rewrite: Returns what becomes of it when the layers of these names are frozen.
        other_change: Returns in what a written archive, of its kind, differs beside these layers,
            without regard to how it was rewritten; None for nothing.
    """

    archive: ZipArchive
    record_path: str
    rewrite: Callable[[Collection[str]], Rewriting]
    other_change: Callable[[Checkpoint, Collection[str]], str | None] = lambda *_: None


def rewritable(checkpoint: Checkpoint, part: StateDict) -> Rewritable | None:
    """Return an input as an archive that can be edited; None if it is of another kind."""
    if script := checkpoint.script:
        return Rewritable(script.archive, record_path(script.root), partial(rewrite, script))
    if program := checkpoint.program:
        storages = storages_of(part.entries)
        edit = partial(rewrite_program, program, model_of(program, part), storages)
        path, change = program_record_path(program), partial(_change_in, program, part)
        return Rewritable(program.archive, path, edit, change)
    return None


def _change_in(
    program: ProgramArchive, part: StateDict, written: Checkpoint, frozen: Collection[str]
) -> str | None:
    model = model_of(program, part)
    if written.program is None or model not in written.program.models:
        return f"program {model} is missing"
    return other_change(program.program(model), written.program.program(model), frozen)
