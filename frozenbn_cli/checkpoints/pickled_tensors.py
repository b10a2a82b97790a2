"""Finds tensors among inert values: the calls to ``torch._utils._rebuild_…`` that would make them.

See ``torch/_utils.py`` and ``Tensor.__reduce_ex__`` for what each call carries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from frozenbn_cli.checkpoints.numpy_values import array, bytes_of, is_array
from frozenbn_cli.checkpoints.tensors import (
    DTYPES,
    DType,
    StoredTensor,
    dtype_of_storage,
)
from frozenbn_cli.containers.legacy_stream import LegacyStream
from frozenbn_cli.containers.source import BytesExtent, Extent, FileExtent
from frozenbn_cli.errors import DamagedFileError, UnsupportedFileError, located
from frozenbn_cli.pickles.machine import LOADS_BYTES
from frozenbn_cli.pickles.names import NameBudget
from frozenbn_cli.pickles.reader import Pickle
from frozenbn_cli.pickles.values import Call, Global, LongBytes, PersistentId, Value, describe

__all__ = ["TENSOR_FUNCTIONS", "TensorFinder", "bare_tensor", "is_tensor", "storage_element_sizes"]

_MAX_WRAPPERS = 8
_STORAGE_MODULES = ("torch", "torch.cuda", "torch.storage")


def storage_element_sizes(pickle: Pickle) -> dict[str, int]:
    """Return the bytes per element of each storage that a pickle refers to, by key."""
    sizes: dict[str, int] = {}
    for reference in pickle.persistent_ids:
        if _is_storage_id(reference):
            dtype, key, _ = _storage_id(reference)
            sizes[key] = dtype.item_bytes
    return sizes


def is_tensor(value: Value) -> bool:
    """Return whether ``value`` would become a tensor or parameter, of any layout."""
    return isinstance(value, Call) and (_name(value) in TENSOR_FUNCTIONS or is_array(value))


def bare_tensor(value: Value) -> Value:
    """Return the tensor inside a parameter; all else as it is."""
    for _ in range(_MAX_WRAPPERS):
        if not (isinstance(value, Call) and _name(value).startswith("_rebuild_parameter")):
            break
        value = _first(value.arguments)
    return value


class TensorFinder:
    """Turns inert values into stored tensors.

    Args:
        storage: Returns the bytes of a storage by its key.
        left_bytes: Returns bytes that the reader of the pickle left in the file.

    Attributes:
        names: Bounds the names of the file's modules and tensors.
    """

    def __init__(
        self,
        storage: Callable[[str], Extent],
        left_bytes: Callable[[LongBytes], Extent] = lambda _: BytesExtent(b""),
    ) -> None:
        self._storage = storage
        self._left_bytes = left_bytes
        self._extents: dict[str, Extent] = {}
        # By identity, with what it is of, which has to stay alive.
        self._loaded: dict[int, tuple[Value, LegacyStream]] = {}
        self.names = NameBudget()

    def tensor(self, value: Call) -> StoredTensor:
        """Return the tensor that ``value`` stands for.

        Raises:
            DamagedFileError: The call's arguments are not those of a tensor.
            UnsupportedFileError: The tensor is sparse, quantised, nested or on no device.
        """
        if is_array(value):
            return array(value, self._left_bytes)
        for _ in range(_MAX_WRAPPERS):
            name = _name(value)
            if name in _OTHER_LAYOUTS:
                raise UnsupportedFileError(f"a {_OTHER_LAYOUTS[name]} tensor")
            if name not in _WRAPPERS:
                return self._dense(value)
            inner = _WRAPPERS[name](value.arguments)
            if not isinstance(inner, Call) or not is_tensor(inner):
                raise DamagedFileError(expected="a tensor", found=describe(inner))
            value = inner
        raise DamagedFileError(f"a tensor wrapped more than {_MAX_WRAPPERS} times")

    def _dense(self, call: Call) -> StoredTensor:
        arguments = call.arguments
        embedded = bool(arguments) and _is_embedded(arguments[0])
        if len(arguments) < 4 or not (embedded or isinstance(arguments[0], PersistentId)):
            raise DamagedFileError(
                "a tensor", expected="storage, offset, size, stride", found=describe(arguments)
            )
        typed = self._embedded_storage if embedded else self._typed_storage
        dtype, extent = typed(arguments[0])
        if _name(call) == "_rebuild_tensor_v3":
            dtype = _dtype_named(arguments[6] if len(arguments) > 6 else None)
            metadata = arguments[7] if len(arguments) > 7 else None
        else:
            metadata = arguments[6] if len(arguments) > 6 else None
        offset, shape, strides = arguments[1:4]
        if not isinstance(shape, tuple) or not isinstance(strides, tuple):
            raise DamagedFileError("a tensor's size", expected="a tuple", found=describe(shape))
        marks = metadata if isinstance(metadata, dict) else {}
        if marks.get("neg"):
            raise UnsupportedFileError("a tensor with its negative bit set")
        return StoredTensor(dtype, shape, strides, offset, extent, bool(marks.get("conj")))

    def _typed_storage(self, reference: PersistentId) -> tuple[DType, Extent]:
        dtype, key, elements = _storage_id(reference)
        if key not in self._extents:
            self._extents[key] = self._storage(key)
        extent = self._extents[key]
        view = reference.value[5] if len(reference.value) > 5 else None
        if view is not None:
            return dtype, _view(extent, view, dtype)
        if elements * dtype.item_bytes != extent.size_bytes:
            raise DamagedFileError(
                f"storage {key!a}",
                expected=f"{elements:,} elements of {dtype}",
                found=f"{extent.size_bytes:,} bytes",
            )
        return dtype, extent

    def loaded(self, content: Value) -> LegacyStream:
        """Return the file that bytes in a pickle hold, as which PyTorch would load them.

        Raises:
            InputError: They are no bytes, or no file of this kind.
        """
        if id(content) not in self._loaded:
            with located("a storage"):
                whole = bytes_of(content, self._left_bytes)
                stream = LegacyStream.read(whole, storage_element_sizes)
            self._loaded[id(content)] = content, stream
        return self._loaded[id(content)][1]

    def _embedded_storage(self, call: Call) -> tuple[DType, Extent]:
        """Return the storage that a pickle without storages of its own holds as a whole file."""
        stream = self.loaded(call.arguments[0])
        reference = stream.pickle.value
        with located("a storage"):
            if not isinstance(reference, PersistentId):
                raise DamagedFileError(expected="a storage", found=describe(reference))
            return TensorFinder(stream.storages.__getitem__)._typed_storage(reference)


def _is_embedded(value: Value) -> bool:
    return isinstance(value, Call) and value.function == LOADS_BYTES and len(value.arguments) == 1


def _view(extent: Extent, view: Value, dtype: DType) -> Extent:
    """Return the part of a legacy storage that a view of it names: key, offset, size."""
    if (
        not isinstance(view, tuple)
        or len(view) != 3
        or not all(type(number) is int and number >= 0 for number in view[1:])
        or (view[1] + view[2]) * dtype.item_bytes > extent.size_bytes
        or not isinstance(extent, FileExtent)
    ):
        raise DamagedFileError("a view of a storage", found=describe(view))
    start = extent.start + view[1] * dtype.item_bytes
    return FileExtent(extent.source, start, view[2] * dtype.item_bytes)


def _is_storage_id(reference: PersistentId) -> bool:
    value = reference.value
    return isinstance(value, tuple) and len(value) >= 5 and value[0] == "storage"


def _storage_id(reference: PersistentId) -> tuple[DType, str, int]:
    """Return dtype, key and number of elements of ``('storage', type, key, location, numel)``."""
    if not _is_storage_id(reference):
        raise DamagedFileError(expected="a storage", found=describe(reference.value))
    _, kind, key, _, elements = reference.value[:5]
    if not isinstance(key, str):
        raise DamagedFileError(expected="a storage key", found=describe(key))
    if type(elements) is not int or not 0 <= elements < 1 << 63:
        raise DamagedFileError(
            f"storage {key!a}", expected="a number of elements", found=describe(elements)
        )
    if not isinstance(kind, Global) or kind.module not in _STORAGE_MODULES:
        raise DamagedFileError(f"storage {key!a}", expected="a storage type", found=describe(kind))
    return dtype_of_storage(kind.name), key, elements


def _dtype_named(value: Value) -> DType:
    if isinstance(value, Global) and value.module == "torch" and value.name in DTYPES:
        return DTYPES[value.name]
    raise UnsupportedFileError(f"dtype {describe(value)} is not supported")


def _name(call: Call) -> str:
    return call.function.name if call.function.module in ("torch._utils", "torch._tensor") else ""


def _first(arguments: tuple[Value, ...]) -> Value:
    return arguments[0] if arguments else None


def _from_type(arguments: tuple[Value, ...]) -> Value:
    """Return the call inside ``_rebuild_from_type_v2(function, type, arguments, state)``."""
    if len(arguments) == 4 and isinstance(arguments[0], Global) and isinstance(arguments[2], tuple):
        return Call(arguments[0], arguments[2])
    return None


_DENSE = {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"}
_WRAPPERS: Mapping[str, Callable[[tuple[Value, ...]], Value]] = {
    "_rebuild_parameter": _first,
    "_rebuild_parameter_with_state": _first,
    "_rebuild_from_type_v2": _from_type,
}
_OTHER_LAYOUTS = {
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_sparse_csr_tensor": "sparse",
    "_rebuild_qtensor": "quantised",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_meta_tensor_no_storage": "meta (shape without values)",
    "_rebuild_device_tensor_from_numpy": "device (XLA, MAIA or HPU)",
    "_rebuild_device_tensor_from_cpu_tensor": "device (XLA, MAIA or HPU)",
    "_rebuild_xla_tensor": "device (XLA)",
    "_rebuild_xlatensor": "device (XLA)",
    "_rebuild_wrapper_subclass": "wrapper subclass",
}
TENSOR_FUNCTIONS = _DENSE | _WRAPPERS.keys() | _OTHER_LAYOUTS.keys()
"""The functions of PyTorch that rebuild tensors, whose names are whitelisted."""
