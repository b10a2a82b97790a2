"""Rewrites an archive of exported programs so that chosen layers of one program are frozen.

Everything that is not named in a `Rewriting` goes into the new archive byte for byte.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping

from frozenbn_cli.containers.rewriting import Rewriting
from frozenbn_cli.errors import UnsupportedFileError, located
from frozenbn_cli.exported.batch_norm_layers import Layers
from frozenbn_cli.exported.freezing import FrozenProgram, freeze_program
from frozenbn_cli.exported.program_archive import ProgramArchive
from frozenbn_cli.exported.program_graph import ProgramGraph
from frozenbn_cli.exported.strict_json import json_text

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
        from frozenbn_cli.exported.nested_weights import nested_records  # Of older PyTorch.

        records = nested_records(archive, model, program)
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
