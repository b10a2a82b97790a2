"""Model files, opened by what they contain and not by what they are called.

What opens a kind of file is a module of its own, imported where one of that kind is there.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from frozenbn_cli.checkpoints.checkpoint import (
    Checkpoint,
    LayerFacts,
    Renaming,
    StateDict,
    names_statistics,
)
from frozenbn_cli.checkpoints.likeness import DCP_COMMAND, likeness, unpacking
from frozenbn_cli.checkpoints.names import Naming
from frozenbn_cli.checkpoints.shards import model_in, open_sharded
from frozenbn_cli.checkpoints.tensors import StoredTensor
from frozenbn_cli.containers.signatures import (
    has_legacy_magic,
    is_zip,
    looks_like_pickle,
    looks_like_safetensors,
)
from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.errors import InputError, UnsupportedFileError, UsageError, located
from frozenbn_cli.exported.program_archive import is_program_archive
from frozenbn_cli.wording import is_it

__all__ = [
    "Checkpoint",
    "LayerFacts",
    "Renaming",
    "StateDict",
    "StoredTensor",
    "names_statistics",
    "open_checkpoint",
]

_HEAD_BYTES = 512


def open_checkpoint(
    path: str | Path,
    *,
    keep_prefix: bool = False,
    strip_prefix: str = "",
    add_prefix: str = "",
    with_layers: bool = True,
) -> Checkpoint:
    """Open a model file; nothing in it is executed, and no tensor is read yet.

    Args:
        path: A file, or a folder with one model: a file, or the index of several.
        keep_prefix: Keep what wrappers put into names (``module.``, ``_orig_mod.``).
        strip_prefix: Taken off the names that begin with it.
        add_prefix: Put in front of every name.
        with_layers: Find out what the code or the graph in an archive says of its layers, which
            takes longer than all else.

    Returns:
        The open file, to be used in a ``with`` block.

    Raises:
        InputError: The file cannot be read, is damaged or of an unsupported kind.
        UsageError: No name begins with ``strip_prefix``, or two entries get one name.
    """
    path = Path(path)
    with located(str(path)):
        if not os.path.lexists(path):
            raise _missing(path)
        try:
            source = ByteSource(model_in(path) if path.is_dir() else path)
        except OSError as error:  # From looking at a path that is too long or not ours to see.
            raise InputError(f"cannot be read ({error.strerror})") from error
    try:
        with located(str(path)):
            naming = Naming(keep_prefix, strip_prefix, add_prefix)
            checkpoint = _open(source, naming, with_layers=with_layers)
            if (checkpoint.script or checkpoint.program) and (strip_prefix or add_prefix):
                raise UsageError("names are to change, and those of an archive are in its code")
            if checkpoint.state_dicts:
                naming.check(checkpoint.state_dicts)
            return checkpoint
    except BaseException:
        source.close()
        raise


def _missing(path: Path) -> InputError:
    """Return the error for a file that is not there, which names one of a similar name."""
    siblings: list[str] = []
    with suppress(OSError):
        siblings = sorted(sibling.name for sibling in path.parent.iterdir())
    return InputError("there is no such file", advice=is_it(path.name, siblings))


def _open(source: ByteSource, naming: Naming, *, with_layers: bool) -> Checkpoint:
    # Files of torch.save, one behind the other.
    if source.path.suffix == ".distcp" or source.path.name == ".metadata":
        raise UnsupportedFileError(
            "a part of a folder of torch.distributed.checkpoint",
            advice=f"Make a file of the folder: {DCP_COMMAND.format(source.path.parent)}",
        )
    head = source.read(0, min(_HEAD_BYTES, source.size_bytes))
    if head.lstrip().startswith(b"{") and not looks_like_safetensors(head, source.size_bytes):
        return open_sharded(source, _open_one, naming=naming)
    return _open_one(source, naming, with_layers=with_layers)


def _open_one(source: ByteSource, naming: Naming, *, with_layers: bool = True) -> Checkpoint:
    head = source.read(0, min(_HEAD_BYTES, source.size_bytes))
    if is_zip(head):
        archive = ZipArchive(source)
        if is_program_archive(archive):
            from frozenbn_cli.checkpoints.exported_programs import open_exported_program

            return open_exported_program(source, archive, with_layers=with_layers)
        from frozenbn_cli.checkpoints.pickled import open_zip

        return open_zip(source, archive, naming=naming, with_layers=with_layers)
    if has_legacy_magic(head):
        from frozenbn_cli.checkpoints.pickled import open_legacy

        return open_legacy(source, naming=naming)
    if looks_like_safetensors(head, source.size_bytes):
        from frozenbn_cli.checkpoints.safetensors import open_safetensors

        return open_safetensors(source, naming=naming)
    if looks_like_pickle(head):
        from frozenbn_cli.checkpoints.pickled import open_bare

        return open_bare(source, naming=naming)
    raise UnsupportedFileError(
        expected="a file that PyTorch or safetensors wrote",
        found=likeness(head),
        advice=unpacking(head, source.path.name),
    )
