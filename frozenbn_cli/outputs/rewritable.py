"""Inputs that are archives of code or graphs, and become archives of their own kind by an edit."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from frozenbn_cli.checkpoints import Checkpoint, StateDict
from frozenbn_cli.containers.rewriting import Rewriting
from frozenbn_cli.containers.zip_archive import ZipArchive

if TYPE_CHECKING:
    from frozenbn_cli.exported.program_archive import ProgramArchive
    from frozenbn_cli.torchscript.script_archive import ScriptArchive

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
    if checkpoint.script:
        return _of_script(checkpoint.script)
    if checkpoint.program:
        return _of_program(checkpoint.program, part)
    return None


def _of_script(script: ScriptArchive) -> Rewritable:
    from frozenbn_cli.checkpoints.torchscript import record_path
    from frozenbn_cli.torchscript.rewriting import rewrite

    return Rewritable(script.archive, record_path(script.root), partial(rewrite, script))


def _of_program(program: ProgramArchive, part: StateDict) -> Rewritable:
    from frozenbn_cli.checkpoints import exported_programs as known
    from frozenbn_cli.exported.comparing import other_change
    from frozenbn_cli.exported.rewriting import rewrite_program

    model = known.model_of(program, part)

    def change_in(written: Checkpoint, frozen: Collection[str]) -> str | None:
        if written.program is None or model not in written.program.models:
            return f"program {model} is missing"
        return other_change(program.program(model), written.program.program(model), frozen)

    edit = partial(rewrite_program, program, model, known.storages_of(part.entries))
    return Rewritable(program.archive, known.program_record_path(program), edit, change_in)
