"""Verifies a training checkpoint that a conversion wrote, against the one that was read.

Both are read as inert values, apart from what wrote the one, and walked through side by side: what
was to change has become what it was to be, and all else is the same, moments and storages included.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from contextlib import closing
from operator import ne
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from frozenbn_cli.batch_norms.batch_norm import Eps
from frozenbn_cli.batch_norms.frozen_model import FrozenModel
from frozenbn_cli.batch_norms.record import METADATA_KEY
from frozenbn_cli.checkpoints import Checkpoint, StateDict
from frozenbn_cli.checkpoints.pickled import StoredPickle, read_stored
from frozenbn_cli.checkpoints.pickled_modules import attributes_of, module_class, modules_in
from frozenbn_cli.checkpoints.pickled_tensors import bare_tensor, is_tensor
from frozenbn_cli.checkpoints.state_dicts import values_by_key
from frozenbn_cli.containers.source import ByteSource, Extent, chunks
from frozenbn_cli.containers.utf8_path import utf8_path
from frozenbn_cli.outputs.patched import with_edits
from frozenbn_cli.pickles.values import Call, Global, PersistentId, Value, items_of
from frozenbn_cli.stages import import_torch_for
from frozenbn_cli.training.edited import EditedCheckpoint
from frozenbn_cli.training.editing import FROZEN_CLASSES
from frozenbn_cli.training.optimizer_states import find_optimizers
from frozenbn_cli.verification.claims import Claim
from frozenbn_cli.verification.contents import Progress
from frozenbn_cli.verification.written import StoredEntries
from frozenbn_cli.wording import counted

__all__ = ["WrittenModel", "verify_checkpoint_contents"]


class WrittenModel(StoredEntries):
    """One model of a training checkpoint that was written, with the names of the report.

    Args:
        model: The model as it was read, with the names of its entries in the file.
        part: Its state dict as it was written, with the names in the file.
        eps: The eps of each frozen layer, by its name in the report.
    """

    def __init__(self, model: FrozenModel, part: StateDict, eps: Mapping[str, Eps]) -> None:
        shown = {model.stored(name): name for name in model.part.entries}
        super().__init__({shown.get(name, name): entry for name, entry in part.entries.items()})
        self._eps = eps

    def stated_eps(self) -> Mapping[str, Eps]:
        """Return the eps that the file states for each frozen layer."""
        return self._eps


def verify_checkpoint_contents(
    checkpoint: Checkpoint, written: Path, edited: EditedCheckpoint, progress: Progress
) -> Claim:
    """Return the claim on the contents of a training checkpoint.

    Args:
        checkpoint: The input.
        written: The output.
        edited: What was to change.
        progress: Is told the bytes of each storage that was compared.
    """
    with closing(ByteSource(written)) as source:
        before, after = read_stored(checkpoint.sources[0]), read_stored(source)
        comparison = _Comparison(before, after, edited)
        problem = comparison.values() or _storages(before, after, edited, progress)
    if problem:
        return Claim("contents", "different", problem)
    how = _how_torch_reads(checkpoint, written)
    if how is None:
        return Claim("contents", "different", "torch.load reads the input, and not the output")
    moved = f", {counted(comparison.moments, 'state')} of optimizers" if edited.optimizers else ""
    detail = f"{counted(comparison.tensors, 'tensor')}{moved}, and all values beside them; {how}"
    return Claim("contents", "equal", detail, comparison.tensors)


class _Comparison:
    """Walks through the values of both files."""

    def __init__(self, before: StoredPickle, after: StoredPickle, edited: EditedCheckpoint) -> None:
        self._before, self._after = before, after
        self._waiting: list[tuple[str, Value, Value]] = []
        self._seen: dict[int, int] = {}
        self._state_dicts: dict[int, FrozenModel] = {}
        self._layers: dict[int, float] = {}
        self._optimizers: dict[int, frozenset[int]] = {}
        self.tensors = self.moments = 0
        values = values_by_key(before.pickle.value)
        for model in edited.models:
            self._note(model, values[model.key])
        places = {each.optimizer.key: each.places for each in edited.optimizers}
        for optimizer in find_optimizers(before.pickle.value, before.finder) if places else ():
            if places.get(optimizer.key):
                self._optimizers[id(optimizer.value)] = places[optimizer.key]

    def _note(self, model: FrozenModel, value: Value) -> None:
        if not model.part.is_module:
            self._state_dicts[id(value)] = model
            return
        modules = {name: each for name, each, _ in modules_in(value, self._before.finder)}
        for item in model.frozen:
            self._layers[id(modules[model.stored_layer(item)])] = model.eps_of(item)

    def values(self) -> str:
        """Return what differs, and where; empty if nothing does that was not to."""
        self._waiting = [("", self._before.pickle.value, self._after.pickle.value)]
        while self._waiting:
            key, before, after = self._waiting.pop()
            if problem := self._differ(key, before, after):
                return f"{key or 'the file'}: {problem}"
        return ""

    def _differ(self, key: str, before: Value, after: Value) -> str:
        if isinstance(before, (Call, dict, list, tuple, set, frozenset, PersistentId)):
            # What is one object has to be one still.
            known = self._seen.get(id(before)) if before != () else None
            if known is not None:
                return "" if known == id(after) else "is no longer the object that it was"
            self._seen[id(before)] = id(after)
        if type(before) is not type(after):
            return "is of another type"
        if id(before) in self._layers:
            return self._layer(before, after)
        if id(before) in self._optimizers:
            return self._optimizer(key, before, after)
        if id(before) in self._state_dicts:
            return self._state_dict(key, before, after)
        return self._plain(key, before, after)

    def _plain(self, key: str, before: Value, after: Value) -> str:
        if isinstance(before, Call):
            return self._call(key, before, after)
        if isinstance(before, PersistentId):
            self._waiting.append((key, before.value, after.value))
        elif isinstance(before, dict):
            return self._items(key, list(before.items()), list(after.items()))
        elif isinstance(before, (list, tuple)):
            if len(before) != len(after):
                return "is of another length"
            self._waiting += [
                (f"{key}.{place}", *pair)
                for place, pair in enumerate(zip(before, after, strict=True))
            ]
        elif isinstance(before, float):
            return "" if _bits(before) == _bits(after) else "is another number"
        elif before != after:
            return "is another value"
        return ""

    def _call(self, key: str, before: Call, after: Call) -> str:
        self.tensors += is_tensor(before)
        same = before.function == after.function and before.is_new == after.is_new
        if not same or before.has_state != after.has_state:
            return "is made by another call"
        self._waiting += [
            (key, before.arguments, after.arguments),
            (key, before.keywords, after.keywords),
            (key, before.appended, after.appended),
            (key, before.state, after.state),
            (key, before.reference, after.reference),
        ]
        return self._items(key, before.items, after.items)

    def _items(
        self, key: str, before: list[tuple[Value, Value]], after: list[tuple[Value, Value]]
    ) -> str:
        if len(before) != len(after):
            return f"has {len(after)} items instead of {len(before)}"
        for (name, value), (other_name, other) in zip(before, after, strict=True):
            if not isinstance(name, (str, int, bytes, type(None))):
                self._waiting.append((f"{key}, a key", name, other_name))
            elif name != other_name or type(name) is not type(other_name):
                return f"has {other_name!a:.80} where {name!a:.80} was"
            self._waiting.append((f"{key}.{name}" if key else str(name), value, other))
        return ""

    # What was to change

    def _state_dict(self, key: str, before: Value, after: Value) -> str:
        model = self._state_dicts[id(before)]
        dropped = set(model.dropped)
        layers = {model.stored_layer(item) for item in model.frozen}
        kept = [pair for pair in _own_items(before) if pair[0] not in dropped]
        if isinstance(before, Call):
            if before.function != after.function or before.has_state != after.has_state:
                return "is made by another call"
            if problem := self._metadata(key, before.state, after.state, layers):
                return problem
        return self._items(key, kept, _own_items(after))

    def _metadata(self, key: str, before: Value, after: Value, layers: set[str]) -> str:
        if not (isinstance(before, dict) and "_metadata" in before and isinstance(after, dict)):
            self._waiting.append((key, before, after))
            return ""
        versions = items_of(before["_metadata"]) or []
        kept = [pair for pair in versions if pair[0] not in layers]
        others = [pair for pair in before.items() if pair[0] != "_metadata"]
        others_after = [pair for pair in after.items() if pair[0] != "_metadata"]
        return self._items(key, others, others_after) or self._items(
            f"{key}._metadata", kept, items_of(after.get("_metadata")) or []
        )

    def _layer(self, before: Call, after: Call) -> str:
        name = FROZEN_CLASSES.get(module_class(before))
        if after.function != Global("frozenbn_cli.nn", name or ""):
            return "is no frozen layer"
        old, new = attributes_of(before), attributes_of(after)
        buffers = dict(items_of(new.get("_buffers")) or ())
        tensors = dict(items_of(old.get("_parameters")) or ())
        tensors |= dict(items_of(old.get("_buffers")) or ())
        for role in ("weight", "bias", "running_mean", "running_var"):
            self._waiting.append((role, bare_tensor(tensors.get(role)), buffers.get(role)))
        self._waiting.append(("eps", self._layers[id(before)], new.get("eps")))
        for own in ("num_features", "affine", "training"):
            self._waiting.append((own, old.get(own), new.get(own)))
        children = items_of(old.get("_modules")) or []
        left = items_of(new.get("_parameters")) or buffers.keys() - tensors.keys()
        problem = "has parameters, or other buffers" if left else ""
        return problem or self._items("", children, items_of(new.get("_modules")) or [])

    def _optimizer(self, key: str, before: Value, after: Value) -> str:
        places = self._optimizers[id(before)]
        old, new = dict(items_of(before) or ()), dict(items_of(after) or ())
        if old.keys() != new.keys():
            return "has other parts"
        self._waiting += [
            (f"{key}.{name}", old[name], new[name])
            for name in old
            if name not in ("state", "param_groups")
        ]
        labels: dict[Any, Any] = {}
        gone: set[Any] = set()
        place = 0
        if len(old["param_groups"]) != len(new["param_groups"]):
            return "has another number of groups"
        pairs = zip(old["param_groups"], new["param_groups"], strict=True)
        for number, (group, other) in enumerate(pairs):
            fields, others = dict(items_of(group) or ()), dict(items_of(other) or ())
            ends = place + len(fields["params"])
            stays = [each not in places for each in range(place, ends)]
            place = ends
            kept = [label for label, there in zip(fields["params"], stays, strict=True) if there]
            gone |= set(fields["params"]) - set(kept)
            if len(kept) != len(others["params"]):
                return f"group {number} has {len(others['params'])} instead of {len(kept)}"
            labels |= dict(zip(kept, others["params"], strict=True))
            if isinstance(names := fields.get("param_names"), list) and len(names) == len(stays):
                fields["param_names"] = [
                    name for name, there in zip(names, stays, strict=True) if there
                ]
            del fields["params"], others["params"]
            where = f"{key}.param_groups.{number}"
            if problem := self._items(where, list(fields.items()), list(others.items())):
                return problem
        if len(set(labels.values())) != len(labels):
            return "has one number twice"
        self.moments += len(labels)
        state = [
            (labels.get(label, label), value)
            for label, value in items_of(old["state"]) or ()
            if label not in gone
        ]
        return self._items(f"{key}.state", state, items_of(new["state"]) or [])


def _own_items(value: Value) -> list[tuple[Value, Value]]:
    """Return the items of a state dict, also of a class that derives from a dict."""
    return items_of(value) or (value.items if isinstance(value, Call) else [])


def _bits(number: float) -> bytes:
    return struct.pack("<d", number)


def _storages(
    before: StoredPickle, after: StoredPickle, edited: EditedCheckpoint, progress: Progress
) -> str:
    """Return which storage, or record beside them, is not what it was; empty if all are."""
    old, new = _records(before), _records(after)
    prefix = f"{before.root}data/" if before.archive else ""
    patches = {f"{prefix}{key}": patch for key, patch in edited.patches.items()}
    expected = old.keys() - {f"{prefix}{key}" for key in edited.dropped}
    for name in expected ^ new.keys():
        return f"record {name} is {'missing' if name in expected else 'one too many'}"
    for name in expected:
        was, found = old[name], new[name]
        if was.size_bytes != found.size_bytes or any(
            map(ne, with_edits(was, patches.get(name, {}).items()), chunks(found))
        ):
            return f"record {name} differs"
        progress(was.size_bytes)
    return ""


def _records(stored: StoredPickle) -> dict[str, Extent]:
    """Return all runs of bytes beside the pickle."""
    if stored.archive is None:
        return dict(stored.legacy.storages) if stored.legacy else {}
    own = {"data.pkl", ".storage_alignment", f"{METADATA_KEY}.json"}
    names = (name for name in stored.archive.records if name.removeprefix(stored.root) not in own)
    return {name: stored.archive.extent(name) for name in names}


def _how_torch_reads(checkpoint: Checkpoint, written: Path) -> str | None:
    """Return how the output is read, in words; None if torch reads the input and not the output.

    The legacy format would be read as a whole, which takes as much memory as the file is large.
    """
    if checkpoint.archive is None:
        return "read as inert values"
    if _loads(written):
        return "read by torch.load"
    if _loads(checkpoint.path):
        return None
    return "read as inert values, since torch.load needs classes for it"


def _loads(path: Path) -> bool:
    torch = import_torch_for("torch")
    try:
        torch.load(utf8_path(path), weights_only=True, mmap=True, map_location="cpu")
    except (UnpicklingError, RuntimeError):
        return False
    return True
