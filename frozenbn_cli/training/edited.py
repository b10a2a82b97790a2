"""A training checkpoint with the layers of its models frozen, and its optimizers made to fit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from frozenbn_cli.batch_norms.frozen_model import FrozenModel
from frozenbn_cli.batch_norms.plan import Plan
from frozenbn_cli.checkpoints import Checkpoint, StateDict, StoredTensor
from frozenbn_cli.checkpoints.pickled import StoredPickle, read_stored
from frozenbn_cli.checkpoints.pickled_modules import attributes_of, modules_in
from frozenbn_cli.checkpoints.pickled_tensors import bare_tensor, is_tensor
from frozenbn_cli.checkpoints.state_dicts import values_by_key
from frozenbn_cli.errors import UnsupportedFileError, UsageError, located
from frozenbn_cli.pickles.values import Call, PersistentId, Value, items_of, parts_of
from frozenbn_cli.training.editing import (
    drop_entries,
    forget_places,
    freeze_module,
    storage_key,
    storage_keys,
)
from frozenbn_cli.training.optimizer_states import find_optimizers
from frozenbn_cli.training.parameters import (
    Parameters,
    of_entries,
    of_model,
    of_module,
)
from frozenbn_cli.training.reconciling import BuiltOptimizer, Reconciled, reconciled

__all__ = ["EditedCheckpoint", "edited_checkpoint", "patches_of", "read_checkpoint"]

_CONTAINERS = ("PyTorch ZIP", "PyTorch legacy")
_MADE = ", made in the file"


@dataclass(frozen=True, slots=True)
class EditedCheckpoint:
    """A training checkpoint as it is to be.

    Attributes:
        stored: The file, with its values as they are to be.
        models: Those whose layers are frozen.
        optimizers: What becomes of each.
        dropped: The keys of the storages that nothing refers to any more.
        patches: What of the other storages changes, by key and byte.
    """

    stored: StoredPickle
    models: tuple[FrozenModel, ...]
    optimizers: tuple[Reconciled, ...]
    dropped: frozenset[str]
    patches: Mapping[str, Mapping[int, bytes]]


def read_checkpoint(checkpoint: Checkpoint) -> StoredPickle:
    """Return the values of a file that `torch.save` wrote, to be changed.

    Raises:
        UnsupportedFileError: It did not, or they cannot be written as they were.
    """
    if checkpoint.container not in _CONTAINERS or checkpoint.script or len(checkpoint.sources) > 1:
        raise UnsupportedFileError(
            "--to checkpoint",
            expected="a file that torch.save wrote",
            found=f"{checkpoint.kind} ({checkpoint.container})",
        )
    stored = read_stored(checkpoint.sources[0])
    made = [name for name in stored.pickle.calls if name.name.endswith(_MADE)]
    if made:
        raise UnsupportedFileError(
            f"{str(made[0]).removesuffix(_MADE)} is made in the file (cloudpickle, dill), which "
            "cannot be written as it was",
            advice="Write the weights alone: --to torch.",
        )
    return stored


def edited_checkpoint(
    stored: StoredPickle,
    models: Sequence[FrozenModel],
    others: Mapping[str, Callable[[], StateDict]],
    built: Sequence[BuiltOptimizer] | None = None,
) -> EditedCheckpoint:
    """Change the values of a file, and return it.

    Args:
        stored: The file.
        models: Those whose layers are to be frozen.
        others: What makes the other state dicts in it, whose optimizers are left as they are.
        built: The optimizers, in the file's order, as the user's own code builds them.

    Raises:
        UsageError: Which parameters an optimizer has is not proved.
        UnsupportedFileError: A layer or an optimizer is of a kind that is not known.
    """
    root, finder = stored.pickle.value, stored.finder
    values = values_by_key(root)
    _check_apart(models, others, values)
    optimizers: tuple[Reconciled, ...] = ()
    if any(model.gone for model in models):
        found = find_optimizers(root, finder)
        inside = tuple(f"{optimizer.key}." for optimizer in found)
        all_models = [
            *models,
            *(
                FrozenModel(make(), Plan((), ()))
                for key, make in others.items()
                if found and not f"{key}.".startswith(inside)
            ),
        ]
        parameters = [_parameters(model, values[model.key], stored) for model in all_models]
        optimizers = reconciled(found, parameters, built)
    before = storage_keys([root])
    patches = patches_of(models, stored)
    for model in models:
        with located(f"key {model.key!a}") if model.key else located("model"):
            _freeze(model, values[model.key], stored)
    for each in optimizers:
        forget_places(each.optimizer, each.places)
    dropped = frozenset(before - storage_keys([root]))
    return EditedCheckpoint(stored, tuple(models), optimizers, dropped, patches)


def _check_apart(
    models: Sequence[FrozenModel], others: Iterable[str], values: Mapping[str, Value]
) -> None:
    """Refuse to freeze one model without another that is the very same object."""
    chosen = {id(values[model.key]): model.key for model in models}
    for key in others:
        if id(values[key]) in chosen:
            raise UsageError(
                f"keys {chosen[id(values[key])]!a} and {key!a} hold one and the same model",
                advice="Leave --key out, and both are frozen.",
            )


def _parameters(model: FrozenModel, value: Value, stored: StoredPickle) -> Parameters:
    if model.live is not None:
        return of_model(model.key, model.live, model.gone)
    if model.part.is_module:
        gone = [model.stored(name) for name in model.gone]
        return of_module(model.key, value, stored.finder, gone)
    return of_entries(model.key, model.part, model.gone)


def _freeze(model: FrozenModel, value: Value, stored: StoredPickle) -> None:
    layers = {model.stored_layer(item): item for item in model.frozen}
    if not model.part.is_module:
        drop_entries(value, set(model.dropped), layers.keys())
        return
    done: set[int] = set()
    modules = {name: module for name, module, _ in modules_in(value, stored.finder)}
    _check_untied(layers.keys(), modules)
    for name, item in layers.items():
        if id(modules[name]) not in done:
            done.add(id(modules[name]))
            with located(f"layer {name}"):
                freeze_module(modules[name], item.layer.batches_tracked, model.eps_of(item))


def _check_untied(frozen: Iterable[str], modules: Mapping[str, Call]) -> None:
    """Refuse layers whose affine is also a parameter of what stays: training would change it."""
    layers = {id(modules[name]): name for name in frozen}
    owned = {id(tensor): name for same, name in layers.items() for tensor in _affine(modules[name])}
    for name, module in modules.items():
        if id(module) in layers:
            continue
        for tensor in _affine(module):
            if id(tensor) in owned:
                raise UnsupportedFileError(
                    f"layer {owned[id(tensor)]} shares a parameter with {name or 'the model'}, "
                    "which goes on training it",
                    advice="Leave the layer live with --exclude.",
                )


def _affine(module: Call) -> list[Value]:
    own = items_of(attributes_of(module).get("_parameters")) or ()
    return [value for _, value in own if isinstance(value, Call)]


# Rewritten variances


def patches_of(models: Sequence[FrozenModel], stored: StoredPickle) -> dict[str, dict[int, bytes]]:
    """Return what of a file's storages changes for a target eps, by key and byte.

    Raises:
        UnsupportedFileError: A variance that is to change is also something else.
    """
    root = stored.pickle.value
    values = values_by_key(root)
    patches: dict[str, dict[int, bytes]] = {}
    patched: set[int] = set()
    for model in models:
        if model.retargeting is None or not model.retargeting.before:
            continue
        tensors = _variances(model, values[model.key], stored)
        for item in model.frozen:
            value = tensors[model.stored_layer(item)]
            new = model.retargeting.layers[item.layer.name].tensor
            old = item.layer.tensors["running_var"]
            if new is not old:
                patched.add(id(bare_tensor(value)))
                _patch(patches, _key_of(value), old, new, item.layer.name)
    _check_alone(root, patches, patched, stored)
    return patches


def _variances(model: FrozenModel, value: Value, stored: StoredPickle) -> dict[str, Value]:
    """Return the running variances of a model, by the names in the file of their layers."""
    if not model.part.is_module:
        items = items_of(value) or (value.items if isinstance(value, Call) else [])
        return {
            name.rpartition(".")[0]: entry
            for name, entry in items
            if isinstance(name, str) and name.rpartition(".")[2] == "running_var"
        }
    return {
        name: dict(items_of(attributes_of(module).get("_buffers")) or ()).get("running_var")
        for name, module, _ in modules_in(value, stored.finder)
    }


def _key_of(tensor: Value) -> str:
    bare = bare_tensor(tensor)
    reference = bare.arguments[0] if isinstance(bare, Call) and bare.arguments else None
    if not isinstance(reference, PersistentId) or any(reference.value[5:]):
        raise UnsupportedFileError("a running_var that lies within the pickle, or in a view")
    return storage_key(reference)


def _patch(
    patches: dict[str, dict[int, bytes]], key: str, old: StoredTensor, new: StoredTensor, name: str
) -> None:
    item_bytes, content = old.dtype.item_bytes, new.read()
    here = patches.setdefault(key, {})
    step = (old.strides or (1,))[0]
    for channel in range(old.elements):
        start = (old.offset + channel * step) * item_bytes
        value = content[channel * item_bytes : (channel + 1) * item_bytes]
        if here.setdefault(start, value) != value:
            raise UnsupportedFileError(
                f"layer {name} shares its running_var with one of another eps"
            )


def _check_alone(
    root: Value,
    patches: Mapping[str, Mapping[int, bytes]],
    patched: set[int],
    stored: StoredPickle,
) -> None:
    """Refuse to rewrite what other tensors of the file are views of."""
    seen: set[int] = set()
    waiting = [root] if patches else []
    while waiting:
        value = waiting.pop()
        if not isinstance(value, (Call, dict, list, tuple)) or id(value) in seen:
            continue
        seen.add(id(value))
        waiting += parts_of(value)
        if not (isinstance(value, Call) and is_tensor(value)) or id(value) in patched:
            continue
        reference = value.arguments[0] if value.arguments else None
        if isinstance(reference, PersistentId) and storage_key(reference) in patches:
            tensor = stored.finder.tensor(value)
            starts = patches[storage_key(reference)]
            item_bytes = tensor.dtype.item_bytes
            first = tensor.offset * item_bytes
            last = (
                first
                + sum(
                    (size - 1) * step
                    for size, step in zip(tensor.shape, tensor.strides, strict=True)
                )
                * item_bytes
            )
            if tensor.elements and any(first <= start <= last for start in starts):
                raise UnsupportedFileError(
                    "a running_var that is to be rewritten is also another tensor of the file"
                )
