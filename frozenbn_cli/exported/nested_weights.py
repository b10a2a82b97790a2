"""The weights of a program that lie in a file of `torch.save`, as layouts A and B have them."""

from __future__ import annotations

from frozenbn_cli.containers.source import Extent, stream
from frozenbn_cli.errors import UnsupportedFileError
from frozenbn_cli.exported.freezing import FrozenProgram
from frozenbn_cli.exported.program_archive import ProgramArchive
from frozenbn_cli.pickles.reader import read_pickle
from frozenbn_cli.pickles.tensor_calls import referred_storages, without_gradient
from frozenbn_cli.pickles.values import Call, Value, items_of
from frozenbn_cli.pickles.writer import write_pickle

__all__ = ["nested_records"]


def nested_records(
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
