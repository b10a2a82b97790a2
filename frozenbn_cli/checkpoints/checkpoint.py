"""What every kind of checkpoint offers once it is open."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from frozenbn_cli.checkpoints.tensors import StoredTensor
from frozenbn_cli.containers.fingerprint import fingerprint
from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.errors import UnsupportedFileError, UsageError, located
from frozenbn_cli.wording import is_it

if TYPE_CHECKING:  # Files of other kinds need not wait for these.
    from frozenbn_cli.exported.program_archive import ProgramArchive
    from frozenbn_cli.torchscript.script_archive import ScriptArchive

__all__ = [
    "METADATA_KEY",
    "Checkpoint",
    "LayerFacts",
    "Renaming",
    "StateDict",
    "names_statistics",
]

METADATA_KEY = "frozenbn.conversion"
"""What the record of a conversion is called, wherever a file carries it."""

_MOST_KEYS = 5


def names_statistics(entry: str) -> bool:
    """Return whether an entry of this name is a running mean or a running variance."""
    return entry.rpartition(".")[2] in ("running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What a file says of one normalisation layer beside its entries; None where it is silent.

    Attributes:
        type_name: The layer's class, with its module.
        channels: C.
        eps: Added to the variance.
        eps_is_unsettled: Whether the code uses several, or one that it computes.
        momentum: Of the running average; None also stands for a cumulative one.
        frozen: Whether the layer is a frozen one.
        may_be_frozen: Whether it may be a frozen one or a live one, for all that the file says.
        code_is_known: Whether the code of its class was read, so that its name does not matter.
        obstacle: Why that code cannot be frozen; None if it can.
        live: How it normalises, and goes on learning, where it is no layer of PyTorch's kind; None
            for all that are.
        always_batch_statistics: Whether the code normalises with batch statistics for good.
        spatial_dims: 2 where the code or the model shows a BatchNorm2d, 1 or 3 for its siblings.
        dims_source: What shows that, where the layer's own code and class do not.
        takes_any_dims: Whether it takes inputs of any dimensions, as SyncBatchNorm does.
        eps_is_recognised: Whether eps is that of a model which nobody named.
        exported_in_training: Whether the program takes batch statistics, since it was exported in
            training mode, and takes the running ones once the layer is frozen.
        is_certain: Whether the file shows by itself which layers are frozen, so that its record
            need not be believed.
        shares_with: The layers that it shares tensors with, where they stay shared in the output;
            its own name may be among them.
    """

    type_name: str | None = None
    channels: int | None = None
    eps: float | None = None
    eps_is_unsettled: bool = False
    momentum: float | None = None
    frozen: bool = False
    may_be_frozen: bool = False
    code_is_known: bool = False
    obstacle: str | None = None
    live: str | None = None
    always_batch_statistics: bool = False
    spatial_dims: int | None = None
    dims_source: str | None = None
    shares_with: frozenset[str] = frozenset()
    takes_any_dims: bool = False
    eps_is_recognised: bool = False
    exported_in_training: bool = False
    is_certain: bool = False

    @property
    def states_eps(self) -> bool:
        """Whether eps is known for certain."""
        return self.eps is not None and not self.eps_is_recognised


@dataclass(frozen=True, slots=True)
class Renaming:
    """How names differ from those that a file holds.

    Attributes:
        steps: What a name begins with, and what it begins with instead; one after the other.
    """

    steps: tuple[tuple[str, str], ...] = ()

    def __call__(self, name: str) -> str:
        """Return the new name of an entry."""
        for old, new in self.steps:
            if name.startswith(old):
                name = new + name[len(old) :]
        return name

    def of_module(self, name: str) -> str:
        """Return the new name of a module, which is empty for the outermost one."""
        return self(f"{name}.").removesuffix(".") if name else name

    @property
    def prefix(self) -> str:
        """What was taken off every name at first, such as ``module.``."""
        return "".join(old for old, new in self.steps if not new)

    @property
    def others(self) -> tuple[tuple[str, str], ...]:
        """What else was replaced, and by what."""
        return tuple((old, new) for old, new in self.steps if new)


@dataclass(frozen=True, slots=True)
class StateDict:
    """The entries of one model.

    Attributes:
        key: Where in the file it stands, such as ``state_dict`` or ``ema.module``; empty if it is
            the whole file.
        entries: The tensors by name, in the file's order.
        left_out: What else it holds, which is no tensor: name and description.
        layers: What the file says of its layers, by name.
        is_module: Whether it is a pickled module rather than a mapping.
        unsupported: Tensors that cannot be written, such as sparse ones: name and description.
        versions: Of the modules, by name, where the state dict keeps them.
        renaming: How names differ from those in the file, such as without ``module.``.
        stored_names: The names in the file of the entries that are called otherwise here.
        as_stored: The same with the names in the file; None where none differs.
    """

    key: str
    entries: Mapping[str, StoredTensor]
    left_out: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, LayerFacts] = field(default_factory=dict)
    is_module: bool = False
    unsupported: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, int] = field(default_factory=dict)
    renaming: Renaming = field(default_factory=Renaming)
    stored_names: Mapping[str, str] = field(default_factory=dict)
    as_stored: StateDict | None = field(default=None, repr=False, compare=False)

    @property
    def prefix(self) -> str:
        """What was taken off every name, such as ``module.``."""
        return self.renaming.prefix

    @property
    def has_batch_norm(self) -> bool:
        """Whether there is a layer with running statistics, or that could have them."""
        return bool(self.layers) or any(map(names_statistics, self.entries))


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """An open model file; a context manager that closes it.

    Attributes:
        sources: The file; several where the checkpoint is sharded.
        kind: What it holds, such as ``state dict``.
        container: How it is stored, such as ``PyTorch ZIP``.
        state_dicts: The models in it.
        others: State dicts without BatchNorm beside these, by key; made when they are asked for.
        beside: What the file holds beside them, such as an optimizer: name and description.
        metadata: The free-form text of a safetensors file.
        archive: The file as an archive, if it is one.
        shards: The archives among the files that an index lists.
        script: Its object tree and code, if it is a TorchScript archive.
        program: Its exported programs, if it is an archive of these.
        foreign_names: What unpickling the file would import that a model has no need of, with
            whether it would also be called.
        advice: What can be done with a kind that holds no state dict.
    """

    sources: tuple[ByteSource, ...]
    kind: str
    container: str
    state_dicts: tuple[StateDict, ...]
    others: Mapping[str, Callable[[], StateDict]] = field(default_factory=dict)
    beside: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    archive: ZipArchive | None = None
    shards: tuple[ZipArchive, ...] = ()
    script: ScriptArchive | None = None
    program: ProgramArchive | None = None
    foreign_names: Mapping[str, bool] = field(default_factory=dict)
    advice: str = ""

    @property
    def path(self) -> Path:
        """The file's path, as the user gave it; that of the index where it is sharded."""
        return self.sources[0].path

    @property
    def size_bytes(self) -> int:
        """The size of the file, or of all files."""
        return sum(source.size_bytes for source in self.sources)

    @property
    def entries(self) -> Mapping[str, StoredTensor]:
        """The tensors of the one state dict."""
        return self.state_dict().entries

    def state_dict(self, key: str | None = None) -> StateDict:
        """Return the state dict that is meant.

        Args:
            key: Where in the file it stands; None for the only one, or the only one with BatchNorm.

        Raises:
            UsageError: There is none at ``key``, or several that could be meant.
            UnsupportedFileError: The file holds none at all.
        """
        if not self.state_dicts:
            raise UnsupportedFileError(expected="a state dict", found=self.kind, advice=self.advice)
        if key is not None:
            return self._at_key(key)
        candidates = [part for part in self.state_dicts if part.has_batch_norm]
        candidates = candidates or list(self.state_dicts[:1])
        if len(candidates) > 1:
            raise UsageError(
                f"{len(candidates)} state dicts with BatchNorm",
                found=", ".join(repr(part.key) for part in candidates),
                advice="Choose one with --key.",
            )
        return candidates[0]

    def _at_key(self, key: str) -> StateDict:
        for part in self.state_dicts:
            if part.key == key:
                return part
        if key in self.others:
            return self.others[key]()
        keys = [part.key for part in self.state_dicts if part.key]
        # Weights come first: an optimizer's states are many, and never meant.
        others = [other for other in self.others if other]
        known = [*keys, *(other for other in others if "optim" not in other.lower())] or others
        named = ", ".join(map(repr, known[:_MOST_KEYS]))
        more = len(known) - _MOST_KEYS
        named = f"{named} and {more} more" if more > 0 else named
        there = f"There {'are' if len(known) > 1 else 'is'} {named}."
        advice = is_it(key, known) or is_it(key, others)
        advice = advice or (there if named else "The whole file is one state dict.")
        raise UsageError(f"no state dict at key {key!a}", advice=advice)

    def fingerprint(self) -> str:
        """Return the file's sha256; reads all of it and checks its checksums.

        For a sharded checkpoint, of the index and the shards one after the other.

        Raises:
            DamagedFileError: A record's checksum does not match.
        """
        with located(str(self.path)):
            return fingerprint(self.sources, self.archives)

    @property
    def archives(self) -> tuple[ZipArchive, ...]:
        """Those of its files that are archives."""
        return tuple(archive for archive in (self.archive, *self.shards) if archive)

    def check_unchanged(self) -> None:
        """Raise if one of its files was written to since it was opened.

        Raises:
            InputError: What was read may be of two files.
        """
        for source in self.sources:
            source.check_unchanged()

    def close(self) -> None:
        """Close its files."""
        for source in self.sources:
            source.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
