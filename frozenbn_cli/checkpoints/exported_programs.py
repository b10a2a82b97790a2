"""Opens archives of exported programs: the weights of each, and what its graph says of layers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

from frozenbn_cli.checkpoints.checkpoint import METADATA_KEY, Checkpoint, LayerFacts, StateDict
from frozenbn_cli.checkpoints.program_tensors import program_tensors
from frozenbn_cli.checkpoints.tensors import StoredTensor
from frozenbn_cli.containers.source import ByteSource
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.errors import located
from frozenbn_cli.exported.batch_norm_layers import Layer, Layers
from frozenbn_cli.exported.obstacles import is_frozen, obstacle
from frozenbn_cli.exported.program_archive import ProgramArchive
from frozenbn_cli.exported.program_graph import ProgramGraph

__all__ = ["model_of", "open_exported_program", "program_record_path", "storages_of"]

_COMPILED = "Convert the program that it was compiled from."


def program_record_path(archive: ProgramArchive) -> str:
    """Return where an archive carries the record: as an extra file, in PyTorch's word."""
    return archive.extra_record(METADATA_KEY)


def model_of(archive: ProgramArchive, part: StateDict) -> str:
    """Return the name of the program whose weights a state dict is."""
    return part.key or archive.models[0]


def storages_of(entries: Mapping[str, StoredTensor]) -> dict[str, Hashable]:
    """Return what stands for the storage of each tensor, the same for those that share it."""
    return {name: id(entry.storage) for name, entry in entries.items()}


def open_exported_program(
    source: ByteSource, zipped: ZipArchive, *, with_layers: bool = True
) -> Checkpoint:
    """Open an archive of exported programs; nothing in it is loaded, unpickled or evaluated.

    Args:
        source: The file.
        zipped: The same as an archive.
        with_layers: Find out what the graphs say of layers.

    Raises:
        DamagedFileError: The archive contradicts itself; says where.
        UnsupportedFileError: It was written on a big-endian machine, or with another schema.
    """
    archive = ProgramArchive(zipped)
    path = program_record_path(archive)
    metadata = {}
    if path in zipped.records:
        text = zipped.read(path, at_most_bytes=16 << 20)
        metadata[METADATA_KEY] = text.decode("utf-8", "replace")
    several = len(archive.models) > 1
    return Checkpoint(
        sources=(source,),
        kind=_kind(archive),
        container=f"PyTorch ZIP, layout {archive.layout}",
        state_dicts=tuple(
            _state_dict(archive, model, key=model if several else "", with_layers=with_layers)
            for model in archive.models
        ),
        archive=zipped,
        program=archive,
        metadata=metadata,
        advice="" if archive.models else _COMPILED,
    )


def _kind(archive: ProgramArchive) -> str:
    if not archive.models:
        return "package of compiled code (AOTInductor)"
    if len(archive.models) > 1:
        return f"{len(archive.models)} exported programs (torch.export)"
    return "exported program (torch.export)"


def _state_dict(archive: ProgramArchive, model: str, *, key: str, with_layers: bool) -> StateDict:
    with located(f"program {model[:80]!a}"):
        weights = program_tensors(archive, model)
        constants = program_tensors(archive, model, "constants")
        others = [*constants.entries, *constants.unsupported]
        document = archive.program(model)
        storages = storages_of(weights.entries)
        facts = _all_facts(Layers(ProgramGraph(document), storages)) if with_layers else {}
        return StateDict(
            key,
            weights.entries,
            left_out=dict.fromkeys(others, "a constant, or a buffer that is not persistent"),
            layers=facts,
            is_module=True,
            unsupported=weights.unsupported,
        )


def _all_facts(layers: Layers) -> dict[str, LayerFacts]:
    return {name: _facts(layers, layer) for name, layer in layers.by_name.items()}


def _facts(layers: Layers, layer: Layer) -> LayerFacts:
    frozen = layer.live is None and is_frozen(layers, layer)
    return LayerFacts(
        type_name=layer.type_name,
        eps=layer.eps,
        eps_is_unsettled=bool(layer.uses) and layer.eps is None,
        momentum=layer.momentum,
        frozen=frozen,
        code_is_known=True,
        obstacle=obstacle(layers, layer),
        live=layer.live,
        exported_in_training=layer.takes_batch and layer.is_layer,
        is_certain=True,
        spatial_dims=layer.spatial_dims,
        shares_with=layer.shares_with,
    )
