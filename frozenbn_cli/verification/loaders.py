"""What loads the models that files hold or belong to, chosen without loading any.

Archives are chosen without PyTorch: it is another process that runs them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from frozenbn_cli.batch_norms.batch_norm import Eps
from frozenbn_cli.checkpoints import Checkpoint, StateDict, open_checkpoint
from frozenbn_cli.checkpoints.exported_programs import model_of
from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.exported.devices import on_cpu
from frozenbn_cli.exported.program_archive import ProgramArchive
from frozenbn_cli.exported.vetting import unsafe_in
from frozenbn_cli.importing import import_quietly
from frozenbn_cli.live_models.known_models import found_by_auto
from frozenbn_cli.live_models.run_options import RunOptions
from frozenbn_cli.stages import import_torch_for
from frozenbn_cli.torchscript.operators import unsafe_operators
from frozenbn_cli.torchscript.script_archive import ScriptArchive
from frozenbn_cli.verification.private_copies import PrivateCopies
from frozenbn_cli.verification.written import WrittenFile
from frozenbn_cli.wording import listed

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "ArchiveLoader",
    "FromFile",
    "Loader",
    "ProgramLoader",
    "archive_loader",
    "blank_loader",
    "frozen_loader",
    "module_loader",
    "original_loader",
    "program_loader",
]

Loader = Callable[[], Any]
"""Returns a model anew, as it is in a file, in eval and on the CPU."""

_MODELS = "frozenbn_cli.verification.models"
_IN_TRAINING = (
    "the program was exported in training mode, of which its graph may hold more than these "
    "layers; only a program can be compared with it"
)
_NO_MODEL = "a state dict holds no model that could be run; --model names one"
_AUTO_WOULD = "a state dict holds no model that could be run; --model auto builds {} and runs it"
_NEEDS_TRUST = (
    "needs --trust, since loading a pickled module executes code in the file; or name the model "
    "with --model"
)


@dataclass(frozen=True, slots=True)
class FromFile:
    """Loads a model by running code that is in a file.

    Attributes:
        load: Loads it.
    """

    load: Loader

    def __call__(self) -> Any:
        """Return the model."""
        return self.load()


@dataclass(frozen=True, slots=True)
class ArchiveLoader:
    """Loads a TorchScript archive, which can run code that is in it.

    Attributes:
        path: The archive.
    """

    path: Path

    def __call__(self) -> Any:
        """Return it as a module."""
        return import_quietly(_MODELS).load_archive(self.path)


@dataclass(frozen=True, slots=True)
class ProgramLoader:
    """Loads a program, which executes what its file says.

    Attributes:
        path: The archive.
        model: Which of its programs.
        in_eval: The layers that are to take running statistics, where it was exported so that they
            take those of the batch.
    """

    path: Path
    model: str = "model"
    in_eval: frozenset[str] = frozenset()

    def __call__(self) -> nn.Module:
        """Return it as a module, which has one mode alone."""
        programs = import_quietly("frozenbn_cli.live_models.programs")
        module: nn.Module = programs.load_program(self.path, self.model, self.in_eval)
        return module


def original_loader(
    checkpoint: Checkpoint,
    part: StateDict,
    options: RunOptions,
    copies: PrivateCopies,
    *,
    frozen: Collection[str] = (),
    as_program: bool = False,
) -> Loader | str:
    """Return what loads the model of a file, or why that cannot be done.

    Args:
        checkpoint: The file, which has to stay open.
        part: The state dict that is meant.
        options: The model that it belongs to, and whether it is trusted.
        copies: Where an archive that is run comes from.
        frozen: The layers that are frozen in what it is compared with; a program has them in eval.
        as_program: Whether what it is compared with is a program too.
    """
    if checkpoint.script:
        return archive_loader(copies.of(checkpoint.script.archive), options)
    if programs := checkpoint.program:
        if not as_program and any(facts.exported_in_training for facts in part.layers.values()):
            return _IN_TRAINING
        model = model_of(programs, part)
        path = copies.of(programs.archive)
        return program_loader(path, options, copies, model=model, in_eval=frozen)
    return module_loader(checkpoint, part, options)


def module_loader(checkpoint: Checkpoint, part: StateDict, options: RunOptions) -> Loader | str:
    """Return what loads the model of a file that is no archive, see `original_loader`."""
    blank = blank_loader(checkpoint, part, options)
    if isinstance(blank, str) or options.model is None:
        return blank
    if part.unsupported:
        name, what = next(iter(part.unsupported.items()))
        more = f" and {len(part.unsupported) - 1:,} more" if len(part.unsupported) > 1 else ""
        return f"the model needs {name}{more}, which cannot be read here ({what})"
    return partial(import_torch_for(_MODELS).with_entries, blank, part)


def blank_loader(checkpoint: Checkpoint, part: StateDict, options: RunOptions) -> Loader | str:
    """Return what builds or unpickles the model that a file belongs to, whatever its entries.

    Args:
        checkpoint: The file.
        part: The state dict that is meant.
        options: The model that it belongs to, and whether it is trusted.
    """
    if options.model is not None:
        return partial(import_torch_for("frozenbn_cli.live_models.building").build, options.model)
    if checkpoint.script or checkpoint.program or not part.is_module:
        found = found_by_auto(part)
        return _AUTO_WOULD.format(found) if found else _NO_MODEL
    if not options.trust:
        return _NEEDS_TRUST
    unpickle = import_torch_for(_MODELS).unpickle
    return FromFile(partial(unpickle, checkpoint.path, part.key, part.prefix))


def frozen_loader(
    blank: Loader | str, written: WrittenFile, layers: Mapping[str, Eps]
) -> Loader | str:
    """Return what loads a converted state dict into the model of its original.

    Args:
        blank: Loads that model, or says why it cannot be.
        written: The converted file, opened anew.
        layers: The layers that it froze, with their eps.
    """
    if isinstance(blank, str):
        return blank
    load = partial(import_torch_for(_MODELS).frozen, blank, written, dict(layers))
    return FromFile(load) if isinstance(blank, FromFile) else load


def archive_loader(path: Path, options: RunOptions) -> Loader | str:
    """Return what loads a TorchScript archive; nothing of it is run unless it is safe or trusted.

    Args:
        path: Of an archive that frozenbn wrote, which is searched before.
        options: Whether it is trusted.
    """
    with open_checkpoint(path) as checkpoint:
        script = cast(ScriptArchive, checkpoint.script)
        if not options.trust and (unsafe := unsafe_operators(script)):
            return f"its code has {', '.join(unsafe[:3])}; --trust runs it all the same"
    return FromFile(ArchiveLoader(path))


def program_loader(
    path: Path,
    options: RunOptions,
    copies: PrivateCopies,
    *,
    model: str = "model",
    in_eval: Iterable[str] = (),
) -> Loader | str:
    """Return what loads an exported program; nothing of it is run unless it is safe or trusted.

    Args:
        path: Of an archive that frozenbn wrote, which is searched before.
        options: Whether it is trusted.
        copies: Where one comes from that is for another device, and is run on the CPU.
        model: Which of its programs.
        in_eval: The layers that take running statistics, whatever it was exported to do.
    """
    with closing(ByteSource(path)) as source:
        programs = ProgramArchive(ZipArchive(source))
        if not options.trust and (unsafe := unsafe_in(programs)):
            found = listed(unsafe)
            return f"it could execute more than a model: {found}; --trust runs it all the same"
        if moved := on_cpu(programs):
            path = copies.of(programs.archive, moved)
    return FromFile(ProgramLoader(path, model, frozenset(in_eval)))
