"""Loads the models that files hold or belong to, to be run. Imports torch."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from frozenbn_cli import torch_jit
from frozenbn_cli.batch_norms.batch_norm import Eps
from frozenbn_cli.checkpoints import Checkpoint, StateDict, open_checkpoint
from frozenbn_cli.checkpoints.exported_programs import model_of
from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.exported.devices import on_cpu
from frozenbn_cli.exported.program_archive import ProgramArchive
from frozenbn_cli.exported.vetting import unsafe_in
from frozenbn_cli.importing import importable
from frozenbn_cli.live_models.building import build
from frozenbn_cli.live_models.describing import load_state
from frozenbn_cli.live_models.guarding import foreign_code
from frozenbn_cli.live_models.known_models import found_by_auto
from frozenbn_cli.live_models.programs import ProgramLoader
from frozenbn_cli.live_models.run_options import RunOptions
from frozenbn_cli.live_models.stored_values import to_tensor
from frozenbn_cli.loading import freeze_layers
from frozenbn_cli.torchscript.operators import unsafe_operators
from frozenbn_cli.torchscript.script_archive import ScriptArchive
from frozenbn_cli.verification.model_runs import Loader
from frozenbn_cli.verification.private_copies import PrivateCopies
from frozenbn_cli.verification.watching import submodule
from frozenbn_cli.verification.written import WrittenFile
from frozenbn_cli.wording import listed

__all__ = [
    "FromFile",
    "archive_loader",
    "blank_loader",
    "frozen_loader",
    "module_loader",
    "original_loader",
    "program_loader",
]

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
    return partial(_with_entries, blank, part)


def blank_loader(checkpoint: Checkpoint, part: StateDict, options: RunOptions) -> Loader | str:
    """Return what builds or unpickles the model that a file belongs to, whatever its entries.

    Args:
        checkpoint: The file.
        part: The state dict that is meant.
        options: The model that it belongs to, and whether it is trusted.
    """
    if options.model is not None:
        return partial(build, options.model)
    if checkpoint.script or checkpoint.program or not part.is_module:
        found = found_by_auto(part)
        return _AUTO_WOULD.format(found) if found else _NO_MODEL
    if not options.trust:
        return _NEEDS_TRUST
    return FromFile(partial(_unpickle, checkpoint.path, part.key, part.prefix))


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
    load = partial(_frozen, blank, written, dict(layers))
    return FromFile(load) if isinstance(blank, FromFile) else load


def archive_loader(path: Path, options: RunOptions) -> Loader | str:
    """Return what loads a TorchScript archive; nothing of it is run unless it is safe or trusted.

    Args:
        path: Of an archive that frozenbn wrote, which is searched before.
        options: Whether it is trusted.
    """
    if not torch_jit.IS_THERE:
        return torch_jit.MISSING
    with open_checkpoint(path) as checkpoint:
        script = cast(ScriptArchive, checkpoint.script)
        if not options.trust and (unsafe := unsafe_operators(script)):
            listed = ", ".join(unsafe[:3])
            return f"its code has {listed}; --trust runs it all the same"
    return FromFile(partial(_load_archive, path))


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


def _with_entries(blank: Callable[[], nn.Module], part: StateDict) -> nn.Module:
    model = blank()
    load_state(model, {name: to_tensor(entry) for name, entry in part.entries.items()})
    return model


def _frozen(blank: Loader, written: WrittenFile, layers: Mapping[str, Eps]) -> nn.Module:
    with foreign_code():
        model = freeze_layers(blank(), layers)
    load_state(model, {name: written.tensor(name) for name in written.names()})
    return model


def _unpickle(path: Path, key: str, prefix: str) -> Any:
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


def _load_archive(path: Path) -> Any:
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
