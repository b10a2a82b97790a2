"""A model named on the command line: ``package.module:callable`` or ``path/file.py:callable``."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import reduce
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from frozenbn_cli.errors import UsageError, located
from frozenbn_cli.importing import importable
from frozenbn_cli.wording import is_it

__all__ = [
    "AUTO",
    "ModelTarget",
    "called",
    "folder_of",
    "identity_of_model",
    "is_recognised",
    "name_of_model",
    "named_object",
    "no_model_wanted",
]

AUTO = "auto"
"""Stands for the model that the layers of a file are recognised as."""


@dataclass(frozen=True, slots=True)
class ModelTarget:
    """What builds a model: call it for a new one.

    Attributes:
        target: ``package.module:callable`` or ``path/file.py:callable``; the callable is a class or
            a function, and may be an attribute of one (``module:Class.method``).
        arguments: Its keyword arguments.
        option: What named it.
    """

    target: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    option: str = "--model"

    def __post_init__(self) -> None:
        module, _, name = self.target.rpartition(":")
        if not module or not name:
            raise UsageError(
                where=(f"{self.option} {self.target}",),
                expected="package.module:callable or path/file.py:callable",
                advice=_with_a_colon(self.target),
            )

    def __call__(self, *given: Any) -> Any:
        """Return what the callable returns, for what it is given.

        Raises:
            UsageError: There is no such module or callable; what it raises itself is passed on.
        """
        # The callable may import what lies beside it only when it is called.
        with importable(folder_of(self.target)):
            return self._found()(*given, **self.arguments)

    def __str__(self) -> str:
        return self.target

    @property
    def identity(self) -> str:
        """What tells it from another, also on another machine: the file's text, not its folder."""
        module, _, name = self.target.rpartition(":")
        shown, text = module, b""
        if module.endswith(".py"):
            shown = Path(module).name
            with suppress(OSError):
                text = Path(module).read_bytes()
        arguments = json.dumps(dict(self.arguments), sort_keys=True, default=repr)
        digest = hashlib.sha256(text + arguments.encode()).hexdigest()
        return f"{shown}:{name} {digest[:16]}"

    @property
    def python(self) -> tuple[str, str]:
        """How it is built in Python: an import, and a call; empty for a file elsewhere."""
        module, _, name = self.target.rpartition(":")
        if module.endswith(".py"):
            if folder_of(self.target) != Path.cwd() or not Path(module).stem.isidentifier():
                return "", ""
            module = Path(module).stem
        return f"from {module} import {name.partition('.')[0]}", called(name, self.arguments)

    def anywhere(self) -> ModelTarget:
        """Return the same target for a process that runs in another folder."""
        module, _, name = self.target.rpartition(":")
        if not module.endswith(".py"):
            return self
        return replace(self, target=f"{Path(module).absolute()}:{name}")

    def _found(self) -> Any:
        with located(f"{self.option} {self.target}"):
            found = named_object(self.target)
            if not callable(found):
                name = self.target.rpartition(":")[2]
                raise UsageError(expected=f"{name} to be callable", found=type(found).__name__)
            return found


def named_object(target: str) -> Any:
    """Return what is called ``package.module:name`` or ``path/file.py:name``; runs that module.

    Raises:
        UsageError: There is no such module or name; what the module raises itself is passed on.
    """
    module, _, name = target.rpartition(":")
    if not module or not name:
        raise UsageError(
            expected="package.module:callable or path/file.py:callable",
            advice=_with_a_colon(target),
        )
    try:
        return reduce(getattr, name.split("."), _module(module))
    except AttributeError as error:
        near = is_it(name, dir(_module(module)))
        raise UsageError(f"{module} has no {name}", advice=near) from error


def folder_of(target: str) -> Path:
    """Return the folder in which the module of a target looks for others."""
    module = target.rpartition(":")[0]
    return Path(module).resolve().parent if module.endswith(".py") else Path.cwd()


def _with_a_colon(target: str) -> str:
    """Return what a target without a colon may have meant; empty if nothing is near."""
    if target.endswith(".py"):
        return f"Name a function in it: {target}:FUNCTION."
    module, _, name = target.rstrip(":").rpartition(".")
    if module and name:
        return f"Is it {module}:{name}?"
    import difflib

    from frozenbn_cli.architectures.index import Index

    by_name: dict[str, dict[str, None]] = {AUTO: {AUTO: None}}
    for one in Index.installed().architectures:
        by_name.setdefault(one.name, {})[f"{one.library}:{one.name}"] = None
    near = difflib.get_close_matches(target, by_name, 1)
    return f"Is it {' or '.join(by_name[near[0]])}?" if near else ""


def _module(name: str) -> ModuleType:
    if name.endswith(".py"):
        return _module_of_file(Path(name))
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"{name} cannot be imported ({error})",
            advice="Is it installed, or in the current folder?",
        ) from error


def _module_of_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    name = f"frozenbn_model_{path.stem}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path):
        return known
    module = ModuleType(name)
    module.__file__ = str(path)
    # Dataclasses and pickle look a class's module up by its name.
    sys.modules[name] = module
    try:
        SourceFileLoader(name, str(path)).exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, (ImportError, SyntaxError)):
            raise UsageError(f"{path} cannot be imported ({error})") from error
        raise
    return module


def no_model_wanted() -> UsageError:
    """Return the error for a model beside archives alone, which say themselves what they are."""
    return UsageError(
        "a model is given, and an archive of code or a graph holds its own",
        advice="Leave --model out.",
    )


def called(name: str, arguments: Mapping[str, Any], first: str = "") -> str:
    """Return the Python text of a call."""
    given = [first] if first else []
    given += [f"{argument}={value!r}" for argument, value in arguments.items()]
    return f"{name}({', '.join(given)})"


def name_of_model(model: object) -> str:
    """Return what to call that which builds a model; empty for None."""
    if model is None:
        return ""
    return str(model) if hasattr(model, "identity") else getattr(model, "__name__", repr(model))


def is_recognised(model: object) -> bool:
    """Return whether nobody said that a file is of this model but the file's own layers."""
    return bool(getattr(model, "is_recognised", False))


def identity_of_model(model: object) -> str | None:
    """Return what tells that which builds a model from another, in every run; None for None."""
    if model is None or hasattr(model, "identity"):
        return getattr(model, "identity", None)
    return f"{getattr(model, '__module__', '')}.{getattr(model, '__qualname__', repr(model))}"
