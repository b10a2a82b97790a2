"""Folders that stand for one model, and models in several files that an index lists.

The index is a JSON document with a ``weight_map`` from each entry to its file, as
``save_pretrained`` of transformers and diffusers writes it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from frozenbn_cli.checkpoints.checkpoint import Checkpoint, StateDict
from frozenbn_cli.checkpoints.likeness import DCP_COMMAND, MODEL_SUFFIXES
from frozenbn_cli.checkpoints.names import Naming
from frozenbn_cli.checkpoints.tensors import StoredTensor
from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.errors import DamagedFileError, InputError, UnsupportedFileError, located

__all__ = ["indexes_in", "model_in", "open_sharded", "shards_of"]

_INDEX_SUFFIXES = (".safetensors.index.json", ".bin.index.json")
_SHARD_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
_MAX_INDEX_BYTES = 16 << 20
# What trainers put beside a model.
_NO_MODELS = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "random_states")


def indexes_in(folder: Path) -> list[Path]:
    """Return the indexes of sharded models in a folder; of one model in two formats, the safe one.

    Safetensors files hold nothing but tensors.
    """
    for suffix in _INDEX_SUFFIXES:
        if found := sorted(folder.glob(f"*{suffix}")):
            return found
    return []


def model_in(folder: Path) -> Path:
    """Return the file that holds the one model in a folder, or its index.

    Raises:
        InputError: There is none, or several.
    """
    found = indexes_in(folder)
    if not found:
        files = [
            path
            for path in sorted(folder.iterdir())
            if path.name.lower().endswith(MODEL_SUFFIXES)
            and not path.name.startswith((".", *_NO_MODELS))
            and path.is_file()
        ]
        safe = [path for path in files if path.suffix == ".safetensors"]
        # Of one model in two formats, as hubs keep it, the safe one.
        same = len(safe) == 1 and {path.stem for path in files} <= {"model", "pytorch_model"}
        found = safe if same else files
    if len(found) != 1:
        if (folder / ".metadata").exists():
            raise UnsupportedFileError(
                "is a folder of torch.distributed.checkpoint",
                advice=f"Make a file of it: {DCP_COMMAND.format(folder)}",
            )
        raise InputError(
            "is a folder",
            expected="one model file or index in it",
            found=", ".join(path.name for path in found[:5]) or "none",
        )
    return found[0]


def open_sharded(
    index: ByteSource, open_source: Callable[[ByteSource, Naming], Checkpoint], *, naming: Naming
) -> Checkpoint:
    """Open the files that an index lists, as one state dict.

    Args:
        index: The index.
        open_source: Opens one of the files.
        naming: How its entries are to be named.

    Raises:
        DamagedFileError: The index is none, or a shard lacks what the index says of it.
        InputError: A shard cannot be read.
    """
    weight_map = _weight_map(index)
    shards: list[Checkpoint] = []
    found: dict[str, StoredTensor] = {}
    left_out: dict[str, str] = {}
    try:
        for name in dict.fromkeys(weight_map.values()):
            with located(f"shard {name}"):
                shards.append(_open_shard(index.path.parent / name, open_source))
                part = shards[-1].state_dict()
                found |= {
                    entry: tensor
                    for entry, tensor in part.entries.items()
                    if weight_map.get(entry) == name
                }
                left_out |= part.unsupported
        missing = [name for name in weight_map if name not in found and name not in left_out]
        if missing:
            raise DamagedFileError(f"entry {missing[0]!a} is not in shard {weight_map[missing[0]]}")
    except BaseException:
        for shard in shards:
            shard.close()
        raise
    entries = {name: found[name] for name in weight_map if name in found}
    kinds = "safetensors" if all(_is_safe(name) for name in weight_map.values()) else "PyTorch"
    return Checkpoint(
        sources=(index, *(source for shard in shards for source in shard.sources)),
        kind="state dict",
        container=f"{kinds} in {len(shards)} shards",
        state_dicts=(naming.apply(StateDict("", entries, unsupported=left_out)),),
        shards=tuple(shard.archive for shard in shards if shard.archive),
        foreign_names={
            name: called for shard in shards for name, called in shard.foreign_names.items()
        },
    )


def shards_of(index: Path) -> set[str]:
    """Return the shards that an index lists; one that is damaged is reported when it is opened."""
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        weight_map = json.loads(index.read_bytes())["weight_map"]
        return {str(shard) for shard in weight_map.values()}
    return set()


def _open_shard(path: Path, open_source: Callable[[ByteSource, Naming], Checkpoint]) -> Checkpoint:
    source = ByteSource(path)
    try:
        return open_source(source, Naming(keep=True))
    except BaseException:
        source.close()
        raise


def _weight_map(index: ByteSource) -> dict[str, str]:
    if index.size_bytes > _MAX_INDEX_BYTES:
        raise UnsupportedFileError(f"an index of {index.size_bytes:,} bytes is beyond any model")
    try:
        document: Any = json.loads(index.read(0, index.size_bytes))
    except (ValueError, RecursionError) as error:
        raise DamagedFileError(f"not JSON ({str(error)[:100]})") from error
    weight_map = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnsupportedFileError(
            expected="an index of shards, with a weight_map",
            found=f"other JSON, which begins with {index.read(0, min(40, index.size_bytes))!a}",
        )
    for shard in weight_map.values():
        if (
            not isinstance(shard, str)
            or Path(shard).name != shard
            or not shard.endswith(_SHARD_SUFFIXES)
        ):
            raise DamagedFileError(
                "weight_map", expected="names of model files beside", found=str(shard)[:80]
            )
    return weight_map


def _is_safe(name: str) -> bool:
    return name.endswith(".safetensors")
