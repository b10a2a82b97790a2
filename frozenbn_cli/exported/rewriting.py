"""Rewrites an archive of exported programs so that chosen layers of one program are frozen.

Everything that is not named in a `Rewriting` goes into the new archive byte for byte.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping

from frozenbn_cli.containers.rewriting import Rewriting
from frozenbn_cli.containers.source import Extent, stream
from frozenbn_cli.errors import UnsupportedFileError, located
from frozenbn_cli.exported.batch_norm_layers import Layers
from frozenbn_cli.exported.freezing import FrozenProgram, freeze_program
from frozenbn_cli.exported.program_archive import ProgramArchive
from frozenbn_cli.exported.program_graph import ProgramGraph
from frozenbn_cli.exported.strict_json import json_text
from frozenbn_cli.pickles.reader import read_pickle
from frozenbn_cli.pickles.tensor_calls import referred_storages, without_gradient
from frozenbn_cli.pickles.values import Call, Value, items_of
from frozenbn_cli.pickles.writer import write_pickle

__all__ = ["rewrite_program"]


def rewrite_program(
    archive: ProgramArchive, model: str, storages: Mapping[str, Hashable], frozen: Collection[str]
) -> Rewriting:
    """Return how an archive changes when layers of one of its programs are frozen.

    Args:
        archive: The archive.
        model: The program.
        storages: What stands for the storage of each of its weights, by name.
        frozen: Names of layers that have no obstacle; of a layer with several names, all.

    Raises:
        UnsupportedFileError: The archive holds what this edit would contradict or cannot keep.
    """
    _check_editable(archive, model)
    record = archive.program_record(model)
    document = archive.program(model)
    with located(f"record {record}"):
        if json_text(document) != archive.program_text(model):
            raise UnsupportedFileError(
                "JSON that PyTorch would have written otherwise, so that an edit would change more",
                advice="Load it with torch.export.load and save it with torch.export.save.",
            )
    program = freeze_program(document, Layers(ProgramGraph(document), storages), frozen)
    replaced = {record: json_text(document)}
    if nested := archive.nested_record(model, "weights"):
        records = _nested_records(archive, model, program)
        return Rewriting(replaced, frozenset(), program.kept_counts, {nested: records})
    config, dropped = _edited_config(archive, model, program)
    replaced[archive.config_record(model, "weights")] = config
    return Rewriting(replaced, dropped, program.kept_counts)


def _check_editable(archive: ProgramArchive, model: str) -> None:
    if archive.has_compiled_code:
        raise UnsupportedFileError(
            "code that was compiled from the program, which would go on as before",
            advice="Convert the program as it was before torch._inductor compiled it.",
        )
    if archive.nested_record(model, "weights") is None:
        pickled = [
            name for name, item in archive.payloads(model, "weights").items() if item.is_pickled
        ]
        if pickled:
            raise UnsupportedFileError(
                f"weight {pickled[0][:80]!a} is a pickle that only loading would read",
                advice="Save the program with weights that are plain tensors.",
            )


def _edited_config(
    archive: ProgramArchive, model: str, program: FrozenProgram
) -> tuple[bytes, frozenset[str]]:
    """Return the record that says where each tensor lies, and the records that nothing names."""
    document = archive.config(model, "weights")
    before = {item.record for item in archive.payloads(model, "weights").values()}
    entries = document["config"]
    for name in program.dropped:
        entries.pop(name, None)
    for name in program.affine & entries.keys():
        entries[name]["is_param"] = False
        entries[name]["tensor_meta"]["requires_grad"] = False
    prefix = f"{archive.root}data/weights/"
    after = {prefix + entry["path_name"] for entry in entries.values()}
    for other in archive.models:
        if other != model and archive.nested_record(other, "weights") is None:
            after |= {item.record for item in archive.payloads(other, "weights").values()}
    return json_text(document), frozenset(before - after)


def _nested_records(
    archive: ProgramArchive, model: str, program: FrozenProgram
) -> dict[str, bytes | Extent]:
    """Return the records of the file of `torch.save` that holds the weights."""
    nested = archive.nested(model, "weights")
    if nested is None:
        raise UnsupportedFileError("a program without weights")
    pickled = next(name for name in nested.records if name.endswith("/data.pkl"))
    prefix = f"{pickled.removesuffix('data.pkl')}data/"
    pickle = read_pickle(stream(nested.extent(pickled)))
    before = set(referred_storages(pickle.value))
    value = _edited_weights(pickle.value, program)
    lost = {prefix + key for key in before.difference(referred_storages(value))}
    return {
        name: write_pickle(value) if name == pickled else nested.extent(name)
        for name in nested.records
        if name not in lost
    }


def _edited_weights(value: Value, program: FrozenProgram) -> Value:
    pairs: list[tuple[Value, Value]] = [
        (name, _as_buffer(tensor) if name in program.affine else tensor)
        for name, tensor in items_of(value) or ()
        if name not in program.dropped
    ]
    if not isinstance(value, Call):
        return dict(pairs)
    return Call(value.function, (), items=pairs, state=value.state, has_state=value.has_state)


def _as_buffer(value: Value) -> Value:
    """Return the tensor in a parameter's call, which asks for no gradient."""
    while isinstance(value, Call) and value.function.name.startswith("_rebuild_parameter"):
        value = value.arguments[0] if value.arguments else None
    if not isinstance(value, Call):
        raise UnsupportedFileError("a parameter that is no plain tensor")
    return without_gradient(value)
