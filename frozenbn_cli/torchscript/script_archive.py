"""A TorchScript archive, open: its object tree, and the classes of its objects.

``data.pkl`` holds the object tree: each module is its class (NEWOBJ) and a dict of its attributes
(BUILD), tensors, child modules and plain values alike. ``code/`` holds the classes. See
``torch/csrc/jit/docs/serialization.md``.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from frozenbn_cli.containers.source import stream
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.errors import DamagedFileError, UnsupportedFileError, located
from frozenbn_cli.pickles.names import NameBudget
from frozenbn_cli.pickles.reader import Pickle, read_pickle
from frozenbn_cli.pickles.values import Call, Global, PersistentId, Value, describe
from frozenbn_cli.torchscript.batch_norm_code import BatchNormCode, read_batch_norm_code
from frozenbn_cli.torchscript.frozen_classes import may_be_frozen_class
from frozenbn_cli.torchscript.restoring import restored_attributes
from frozenbn_cli.torchscript.source_code import ClassSource, CodeFile, file_of, type_name_of

__all__ = [
    "STATISTICS",
    "ScriptArchive",
    "ScriptModule",
    "find_root",
    "is_tensor_call",
    "module_at",
    "storage_keys",
]

STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True, slots=True)
class ScriptModule:
    """One module object under one of its names.

    Attributes:
        name: From the root, with dots; empty for the root.
        value: Its object in the pickle.
        source: Its class.
        attributes: By name; of a module that restores itself, those that are known.
        restorer: The module that makes it by code of its own, itself perhaps; None for most.
    """

    name: str
    value: Call
    source: ClassSource
    attributes: Mapping[str, Value]
    restorer: str | None = None

    @property
    def has_statistics(self) -> bool:
        """Whether it holds running statistics."""
        return all(is_tensor_call(self.attributes.get(role)) for role in STATISTICS)

    @property
    def type_name(self) -> str:
        """The Python class that it was made from."""
        return type_name_of(self.source.name)

    @property
    def may_be_frozen(self) -> bool:
        """Whether it is called as a frozen BatchNorm is."""
        return self.has_statistics and may_be_frozen_class(self.type_name)


def is_tensor_call(value: Value) -> bool:
    """Return whether a value would become a tensor."""
    return isinstance(value, Call) and value.function.module == "torch._utils"


def module_at(value: Call, path: tuple[str, ...]) -> Call | None:
    """Return the module whose attribute a path from ``self`` ends in; None if it leads nowhere."""
    if path[0] != "self":
        return None
    current: Value = value
    for attribute in path[1:-1]:
        if not isinstance(current, Call) or not isinstance(current.state, dict):
            return None
        current = current.state.get(attribute)
    return current if isinstance(current, Call) else None


def storage_keys(value: Value) -> Iterator[str]:
    """Yield the keys of the storages that a tensor's call refers to."""
    if isinstance(value, Call) and value.arguments:
        reference = value.arguments[0]
        if isinstance(reference, PersistentId) and isinstance(reference.value, tuple):
            yield str(reference.value[2])


class ScriptArchive:
    """The object tree and the code of an archive; files of code are parsed when they are needed.

    Attributes:
        all_modules: Every module under each of its names, parents before children.
        modules: Those that lie in the archive as they are, which others restore by code.

    Args:
        archive: The archive.
        root: Its one folder, with a slash.

    Raises:
        DamagedFileError: A record contradicts the format; says where.
    """

    def __init__(self, archive: ZipArchive, root: str) -> None:
        self.archive = archive
        self.root = root
        self._files: dict[str, CodeFile] = {}
        self._codes: dict[Value, BatchNormCode] = {}
        record = f"{root}data.pkl"
        archive.check(record)
        with located(f"record {record}"):
            self.pickle = read_pickle(stream(archive.extent(record)), from_torchscript=True)
            if not isinstance(self.pickle.value, Call):
                raise DamagedFileError(expected="a module", found=describe(self.pickle.value))
        self.all_modules = tuple(self._walk())
        self.modules = tuple(module for module in self.all_modules if module.restorer is None)

    def parameters(self) -> Iterator[tuple[str, Value]]:
        """Yield every parameter under each of its names."""
        for module in self.modules:
            prefix = f"{module.name}." if module.name else ""
            for role in module.source.listed("__parameters__"):
                yield f"{prefix}{role}", module.attributes.get(role)

    def read_constants(self) -> Pickle:
        """Return the constants that the code refers to: tensors, and whatever text cannot say.

        Raises:
            DamagedFileError: They contradict the format; says where.
        """
        record = f"{self.root}constants.pkl"
        self.archive.check(record)
        with located(f"record {record}"):
            return read_pickle(stream(self.archive.extent(record)), from_torchscript=True)

    @property
    def code_paths(self) -> list[str]:
        """The files of code, below ``code/``."""
        prefix = f"{self.root}code/"
        return [
            name.removeprefix(prefix)
            for name in self.archive.records
            if name.startswith(prefix) and name.endswith(".py")
        ]

    def text(self, path: str) -> bytes:
        """Return the text of a file of code."""
        return self.archive.read(f"{self.root}code/{path}", at_most_bytes=64 << 20)

    def file(self, path: str) -> CodeFile:
        """Return a file of code, parsed."""
        if path not in self._files:
            with located(f"record {self.root}code/{path}"):
                self._files[path] = CodeFile(path, self.text(path))
        return self._files[path]

    def class_named(self, name: str) -> ClassSource | None:
        """Return the class of a qualified name; None if the archive does not hold it."""
        file = self._file_of(name)
        return file.classes.get(name) if file else None

    def function(self, name: str) -> ast.FunctionDef | None:
        """Return the function of a qualified name; None if the archive does not hold it."""
        file = self._file_of(name)
        return file.functions.get(name) if file else None

    def _file_of(self, name: str) -> CodeFile | None:
        path = file_of(name)
        return self.file(path) if f"{self.root}code/{path}" in self.archive.records else None

    def class_of(self, value: Value) -> ClassSource | None:
        """Return the class of a module object; None for any other value.

        Raises:
            DamagedFileError: The archive does not hold the class.
        """
        if not isinstance(value, Call) or not value.is_new:
            return None
        name = _qualified(value.function)
        if not name.startswith("__torch__.") or name.startswith("__torch__.torch.classes."):
            return None
        source = self.class_named(name)
        if source is None:
            raise DamagedFileError(f"the code of {name!a} is missing, in code/{file_of(name)}")
        return source if source.is_module else None

    def _walk(self) -> Iterator[ScriptModule]:
        """Yield every module under each of its names, parents before children."""
        waiting: list[tuple[str, Value, int, str | None]] = [("", self.pickle.value, 0, None)]
        names = NameBudget()
        while waiting:
            name, value, depth, restorer = waiting.pop()
            source = self.class_of(value)
            if source is None:
                if not name:
                    raise DamagedFileError(expected="a module", found=describe(value))
                continue
            names.take(name, value, depth)
            if source.restores_itself:
                restorer = source.name
                attributes = restored_attributes(source, value.state)
            else:
                _check_attributes(source, value)
                attributes = value.state
            yield ScriptModule(name, value, source, attributes, restorer)
            prefix = f"{name}." if name else ""
            children = [
                (f"{prefix}{child}", part, depth + 1, restorer)
                for child, part in attributes.items()
                if isinstance(part, Call) and part.is_new
            ]
            waiting += reversed(children)

    def batch_norm_code(self, module: ScriptModule) -> BatchNormCode:
        """Return what a module's class does with `batch_norm`."""
        # An eps that is no constant of the class differs from object to object.
        numbers = [item for item in module.attributes.items() if type(item[1]) is float]
        key = (module.source.name, *numbers)
        if key not in self._codes:
            self._codes[key] = read_batch_norm_code(module.source, module.attributes)
        return self._codes[key]

    @property
    def is_scripted(self) -> bool:
        """Whether there is what only scripting leaves behind: constants of a class."""
        sources = {module.source.name: module.source for module in self.all_modules}
        return any(source.is_scripted for source in sources.values())

    @property
    def is_folded(self) -> bool:
        """Whether it comes from `torch.jit.freeze`, which leaves nothing that could be trained."""
        return bool(self.modules) and "training" not in self.modules[0].attributes


def _qualified(name: Global) -> str:
    return f"{name.module}.{name.name}"


def _check_attributes(source: ClassSource, value: Call) -> None:
    """Refuse an object whose tensors are not where its class says: PyTorch loads it silently."""
    if not isinstance(value.state, dict):
        raise DamagedFileError(
            f"an object of {source.name}", expected="its attributes", found=describe(value.state)
        )
    for name, part in value.state.items():
        if not isinstance(name, str):
            raise DamagedFileError("an attribute's name", expected="text", found=describe(name))
        annotation = source.annotation(name)
        if not annotation:
            raise DamagedFileError(f"{source.name} has no attribute {name!a}")
        if annotation == "Tensor" and not is_tensor_call(part):
            raise DamagedFileError(
                f"{source.name}.{name}", expected="a tensor", found=describe(part)
            )


def find_root(archive: ZipArchive) -> str:
    """Return the one folder of a TorchScript archive, with a slash.

    Raises:
        UnsupportedFileError: There is none, or several.
    """
    roots = {name.partition("/")[0] for name in archive.records}
    if len(roots) != 1:
        raise UnsupportedFileError(
            "a ZIP archive that PyTorch did not write", found=", ".join(sorted(roots)[:3])
        )
    return f"{roots.pop()}/"
