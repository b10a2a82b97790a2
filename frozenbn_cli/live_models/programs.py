"""Exported programs that are loaded to be run, and what they take. Imports torch."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as trees

from frozenbn_cli.live_models.program_modes import put_in_eval

__all__ = ["Takes", "load_program", "takes_of"]

_TAKES = "frozenbn_takes"
_ONLY_MODEL = "model"
_LEAST = 2


@dataclass(frozen=True, slots=True)
class Takes:
    """What a program is called with: its own signature says it.

    Attributes:
        leaves: The arguments, one after the other: tensors without values, or what it was exported
            with for good.
        tree: How they make up what is given by position and by name.
        names: Of the arguments by position.
    """

    leaves: tuple[Any, ...]
    tree: Any
    names: tuple[str, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those that are tensors, of the shapes that it was exported with, on no device."""
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, Tensor))

    @property
    def dtype(self) -> torch.dtype:
        """Of its floating-point inputs."""
        floating = [leaf.dtype for leaf in self.tensors if leaf.is_floating_point()]
        return floating[0] if floating else torch.float32

    def in_place(
        self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return arguments as it takes them: by position what has one, whatever its name."""
        left = dict(keywords)
        missing = self.names[len(arguments) :]
        if all(name in left for name in missing):
            arguments = (*arguments, *(left.pop(name) for name in missing))
        return arguments, left

    def filled(self, values: Sequence[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments by position and by name, their tensors from values of 0 to 1."""
        left = iter(values)
        leaves = [
            _like(leaf, next(left)) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves
        ]
        arguments, keywords = trees.tree_unflatten(leaves, self.tree)
        return arguments, keywords


def _like(blank: Tensor, value: Tensor) -> Tensor:
    """Return a value in another dtype; whole numbers may be places in a table, from 0 on."""
    is_real = blank.is_floating_point() or blank.is_complex()
    return (value if is_real else value.round()).to(blank.dtype)


def takes_of(model: Any) -> Takes | None:
    """Return what a model is called with, if it is a program."""
    found: Takes | None = getattr(model, _TAKES, None)
    return found


def load_program(path: Path, model: str = _ONLY_MODEL, in_eval: Collection[str] = ()) -> nn.Module:
    """Return a program as a module, which has one mode alone; this executes what its file says.

    Args:
        path: The archive.
        model: Which of its programs.
        in_eval: The layers that are to take running statistics, where it was exported so that they
            take those of the batch.
    """
    with _words_unheard():
        program = _program(path, model)
        module: Any = program.module()
    if in_eval:
        put_in_eval(module, in_eval)
    # The ones that it has raise.
    module.train = lambda _=True: module
    module.eval = lambda: module
    setattr(module, _TAKES, _takes(program, module))
    return module  # type: ignore[no-any-return]


def _program(path: Path, model: str) -> Any:
    if model == _ONLY_MODEL:
        return torch.export.load(path)
    package: Any = importlib.import_module("torch.export.pt2_archive._package")
    return package.load_pt2(path).exported_programs[model]


def _takes(program: Any, module: nn.Module) -> Takes:
    leaves = tuple(map(_blank, _user_inputs(program)))
    tree = program.call_spec.in_spec
    positions, _ = trees.tree_unflatten(list(leaves), tree)
    names = list(inspect.signature(module.forward).parameters)[: len(positions)]
    return Takes(leaves, tree, tuple(names))


def _user_inputs(program: Any) -> Iterator[Any]:
    """Yield the example value of each argument; those of tensors have no memory."""
    examples = {node.name: node.meta.get("val") for node in program.graph.nodes}
    for spec in program.graph_signature.input_specs:
        if spec.kind.name == "USER_INPUT":
            yield spec.arg.value if hasattr(spec.arg, "value") else examples[spec.arg.name]


def _blank(value: Any) -> Any:
    """Return a tensor without memory for one of symbolic sizes, and a number for a symbolic one."""
    if isinstance(value, Tensor):
        shape = [_number(size) for size in value.shape]
        return torch.empty(shape, dtype=value.dtype, device="meta")
    return _number(value) if isinstance(value, torch.SymInt) else value


def _number(size: Any) -> int:
    """Return a size that it was exported with, or may have."""
    hint = getattr(getattr(size, "node", None), "hint", size)
    return _LEAST if hint is None else int(hint)


@contextlib.contextmanager
def _words_unheard() -> Iterator[None]:
    """Load what PyTorch warns of: files of older versions, and of other names."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
