"""Names that a pickled model has no business with: what unpickling it would import or call."""

from __future__ import annotations

from frozenbn_cli.checkpoints.pickled_tensors import TENSOR_FUNCTIONS, TensorFinder
from frozenbn_cli.checkpoints.tensors import DTYPES, dtype_of_storage
from frozenbn_cli.errors import InputError, UnsupportedFileError
from frozenbn_cli.pickles.machine import LOADS_BYTES
from frozenbn_cli.pickles.reader import Pickle
from frozenbn_cli.pickles.values import Global, Value

__all__ = ["foreign_names"]

_QUANTISED = {
    "qint8", "quint8", "qint32", "quint4x2", "quint2x4", "QInt8Storage", "QUInt8Storage",
    "QInt32Storage", "QUInt4x2Storage", "QUInt2x4Storage", "per_tensor_affine",
    "per_channel_affine", "per_tensor_symmetric", "per_channel_symmetric",
    "per_channel_affine_float_qparams",
}  # fmt: skip
# What state dicts and training checkpoints are made of. None of it runs, opens or evaluates
# anything when it is called with arguments out of a pickle.
_MODELS_ARE_MADE_OF = {
    "torch": {"Size", "device", "Tensor", "Generator", "float", "half", *DTYPES, *_QUANTISED},
    "torch.nn.parameter": {"Parameter", "Buffer"},
    "torch._tensor": {"_rebuild_from_type_v2"},
    "torch.serialization": {"_get_layout"},
    "torch.torch_version": {"TorchVersion"},
    "collections": {"OrderedDict", "defaultdict", "Counter", "deque"},
    "numpy": {"ndarray", "dtype", "bool_", "int64", "float64", "float32"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.numeric": {"_frombuffer"},
    "numpy._core.numeric": {"_frombuffer"},
    "_codecs": {"encode"},
    "copy_reg": {"_reconstructor"},
    "copyreg": {"_reconstructor"},
    "functools": {"partial"},
    "argparse": {"Namespace"},
    "pathlib": {"Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath"},
    "datetime": {"date", "datetime", "time", "timedelta"},
}
_BUILTINS = {
    "set", "frozenset", "dict", "list", "tuple", "int", "float", "complex", "bool", "str", "bytes",
    "bytearray", "slice", "range", "object",
}  # fmt: skip


def foreign_names(
    pickle: Pickle, finder: TensorFinder, *, classes_are_expected: bool
) -> dict[str, bool]:
    """Return the names that no model needs, and whether unpickling would call each.

    Args:
        pickle: As it was read.
        finder: Reads the files that it holds as bytes.
        classes_are_expected: Whether the file is a pickled module, which cannot but name its
            classes; then only what would be called as a function counts.
    """
    pickle = _with_loaded(pickle, finder)
    return {
        str(name): name in pickle.calls
        for name in pickle.names
        if not _is_expected(name) and (not classes_are_expected or name in pickle.functions)
    }


def _with_loaded(pickle: Pickle, finder: TensorFinder) -> Pickle:
    """Return the names in a pickle and in the files that it holds as bytes.

    What loads these is no name of its own where it loads nothing but what was read here.
    """
    if not pickle.loaded:
        return pickle
    inner = [_names_loaded(content, finder) for content in pickle.loaded]
    whole = Pickle()
    for other in (pickle, *inner):
        whole.take_names(other or Pickle())
    if all(other and not other.loaded for other in inner):
        whole.names.pop(LOADS_BYTES, None)
    return whole


def _names_loaded(content: Value, finder: TensorFinder) -> Pickle | None:
    """Return what is in a file that a pickle holds as bytes; None where it was not read."""
    try:
        return finder.loaded(content).pickle
    except InputError:
        return None


def _is_expected(name: Global) -> bool:
    if name.module in ("builtins", "__builtin__"):
        return name.name in _BUILTINS
    if name.module == "torch._utils":
        return name.name in TENSOR_FUNCTIONS
    return name.name in _MODELS_ARE_MADE_OF.get(name.module, ()) or _is_storage(name)


def _is_storage(name: Global) -> bool:
    try:
        dtype_of_storage(name.name)
    except UnsupportedFileError:
        return False
    return name.module in ("torch", "torch.cuda", "torch.storage")
