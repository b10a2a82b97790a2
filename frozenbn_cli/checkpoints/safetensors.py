"""Opens safetensors files, single ones and those that an index lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from frozenbn_cli.checkpoints.checkpoint import Checkpoint, StateDict
from frozenbn_cli.checkpoints.names import Naming
from frozenbn_cli.checkpoints.tensors import StoredTensor, dtype_of_code
from frozenbn_cli.containers.safetensors_file import read_header
from frozenbn_cli.containers.source import ByteSource, FileExtent
from frozenbn_cli.errors import DamagedFileError, InputError, UnsupportedFileError, located

__all__ = ["INDEX_SUFFIX", "open_safetensors", "open_sharded"]

INDEX_SUFFIX = ".safetensors.index.json"
_MAX_INDEX_BYTES = 16 << 20


def open_safetensors(source: ByteSource, *, naming: Naming) -> Checkpoint:
    """Open a safetensors file.

    Raises:
        DamagedFileError: The header contradicts the format or the file's size.
        UnsupportedFileError: An entry has a dtype that is not supported.
    """
    entries, metadata = _entries(source)
    part = StateDict("", entries)
    return Checkpoint(
        sources=(source,),
        kind="state dict",
        container="safetensors",
        state_dicts=(naming.apply(part),),
        metadata=metadata,
    )


def open_sharded(index: ByteSource, *, naming: Naming) -> Checkpoint:
    """Open the safetensors files that an index lists, as one state dict.

    Raises:
        DamagedFileError: The index is none, or a shard lacks what the index says of it.
        InputError: A shard cannot be read.
    """
    weight_map = _weight_map(index)
    sources = [index]
    try:
        found: dict[str, StoredTensor] = {}
        for shard in dict.fromkeys(weight_map.values()):
            with located(f"shard {shard}"):
                sources.append(ByteSource(index.path.parent / shard))
                entries, _ = _entries(sources[-1])
                found |= {
                    name: entry for name, entry in entries.items() if weight_map.get(name) == shard
                }
        if missing := [name for name in weight_map if name not in found]:
            raise DamagedFileError(f"entry {missing[0]!a} is not in shard {weight_map[missing[0]]}")
    except BaseException:
        for source in sources[1:]:
            source.close()
        raise
    part = StateDict("", {name: found[name] for name in weight_map})
    return Checkpoint(
        sources=tuple(sources),
        kind="state dict",
        container=f"safetensors in {len(sources) - 1} shards",
        state_dicts=(naming.apply(part),),
    )


def find_index(folder: Path) -> Path:
    """Return the index in a folder that holds a sharded checkpoint.

    Raises:
        InputError: There is none, or several.
    """
    found = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
    if len(found) != 1:
        raise InputError(
            "is a folder",
            expected=f"one index (*{INDEX_SUFFIX}) in it",
            found=", ".join(path.name for path in found) or "none",
        )
    return found[0]


def _entries(source: ByteSource) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    header = read_header(source)
    entries: dict[str, StoredTensor] = {}
    for name, entry in header.entries.items():
        with located(f"entry {name[:80]!a}"):
            entries[name] = StoredTensor.contiguous(
                dtype_of_code(entry.dtype),
                entry.shape,
                FileExtent(source, entry.start, entry.size_bytes),
            )
    return entries, header.metadata


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
            expected="an index of safetensors shards, with a weight_map", found="other JSON"
        )
    for shard in weight_map.values():
        if (
            not isinstance(shard, str)
            or Path(shard).name != shard
            or not shard.endswith(".safetensors")
        ):
            raise DamagedFileError(
                "weight_map", expected="names of .safetensors files beside", found=str(shard)[:80]
            )
    return weight_map
