"""Finds the model files that paths, folders and patterns name, and where their outputs belong.

Outputs lie in the output folder as their inputs lie in the deepest folder that all arguments have
in common, so that two inputs of one name stay apart. That folder depends on the arguments alone,
not on what is found: ``zoo`` gives the same layout today and when it holds more.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.checkpoints.likeness import MODEL_SUFFIXES
from frozenbn_cli.checkpoints.shards import indexes_in, model_in, shards_of
from frozenbn_cli.errors import InputError, UsageError
from frozenbn_cli.outputs import BY_KIND, FORMATS, OutputFormat, default_output, format_of

__all__ = [
    "MODEL_SUFFIXES",
    "ModelFile",
    "check_collisions",
    "find_checkpoints",
    "find_model_files",
    "names_several",
    "possible_outputs",
]

_OUTPUT_ENDINGS = tuple(
    f".frozen{suffix}" for facts in FORMATS.values() for suffix in facts.suffixes
)


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One input among several.

    Attributes:
        path: A file, or a folder with a sharded checkpoint.
        output_dir: The folder that its output belongs into.
    """

    path: Path
    output_dir: Path


@dataclass(frozen=True, slots=True)
class _Argument:
    """What one argument names: the files, and the folder that they are laid out from."""

    root: Path
    paths: tuple[Path, ...]


def names_several(path: Path) -> bool:
    """Return whether a path is a folder with model files, or a pattern that matches something."""
    if _is_one_input(path):
        return False
    if _is_folder(path):
        return not _holds_one(path) and any(True for _ in _walk(path, recursive=True))
    return any(True for _ in glob.iglob(str(path), recursive=True))  # noqa: PTH207


def _holds_one(folder: Path) -> bool:
    """Return whether a folder holds one model, as hubs keep it."""
    try:
        model_in(folder)
    except (InputError, OSError):
        return False
    return True


def _is_one_input(path: Path) -> bool:
    """Return whether a path names one input: a file, there or not, or a folder of shards."""
    if _is_folder(path):
        return len(indexes_in(path)) == 1
    return os.path.lexists(path) or not glob.has_magic(str(path))


def find_model_files(
    paths: Iterable[str | Path], *, output_dir: Path, recursive: bool = False
) -> list[ModelFile]:
    """Return the inputs that files, folders and glob patterns name, each once.

    A folder stands for the model files in it, and, if it holds one sharded safetensors checkpoint,
    for that one. What lies in the output folder is no input, unless it is named itself.

    Args:
        paths: What is there is taken by its name, also if that looks like a pattern.
        output_dir: Where outputs belong.
        recursive: Look into the folders in a folder too.

    Raises:
        UsageError: A folder or pattern names no model file.
    """
    arguments = [_argument(Path(path), output_dir, recursive) for path in paths]
    if not arguments:
        raise UsageError("no input is given")
    base = Path(os.path.commonpath([argument.root for argument in arguments]))
    found: dict[Path, ModelFile] = {}
    for argument in arguments:
        for path in argument.paths:
            full = _absolute(path)
            folder = output_dir / full.parent.relative_to(base)
            found.setdefault(full, ModelFile(path, folder))
    return list(found.values())


def find_checkpoints(paths: Iterable[Path], *, recursive: bool = False) -> list[Path]:
    """Return the files to look at that paths, folders and patterns name, each once.

    Unlike for `find_model_files`, outputs of earlier runs are among them, and a folder that holds
    one model, or nothing that a name could tell, stands for itself: opening it says what it is.

    Args:
        paths: As the user gave them.
        recursive: Look into the folders in a folder too.

    Raises:
        UsageError: A pattern names no file, or a folder none but in the folders in it.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        is_itself = _is_folder(path) and not names_several(path)
        for each in (path,) if is_itself else _argument(path, None, recursive).paths:
            found.setdefault(_absolute(each), each)
    return list(found.values())


def possible_outputs(file: ModelFile, to: OutputFormat | None) -> list[Path]:
    """Return where the output of a file may be; several where its content decides on the format."""
    formats = [to] if to else BY_KIND
    return [file.output_dir / default_output(file.path, one).name for one in formats]


def check_collisions(files: Sequence[ModelFile], to: OutputFormat | None) -> None:
    """Refuse inputs whose outputs would have the same name.

    Raises:
        UsageError: There are some; names them.
    """
    claimed: dict[Path, list[ModelFile]] = {}
    for file in files:
        for output in possible_outputs(file, to):
            claimed.setdefault(output, []).append(file)
    for output, claimants in claimed.items():
        # What a file is need only be known where a name is wanted twice.
        certain = [
            file for file in claimants if len(claimants) > 1 and output == _output_of(file, to)
        ]
        if len(certain) > 1:
            names = " and ".join(str(file.path) for file in certain[:2])
            more = f", and of {len(certain) - 2} more" if len(certain) > 2 else ""
            raise UsageError(
                f"is the output of {names}{more}",
                where=(str(output),),
                advice="Convert them into folders of their own.",
            )


def _output_of(file: ModelFile, to: OutputFormat | None) -> Path:
    if to is None:
        to = "safetensors"
        with suppress(InputError), open_checkpoint(file.path) as checkpoint:
            to = format_of(checkpoint, None)
    return file.output_dir / default_output(file.path, to).name


def _argument(path: Path, output_dir: Path | None, recursive: bool) -> _Argument:
    if _is_one_input(path):
        return _Argument(_absolute(path).parent, (path,))
    if _is_folder(path):
        found = _in_folder(path, output_dir, recursive)
        if not found:
            raise UsageError(
                expected=f"model files ({', '.join(MODEL_SUFFIXES)})",
                found="none",
                where=(str(path),),
                advice="" if recursive else "--recursive looks into the folders in it too.",
            )
        return _Argument(_absolute(path), found)
    # Unlike Path.glob, it leaves hidden files out, as the shell does.
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
    if not matches:
        raise UsageError("no file matches this pattern", where=(str(path),))
    parts: list[Path] = []
    for match in matches:
        parts += _in_folder(match, output_dir, recursive) if _is_folder(match) else [match]
    return _Argument(_absolute(_fixed_part(path)), tuple(parts))


def _fixed_part(pattern: Path) -> Path:
    """Return the folders of a pattern before the first part with a wildcard."""
    fixed = Path()
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _in_folder(folder: Path, output_dir: Path | None, recursive: bool) -> tuple[Path, ...]:
    if _is_one_input(folder):
        return (folder,)
    found = _walk(folder, recursive)
    if output_dir is None:
        return tuple(found)
    own = _OwnOutputs(folder, output_dir)
    return tuple(path for path in found if not own.has(path))


def _walk(folder: Path, recursive: bool) -> Iterator[Path]:
    """Yield the model files in a folder, in the order of their names; hidden ones are left out."""
    indexes = indexes_in(folder)
    shards = {shard for index in indexes for shard in shards_of(index)}
    yield from indexes
    try:
        paths = sorted(folder.iterdir())
    except OSError:  # Not ours to see; it is named when it is opened.
        paths = []
        yield folder
    for path in paths:
        if path.name.startswith("."):
            continue
        if _is_folder(path):
            if len(indexes_in(path)) == 1:
                yield path
            elif recursive and not path.is_symlink():
                yield from _walk(path, recursive)
        elif path.name.lower().endswith(MODEL_SUFFIXES) and path.name not in shards:
            yield path


class _OwnOutputs:
    """Tells what an earlier run wrote from the model files that are looked for in a folder."""

    def __init__(self, folder: Path, output_dir: Path) -> None:
        self._output_dir = _absolute(output_dir)
        # Where outputs have a folder of their own, all in it is output.
        self._apart = self._output_dir.is_relative_to(_absolute(folder)) and (
            self._output_dir != _absolute(folder)
        )

    def has(self, path: Path) -> bool:
        if not _absolute(path).is_relative_to(self._output_dir):
            return False
        return self._apart or path.name.endswith(_OUTPUT_ENDINGS)


def _is_folder(path: Path) -> bool:
    """Return whether a path is a folder; one that is too long, or not ours to see, is none."""
    return os.path.isdir(path)  # noqa: PTH112  # Path.is_dir raises for these.


def _absolute(path: Path) -> Path:
    """Return a path from the root, without ``..``, and with symbolic links as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100  # Path.absolute keeps "..".
