"""Opens what `torch.save` pickled, in its ZIP format and in the legacy one."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from frozenbn_cli.checkpoints.checkpoint import METADATA_KEY, Checkpoint
from frozenbn_cli.checkpoints.foreign_names import foreign_names
from frozenbn_cli.checkpoints.likeness import MODEL_SUFFIXES
from frozenbn_cli.checkpoints.names import Naming
from frozenbn_cli.checkpoints.pickled_tensors import TensorFinder, storage_element_sizes
from frozenbn_cli.checkpoints.state_dicts import find_state_dicts
from frozenbn_cli.containers.legacy_stream import LegacyStream
from frozenbn_cli.containers.signatures import is_zip
from frozenbn_cli.containers.source import ByteSource, Extent, FileExtent, stream
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.errors import DamagedFileError, UnsupportedFileError, located
from frozenbn_cli.pickles.reader import Pickle, read_pickle
from frozenbn_cli.pickles.values import LongBytes, Value
from frozenbn_cli.wording import listed

__all__ = [
    "StoredPickle",
    "open_bare",
    "open_legacy",
    "open_zip",
    "read_stored",
    "read_value",
]

_NO_METADATA: Mapping[str, str] = {}


def open_zip(
    source: ByteSource, archive: ZipArchive, *, naming: Naming, with_layers: bool = True
) -> Checkpoint:
    """Open a ZIP archive that `torch.save` or `torch.jit.save` wrote.

    Args:
        source: The file.
        archive: The same as an archive.
        naming: How its entries are to be named.
        with_layers: Find out what code in it says of its layers.

    Raises:
        DamagedFileError: The archive contradicts itself; says where.
        UnsupportedFileError: The archive holds something else than a model.
    """
    names = {name.partition("/")[2] for name in archive.records}
    if "constants.pkl" in names and "bytecode.pkl" not in names:
        from frozenbn_cli.checkpoints import torchscript

        return torchscript.open_torchscript(source, archive, with_layers=with_layers)
    if other := _other_kind(archive, names):
        kind, advice = other
        return Checkpoint(
            sources=(source,),
            kind=kind,
            container="PyTorch ZIP",
            state_dicts=(),
            archive=archive,
            advice=advice,
        )
    root = _root(archive)
    pickle, finder = _zip_pickle(archive, root)
    metadata = {}
    if (conversion := f"{root}{METADATA_KEY}.json") in archive.records:
        metadata[METADATA_KEY] = archive.read(conversion, at_most_bytes=16 << 20).decode(
            "utf-8", "replace"
        )

    return _checkpoint(
        source,
        "PyTorch ZIP",
        pickle,
        finder,
        archive=archive,
        metadata=metadata,
        naming=naming,
    )


def open_legacy(source: ByteSource, *, naming: Naming) -> Checkpoint:
    """Open a file in the format that `torch.save` wrote before version 1.6.

    Raises:
        DamagedFileError: The stream contradicts itself; says where.
        UnsupportedFileError: The file holds something else than a model.
    """
    stored = _legacy_pickle(source)
    record = stored.legacy.system.get(METADATA_KEY) if stored.legacy else None
    metadata = {METADATA_KEY: record} if isinstance(record, str) else {}
    pickle, finder = stored.pickle, stored.finder
    return _checkpoint(source, "PyTorch legacy", pickle, finder, metadata=metadata, naming=naming)


@dataclass(frozen=True, slots=True)
class StoredPickle:
    """What `torch.save` wrote: the pickle, inert, and where it and its storages lie.

    Attributes:
        pickle: The pickle.
        finder: Finds the tensors in it.
        archive: The archive that it lies in; None for the legacy format.
        root: The archive's one folder, with a slash.
        legacy: The stream of the legacy format.
    """

    pickle: Pickle
    finder: TensorFinder
    archive: ZipArchive | None = None
    root: str = ""
    legacy: LegacyStream | None = None


def read_stored(source: ByteSource) -> StoredPickle:
    """Return what `torch.save` wrote into a file.

    Raises:
        DamagedFileError: The file contradicts itself; says where.
        UnsupportedFileError: `torch.save` did not write it.
    """
    if is_zip(source.read(0, min(4, source.size_bytes))):
        archive = ZipArchive(source)
        root = _root(archive)
        return StoredPickle(*_zip_pickle(archive, root), archive, root)
    return _legacy_pickle(source)


def read_value(source: ByteSource) -> tuple[Value, TensorFinder]:
    """Return whatever `torch.save` wrote, inert, and what finds the tensors in it.

    Raises:
        DamagedFileError: The file contradicts itself; says where.
        UnsupportedFileError: `torch.save` did not write it.
    """
    stored = read_stored(source)
    return stored.pickle.value, stored.finder


def _zip_pickle(archive: ZipArchive, root: str) -> tuple[Pickle, TensorFinder]:
    order = f"{root}byteorder"
    if order in archive.records and archive.read(order) != b"little":
        raise UnsupportedFileError("written on a big-endian machine, whose bytes are swapped")
    record = f"{root}data.pkl"
    archive.check(record)
    with located(f"record {record}"):
        pickle = read_pickle(stream(archive.extent(record)))

    def storage(key: str) -> Extent:
        return archive.extent(f"{root}data/{key}")

    return pickle, TensorFinder(storage)


def _legacy_pickle(source: ByteSource) -> StoredPickle:
    legacy = LegacyStream.read(_whole(source), storage_element_sizes)

    def storage(key: str) -> Extent:
        if key not in legacy.storages:
            raise DamagedFileError(f"storage {key!a} is missing from the file")
        return legacy.storages[key]

    return StoredPickle(legacy.pickle, TensorFinder(storage), legacy=legacy)


def open_bare(source: ByteSource, *, naming: Naming) -> Checkpoint:
    """Open a pickle of tensors or NumPy arrays that `torch.save` did not write.

    Raises:
        DamagedFileError: The pickle contradicts itself; says where.
        UnsupportedFileError: It holds something else than a model.
    """
    file = stream(_whole(source))
    pickle = read_pickle(file, leaves_bytes=True)
    if file.tell() != source.size_bytes:
        raise DamagedFileError(
            expected=f"the end of the file at byte {file.tell():,}",
            found=f"{source.size_bytes - file.tell():,} bytes more",
        )

    def storage(key: str) -> Extent:
        raise DamagedFileError(f"storage {key!a} is missing from the file")

    def left_bytes(place: LongBytes) -> Extent:
        return FileExtent(source, place.start, place.size_bytes)

    finder = TensorFinder(storage, left_bytes)
    return _checkpoint(source, "pickle", pickle, finder, naming=naming)


def _whole(source: ByteSource) -> Extent:
    return FileExtent(source, 0, source.size_bytes)


def _checkpoint(
    source: ByteSource,
    container: str,
    pickle: Pickle,
    finder: TensorFinder,
    *,
    archive: ZipArchive | None = None,
    metadata: Mapping[str, str] = _NO_METADATA,
    naming: Naming,
) -> Checkpoint:
    found = find_state_dicts(pickle.value, finder, naming=naming)
    return Checkpoint(
        sources=(source,),
        kind=found.kind,
        container=container,
        state_dicts=found.state_dicts,
        others=found.others,
        beside=found.beside,
        archive=archive,
        metadata=metadata,
        foreign_names=foreign_names(
            pickle, finder, classes_are_expected=any(part.is_module for part in found.state_dicts)
        ),
    )


def _other_kind(archive: ZipArchive, names: set[str]) -> tuple[str, str] | None:
    """Return the kind of an archive that is no pickle of `torch.save`, and what can be done."""
    if "bytecode.pkl" in names:
        return (
            "TorchScript archive for mobile",
            "Its bytecode cannot be edited; convert the original.",
        )
    if "model.json" in names:
        return (
            "TorchScript archive from before PyTorch 1.4",
            "Load it with torch.jit.load of PyTorch 1.x and save it again.",
        )
    if ".data/extern_modules" in names:
        return (
            "package of torch.package",
            "Load it with torch.package.PackageImporter, and save the state_dict() of its model.",
        )
    if "MAR-INF/MANIFEST.json" in archive.records:
        return (
            "model archive of TorchServe",
            f"Unpack it (unzip {shlex.quote(archive.source.path.name)}); the model is one of its "
            "files.",
        )
    return None


def _root(archive: ZipArchive) -> str:
    """Return the archive's one folder, with a slash; every record of PyTorch lies in it."""
    roots = [
        name.removesuffix("data.pkl") for name in archive.records if name.endswith("/data.pkl")
    ]
    roots = [root for root in roots if root.count("/") == 1]
    files = [name for name in archive.records if name.lower().endswith(MODEL_SUFFIXES)]
    if not roots and files:
        raise UnsupportedFileError(
            "a ZIP archive with model files in it",
            found=listed(files),
            advice=f"Unpack it first: unzip {shlex.quote(archive.source.path.name)}",
        )
    if archive.records and all(name.endswith(".npy") for name in archive.records):
        raise UnsupportedFileError(
            "holds NumPy arrays under names, as numpy.savez writes",
            advice="Make a state dict of it: torch.save({name: torch.from_numpy(array) for name, "
            f"array in numpy.load({archive.source.path.name!r}).items()}}, 'model.pth')",
        )
    if len(roots) != 1:
        raise UnsupportedFileError(
            "a ZIP archive that PyTorch did not write",
            expected="one record named <folder>/data.pkl",
            found=", ".join(list(archive.records)[:3]) or "no records",
        )
    return roots[0]
