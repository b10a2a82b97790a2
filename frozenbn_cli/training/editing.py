"""Changes the inert values of a training checkpoint: state dicts, modules and optimizers."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from frozenbn_cli.checkpoints.pickled_modules import attributes_of, module_class
from frozenbn_cli.checkpoints.pickled_tensors import bare_tensor
from frozenbn_cli.errors import UnsupportedFileError
from frozenbn_cli.pickles.values import Call, Global, PersistentId, Value, items_of, parts_of
from frozenbn_cli.training.matching import Places
from frozenbn_cli.training.optimizer_states import OptimizerState

__all__ = [
    "FROZEN_CLASSES",
    "drop_entries",
    "forget_places",
    "freeze_module",
    "new_labels",
    "storage_key",
    "storage_keys",
]

_NN = "frozenbn_cli.nn"
_TENSORS = ("weight", "bias", "running_mean", "running_var")
_CHILDREN = ("drop", "act")
_COUNT = "num_batches_tracked"

FROZEN_CLASSES = {
    "torch.nn.modules.batchnorm.BatchNorm1d": "FrozenBatchNorm1d",
    "torch.nn.modules.batchnorm.BatchNorm2d": "FrozenBatchNorm2d",
    "torch.nn.modules.batchnorm.BatchNorm3d": "FrozenBatchNorm3d",
    "torch.nn.modules.batchnorm.SyncBatchNorm": "FrozenBatchNormNd",
    "timm.layers.norm_act.BatchNormAct2d": "FrozenBatchNormAct2d",
    "timm.layers.norm_act.SyncBatchNormAct": "FrozenBatchNormAct2d",
    "timm.models.layers.norm_act.BatchNormAct2d": "FrozenBatchNormAct2d",
}
"""The layer of this package that stands in for each class whose pickled form is known."""


# State dicts


def drop_entries(state_dict: Value, names: Collection[str], layers: Collection[str]) -> None:
    """Take entries out of a state dict, and the versions of layers that are frozen."""
    _keep(state_dict, lambda name: name not in names)
    if isinstance(state_dict, Call) and isinstance(state_dict.state, dict):
        # A BatchNorm adds its count to what has no version.
        _keep(state_dict.state.get("_metadata"), lambda name: name not in layers)


def _keep(mapping: Value, keeps: Any) -> None:
    """Leave only some items in a mapping, of whatever kind it is."""
    if isinstance(mapping, dict):
        for name in [name for name in mapping if not keeps(name)]:
            del mapping[name]
    elif isinstance(mapping, Call):
        mapping.items = [pair for pair in mapping.items if keeps(pair[0])]
        mapping.arguments = tuple(_kept_argument(value, keeps) for value in mapping.arguments)


def _kept_argument(argument: Value, keeps: Any) -> Value:
    """Return the items that an OrderedDict of Python 2 gets as an argument, those that stay."""
    if isinstance(argument, list):
        return [
            pair
            for pair in argument
            if not (isinstance(pair, (list, tuple)) and len(pair) == 2)
            or not isinstance(pair[0], str)
            or keeps(pair[0])
        ]
    if isinstance(argument, dict):
        return {name: value for name, value in argument.items() if keeps(name)}
    return argument


# Optimizers


def new_labels(optimizer: OptimizerState, places: Places) -> dict[int | str, int | str]:
    """Return what each parameter that stays is called afterwards, by what it is called now.

    Numbers that count the places go on doing so; all other labels stay.
    """
    labels = [slot.label for slot in optimizer.slots]
    kept = [label for place, label in enumerate(labels) if place not in places]
    counts = labels == list(range(len(labels)))
    return dict(zip(kept, range(len(kept)) if counts else kept, strict=True))


def forget_places(optimizer: OptimizerState, places: Places) -> None:
    """Take parameters out of an optimizer's groups and state; the others keep their moments."""
    new = new_labels(optimizer, places)
    gone = {slot.label for slot in optimizer.slots} - new.keys()
    items = dict(items_of(optimizer.value) or ())
    for group in items["param_groups"]:
        fields = dict(items_of(group) or ())
        labels, names = fields["params"], fields.get("param_names")
        stays = [label not in gone for label in labels]
        if isinstance(names, list) and len(names) == len(labels):
            names[:] = [name for name, kept in zip(names, stays, strict=True) if kept]
        labels[:] = [new[label] for label, kept in zip(labels, stays, strict=True) if kept]
    state = items["state"]
    pairs = [
        (new.get(label, label), value)
        for label, value in items_of(state) or ()
        if label not in gone
    ]
    if isinstance(state, dict):
        state.clear()
        state.update(pairs)
    else:
        _keep(state, lambda _: False)
        state.items = pairs


# Modules


def freeze_module(layer: Call, count: int | None, eps: float) -> None:
    """Make a pickled BatchNorm the frozen layer that `convert_bn_to_frozen` would put in its place.

    Args:
        layer: The layer, which becomes the frozen one wherever the file refers to it.
        count: How many batches formed its statistics, as far as it is known.
        eps: Of the frozen layer.

    Raises:
        UnsupportedFileError: It holds what the frozen layer has no place for.
    """
    class_name = module_class(layer)
    live = _class_of(layer)
    state = attributes_of(layer)
    frozen = FROZEN_CLASSES.get(class_name)
    parameters = dict(items_of(state.get("_parameters")) or ())
    buffers = dict(items_of(state.get("_buffers")) or ())
    children = dict(items_of(state.get("_modules")) or ())
    extra = [*(parameters.keys() | buffers.keys()) - {*_TENSORS, _COUNT}]
    extra += children.keys() - (set(_CHILDREN) if frozen == "FrozenBatchNormAct2d" else set())
    if frozen is None or not isinstance(layer.state, dict) or extra:
        what = f"a {class_name} with {extra[0]}" if extra else f"a {class_name}"
        raise UnsupportedFileError(
            f"{what}, which cannot be frozen where it is pickled",
            advice="Leave it live with --exclude, or write the weights alone with --to torch.",
        )
    tensors = parameters | buffers
    internal = {
        name: value for name, value in state.items() if name.startswith("_") or name == "training"
    }
    internal["_parameters"] = {}
    internal["_buffers"] = {name: bare_tensor(tensors.get(name)) for name in _TENSORS}
    internal["_modules"] = {name: children[name] for name in _CHILDREN if name in children}
    own = {name: state[name] for name in ("num_features", "affine") if name in state}
    origin = _origin(live, state | {"eps": eps}, parameters, children)
    layer.state = internal | own | {"eps": eps, "origin": origin | {"num_batches_tracked": count}}
    layer.function, layer.reference = Global(_NN, frozen), None
    layer.arguments, layer.is_new = (), True


def _class_of(layer: Call) -> Global:
    given = layer.arguments[0] if layer.arguments else None
    return given if isinstance(given, Global) else layer.function


def _origin(
    live: Global,
    state: dict[Any, Value],
    parameters: dict[Value, Value],
    children: dict[Value, Value],
) -> dict[str, Value]:
    """Return what thawing needs to know of a layer, as a live one is frozen."""
    attributes = {
        name: value
        for name, value in state.items()
        if not (name.startswith("_") or name == "training")
    }
    return {
        "class": live,
        "children": tuple(children),
        "attributes": attributes,
        "requires_grad": {
            name: value.arguments[1]
            for name, value in parameters.items()
            if isinstance(value, Call) and len(value.arguments) > 1
        },
    }


# Storages


def storage_key(reference: PersistentId) -> str:
    """Return the key of the storage that is referred to; empty if it is none."""
    value = reference.value
    is_storage = isinstance(value, tuple) and len(value) >= 5 and value[0] == "storage"
    return value[2] if is_storage and isinstance(value[2], str) else ""


def storage_keys(values: Iterable[Value]) -> set[str]:
    """Return the keys of all storages that values refer to."""
    keys: set[str] = set()
    seen: set[int] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, PersistentId):
            if key := storage_key(value):
                keys.add(key)
            continue
        if not isinstance(value, (Call, dict, list, tuple)) or id(value) in seen:
            continue
        seen.add(id(value))
        waiting += parts_of(value)
        if isinstance(value, Call) and value.keywords:
            waiting += value.keywords.values()
    return keys
