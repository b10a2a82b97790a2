"""The parameters of a model, in the order in which an optimizer gets them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from frozenbn_cli.checkpoints import StateDict, StoredTensor
from frozenbn_cli.checkpoints.pickled_modules import modules_in, own_parameters
from frozenbn_cli.checkpoints.pickled_tensors import TensorFinder
from frozenbn_cli.pickles.values import Call

__all__ = [
    "Parameter",
    "Parameters",
    "of_entries",
    "of_model",
    "of_module",
]

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a model.

    Attributes:
        name: The first of its names.
        shape: Its shape.
        goes: Whether it is the affine of layers that are frozen, and of nothing else.
        is_trained: Whether it asks for gradients, as far as that is known.
        is_of_norm: Whether its module normalises, as far as that is known.
    """

    name: str
    shape: tuple[int, ...]
    goes: bool
    is_trained: bool = True
    is_of_norm: bool = False

    @property
    def kind(self) -> tuple[bool, bool, bool]:
        """What those go by who part parameters by weight decay."""
        is_bias = self.name.rpartition(".")[2] == "bias"
        return self.is_of_norm, is_bias, len(self.shape) > 1


@dataclass(frozen=True, slots=True)
class Parameters:
    """All parameters of a model.

    Attributes:
        key: The state dict that they are of.
        listed: In the order of ``parameters()``.
        are_certain: Whether they are its parameters and nothing else; where a state dict alone
            names them, some may be buffers.
        source: How that is known, in words.
    """

    key: str
    listed: tuple[Parameter, ...]
    are_certain: bool
    source: str

    @property
    def trained(self) -> tuple[Parameter, ...]:
        """Those that ask for gradients; all, if none does, as in an average of models."""
        return tuple(item for item in self.listed if item.is_trained) or self.listed


def of_model(key: str, model: Any, gone: Iterable[str]) -> Parameters:
    """Return the parameters of a live model.

    Args:
        key: The state dict that it belongs to.
        model: An ``nn.Module`` whose names are those of the state dict.
        gone: The names of the affine entries of layers that are frozen.
    """
    going = set(gone)
    modules = dict(model.named_modules(remove_duplicate=False))
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    listed = tuple(
        Parameter(
            name,
            tuple(parameter.shape),
            going.issuperset(names[id(parameter)]),
            parameter.requires_grad,
            "Norm" in type(modules[name.rpartition(".")[0]]).__name__,
        )
        for name, parameter in model.named_parameters()
    )
    return Parameters(key, listed, are_certain=True, source="the order of the model's parameters()")


def of_module(key: str, module: Call, finder: TensorFinder, gone: Iterable[str]) -> Parameters:
    """Return the parameters of a pickled module.

    Args:
        key: Where it stands.
        module: The module, inert.
        finder: Of the file.
        gone: The names in the file of the affine entries of layers that are frozen.
    """
    going = set(gone)
    names: dict[int, list[str]] = {}
    first: dict[int, tuple[str, Call, bool, bool]] = {}
    for module_name, each, class_name in modules_in(module, finder):
        for own_name, value, is_trained in own_parameters(each):
            name = f"{module_name}.{own_name}" if module_name else own_name
            names.setdefault(id(value), []).append(name)
            first.setdefault(id(value), (name, value, is_trained, "Norm" in class_name))
    listed = tuple(
        Parameter(
            name, finder.tensor(value).shape, going.issuperset(names[same]), is_trained, is_of_norm
        )
        for same, (name, value, is_trained, is_of_norm) in first.items()
    )
    return Parameters(
        key, listed, are_certain=True, source="the order of parameters() of the pickled module"
    )


def of_entries(key: str, part: StateDict, gone: Iterable[str]) -> Parameters:
    """Return what may be the parameters of a state dict, in its order.

    Args:
        key: Where it stands.
        part: The state dict, with the names that the report uses.
        gone: The names of the affine entries of layers that are frozen.
    """
    going = set(gone)
    norms = {name.rpartition(".")[0] for name in part.entries if name.endswith(_STATISTICS[:2])}
    names: dict[tuple[object, ...], list[str]] = {}
    for name, entry in part.entries.items():
        if entry.dtype.kind in ("float", "complex") and name.rpartition(".")[2] not in _STATISTICS:
            names.setdefault(_identity(entry), []).append(name)
    listed = tuple(
        Parameter(
            same[0],
            part.entries[same[0]].shape,
            going.issuperset(same),
            is_of_norm=same[0].rpartition(".")[0] in norms,
        )
        for same in names.values()
    )
    return Parameters(key, listed, are_certain=False, source="the order of the entries")


def _identity(entry: StoredTensor) -> tuple[object, ...]:
    """Return what entries have in common that are one tensor."""
    return id(entry.storage), entry.offset, entry.shape, entry.strides
