"""Opens TorchScript archives: the state dict in the object tree, and what the code says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from frozenbn_cli.checkpoints.checkpoint import METADATA_KEY, Checkpoint, LayerFacts, StateDict
from frozenbn_cli.checkpoints.pickled_tensors import TensorFinder
from frozenbn_cli.checkpoints.tensors import StoredTensor
from frozenbn_cli.containers.source import ByteSource, Extent
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.errors import UnsupportedFileError, located
from frozenbn_cli.pickles.values import Call
from frozenbn_cli.torchscript.dims_by_use import dims_by_use
from frozenbn_cli.torchscript.script_archive import (
    STATISTICS,
    ScriptArchive,
    ScriptModule,
    find_root,
    is_tensor_call,
    storage_keys,
)
from frozenbn_cli.torchscript.source_code import type_name_of
from frozenbn_cli.torchscript.tensor_flow import follow_tensors
from frozenbn_cli.torchscript.tensors_beside import is_on_meta, joined, other_tensors

__all__ = ["open_torchscript", "record_path"]

_STATISTICS_AND_AFFINE = ("weight", "bias", "running_mean", "running_var")
_WELL_NAMED = ("torch.nn.", "timm.", "frozenbn_cli.nn.")
_USE = "the code that uses it"
_DIMS_IN_NAME = re.compile(r"(?<!\d)([123])[dD](?![a-z])")
_FOLDED = "torch.jit.freeze has folded its layers into the code; convert what it was made of."


def record_path(root: str) -> str:
    """Return where an archive carries the record: as an extra file, in PyTorch's word."""
    return f"{root}extra/{METADATA_KEY}.json"


def open_torchscript(
    source: ByteSource, archive: ZipArchive, *, with_layers: bool = True
) -> Checkpoint:
    """Open a TorchScript archive without running any of it.

    Args:
        source: The file.
        archive: The same as an archive.
        with_layers: Find out what its code says of its layers.

    Raises:
        DamagedFileError: The archive contradicts itself; says where.
        UnsupportedFileError: It was written on a big-endian machine.
    """
    root = find_root(archive)
    order = f"{root}byteorder"
    if order in archive.records and archive.read(order) != b"little":
        raise UnsupportedFileError("written on a big-endian machine, whose bytes are swapped")
    script = ScriptArchive(archive, root)

    def storage(key: str) -> Extent:
        return archive.extent(f"{root}data/{key}")

    metadata = {}
    if record_path(root) in archive.records:
        text = archive.read(record_path(root), at_most_bytes=16 << 20)
        metadata[METADATA_KEY] = text.decode("utf-8", "replace")
    how = "scripted" if script.is_scripted else "traced"
    return Checkpoint(
        sources=(source,),
        kind=f"TorchScript archive, {how}",
        container="PyTorch ZIP",
        state_dicts=(_state_dict(script, TensorFinder(storage), with_layers=with_layers),),
        archive=archive,
        script=script,
        metadata=metadata,
        advice=_FOLDED if script.is_folded else "",
    )


def _state_dict(script: ScriptArchive, finder: TensorFinder, *, with_layers: bool) -> StateDict:
    """Return what ``state_dict()`` of the loaded module would be."""
    entries: dict[str, StoredTensor] = {}
    unsupported: dict[str, str] = {}
    found: set[int] = set()
    for module in script.all_modules:
        for role in (*module.source.listed("__parameters__"), *module.source.listed("__buffers__")):
            value = module.attributes.get(role)
            if not isinstance(value, Call) or not is_tensor_call(value) or is_on_meta(value):
                continue
            name = joined(module.name, role)
            found.add(id(value))
            with located(f"entry {name!a}"):
                finder.names.take(name, value)
                try:
                    entries[name] = finder.tensor(value)
                except UnsupportedFileError as error:
                    unsupported[name] = error.problem
    facts: dict[str, LayerFacts] = {}
    if with_layers:
        facts = _all_facts(script)
        _complete(facts, entries)
    return StateDict(
        "",
        entries,
        layers=facts,
        is_module=True,
        unsupported=unsupported,
        left_out=dict(other_tensors(script, found)),
    )


def _all_facts(script: ScriptArchive) -> dict[str, LayerFacts]:
    """Return what the archive says of each layer, and of what else goes on normalising."""
    layers = [module for module in script.modules if _is_layer(module)]
    shared = _shared(layers)
    flow = follow_tensors(script)
    obstacles = flow.obstacles(script)
    facts = {
        module.name: _facts(
            script,
            module,
            obstacles.get(id(module.value)),
            shared.get(module.name, frozenset()),
        )
        for module in layers
    }
    _settle_dimensions(script, layers, facts)
    for module in script.all_modules:
        if module.restorer and (_is_layer(module) or module.source.mentions(b"batch_norm")):
            facts[module.name] = _restored_facts(module)
        elif module.name not in facts and (said := _incomplete(module) or flow.live(module)):
            facts[module.name] = LayerFacts(module.type_name, code_is_known=True, live=said)
    return facts


def _incomplete(module: ScriptModule) -> str | None:
    """Return what a module with one of both statistics is: no BatchNorm, such as EvoNorm."""
    there = [role for role in STATISTICS if is_tensor_call(module.attributes.get(role))]
    if len(there) != 1:
        return None
    return f"{module.type_name} normalises by a {there[0]} alone, and is no BatchNorm"


def _settle_dimensions(
    script: ScriptArchive, layers: Iterable[ScriptModule], facts: dict[str, LayerFacts]
) -> None:
    """Give layers whose code checks no dimensions those that their class or their use shows.

    A trace and a class of the user's often check none.
    """
    open_ones = [layer for layer in layers if facts[layer.name].spatial_dims is None]
    unnamed = {
        id(layer.value) for layer in open_ones if not layer.type_name.startswith(_WELL_NAMED)
    }
    used = dims_by_use(script, unnamed) if unnamed else {}
    for layer in open_ones:
        named = _DIMS_IN_NAME.search(layer.type_name.rpartition(".")[2])
        by_use = used.get(id(layer.value))
        dims = by_use or (int(named[1]) if named else None)
        source = _USE if by_use else None
        facts[layer.name] = replace(facts[layer.name], spatial_dims=dims, dims_source=source)


def _restored_facts(module: ScriptModule) -> LayerFacts:
    said = f"{type_name_of(module.restorer or '')} makes its attributes by code (__setstate__)"
    return LayerFacts(
        type_name=module.type_name,
        channels=module.source.constant("num_features"),
        code_is_known=True,
        obstacle=said,
        live=None if module.has_statistics else f"it normalises, and {said}",
    )


def _is_layer(module: ScriptModule) -> bool:
    return module.has_statistics or "BatchNorm" in module.type_name.rpartition(".")[2]


def _facts(
    script: ScriptArchive, module: ScriptModule, obstacle: str | None, shared: frozenset[str]
) -> LayerFacts:
    code = script.batch_norm_code(module)
    return LayerFacts(
        type_name=module.type_name,
        channels=module.source.constant("num_features"),
        # What the class calls its eps may not be what its code uses.
        eps=code.eps if code.calls else _constant(module, "eps"),
        eps_is_unsettled=code.calls > 0 and code.eps is None,
        momentum=code.momentum,
        frozen=module.may_be_frozen and not (code.is_live or obstacle),
        code_is_known=True,
        obstacle=code.obstacle or obstacle,
        always_batch_statistics=code.always_batch_statistics,
        spatial_dims=code.spatial_dims,
        shares_with=shared,
    )


def _complete(facts: dict[str, LayerFacts], entries: Mapping[str, StoredTensor]) -> None:
    """Give layers without code the numbers of the one with code that is the same layer.

    Of a layer under two names, a trace holds the code under one of them.
    """
    places = {name: _place_of_statistics(name, entries) for name in facts}
    known = {places[name]: found for name, found in facts.items() if found.eps is not None}
    for name, found in facts.items():
        if found.eps is None and places[name] and (other := known.get(places[name])):
            facts[name] = replace(found, eps=other.eps, momentum=other.momentum)


def _place_of_statistics(
    name: str, entries: Mapping[str, StoredTensor]
) -> tuple[tuple[int, int, tuple[int, ...]], ...]:
    """Return where the statistics of a layer lie in the file; empty if they are not there."""
    prefix = f"{name}." if name else ""
    tensors = [entries.get(prefix + role) for role in STATISTICS]
    return tuple((id(item.storage), item.offset, item.shape) for item in tensors if item)


def _constant(module: ScriptModule, name: str) -> float | None:
    value = module.attributes.get(name, module.source.constant(name))
    return float(value) if type(value) in (int, float) and 0 <= value < 1e30 else None


def _shared(layers: Iterable[ScriptModule]) -> dict[str, frozenset[str]]:
    """Return, for each layer that shares a storage with others, the names of all of them.

    A layer under two names is two objects that share tensors.
    """
    groups: dict[str, set[str]] = {}
    first: dict[str, str] = {}
    for layer in layers:
        group = groups.setdefault(layer.name, {layer.name})
        for role in _STATISTICS_AND_AFFINE:
            for key in storage_keys(layer.attributes.get(role)):
                other = groups[first.setdefault(key, layer.name)]
                if other is not group:
                    smaller, group = sorted((other, group), key=len)
                    group |= smaller
                    groups |= dict.fromkeys(smaller, group)
    # All of a group have one set, in which each is its own neighbour too.
    frozen = {id(group): frozenset(group) for group in groups.values()}
    return {name: frozen[id(group)] for name, group in groups.items() if len(group) > 1}
