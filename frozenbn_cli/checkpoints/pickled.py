"""Opens state dicts that `torch.save` pickled, in its ZIP format and in the legacy one."""

from __future__ import annotations

from frozenbn_cli.checkpoints.checkpoint import Checkpoint
from frozenbn_cli.checkpoints.pickled_tensors import (
    TensorFinder,
    is_tensor,
    storage_element_sizes,
)
from frozenbn_cli.checkpoints.tensors import StoredTensor
from frozenbn_cli.containers.legacy_stream import LegacyStream
from frozenbn_cli.containers.source import ByteSource, Extent, stream
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.errors import DamagedFileError, UnsupportedFileError, located
from frozenbn_cli.pickles.reader import read_pickle
from frozenbn_cli.pickles.values import Call, Value, describe, items_of

__all__ = ["open_legacy", "open_zip"]


def open_zip(source: ByteSource) -> Checkpoint:
    """Open a ZIP archive that `torch.save` wrote.

    Raises:
        DamagedFileError: The archive contradicts itself; says where.
        UnsupportedFileError: The archive holds something else than a state dict.
    """
    archive = ZipArchive(source)
    root = _root(archive)
    if f"{root}byteorder" in archive.records and archive.read(f"{root}byteorder") != b"little":
        raise UnsupportedFileError("written on a big-endian machine, whose bytes are swapped")
    record = f"{root}data.pkl"
    archive.check(record)
    with located(f"record {record}"):
        pickle = read_pickle(stream(archive.extent(record)))

    def storage(key: str) -> Extent:
        return archive.extent(f"{root}data/{key}")

    entries, left_out = _state_dict(pickle.value, TensorFinder(storage))
    return Checkpoint(
        source, "state dict", "PyTorch ZIP", entries, left_out=left_out, archive=archive
    )


def open_legacy(source: ByteSource) -> Checkpoint:
    """Open a file in the format that `torch.save` wrote before version 1.6.

    Raises:
        DamagedFileError: The stream contradicts itself; says where.
        UnsupportedFileError: The file holds something else than a state dict.
    """
    legacy = LegacyStream.read(source, storage_element_sizes)

    def storage(key: str) -> Extent:
        if key not in legacy.storages:
            raise DamagedFileError(f"storage {key!a} is missing from the file")
        return legacy.storages[key]

    entries, left_out = _state_dict(legacy.pickle.value, TensorFinder(storage))
    return Checkpoint(source, "state dict", "PyTorch legacy", entries, left_out=left_out)


def _root(archive: ZipArchive) -> str:
    """Return the archive's one folder, with a slash; every record of PyTorch lies in it."""
    roots = [
        name.removesuffix("data.pkl") for name in archive.records if name.endswith("/data.pkl")
    ]
    roots = [root for root in roots if root.count("/") == 1]
    if len(roots) != 1:
        raise UnsupportedFileError(
            "a ZIP archive that PyTorch did not write",
            expected="one record named <folder>/data.pkl",
            found=", ".join(list(archive.records)[:3]) or "no records",
        )
    if f"{roots[0]}constants.pkl" in archive.records:
        raise UnsupportedFileError(
            "a TorchScript archive, which is not converted yet",
            advice="Convert the state dict it was made from.",
        )
    return roots[0]


def _state_dict(
    value: Value, finder: TensorFinder
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    items = items_of(value)
    if items is None:
        what = "a whole pickled module" if isinstance(value, Call) else describe(value)
        raise UnsupportedFileError(
            expected="a state dict",
            found=what,
            advice="Save the weights with `torch.save(model.state_dict(), path)`.",
        )
    entries: dict[str, StoredTensor] = {}
    left_out: dict[str, str] = {}
    for key, entry in items:
        name = key if isinstance(key, str) else describe(key)
        if isinstance(entry, Call) and is_tensor(entry):
            with located(f"entry {name[:80]!a}"):
                entries[name] = finder.tensor(entry)
        else:
            left_out[name] = describe(entry)
    return entries, left_out
