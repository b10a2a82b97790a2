"""Loads a converted file into a model, layer by layer as the file says. Imports torch."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from torch import Tensor, nn

from frozenbn_cli.batch_norms.batch_norm import Eps
from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.checkpoints import Checkpoint, open_checkpoint
from frozenbn_cli.errors import FrozenBNError, UnsupportedFileError, UsageError
from frozenbn_cli.freezing.freeze import frozen_layers_of, held_text
from frozenbn_cli.freezing.frozen_elsewhere import eps_of, is_frozen_layer
from frozenbn_cli.freezing.held import replace_held
from frozenbn_cli.freezing.replacing import put_in_place
from frozenbn_cli.freezing.survey import BatchNormDecision, decisions_on, dims_of_layer
from frozenbn_cli.freezing.wrappers import refuse_wrapped
from frozenbn_cli.live_models.building import state_of, unwrapped
from frozenbn_cli.live_models.stored_values import to_tensor
from frozenbn_cli.loading_plan import LoadPlan, plan_loading
from frozenbn_cli.selection import Selection, checked_dims, kinds_of
from frozenbn_cli.wording import listed

__all__ = ["LoadReport", "freeze_layers", "load_frozen"]

_NAMED = 8
_ALL_DIMS = (1, 2, 3)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What `load_frozen` did.

    Attributes:
        model: The model; a new layer if the model that was given is itself a BatchNorm layer.
        loaded: The entries of the model that come from the file now.
        frozen: The layers of the model that the file froze.
        skipped: The entries of the file that were left out, by ``skip`` or ``only``.
        left: The entries of the model that are as they were.
        live: The BatchNorm layers of the model that are still live.
        prefix: What was taken off the names of the file, so that they fit.
    """

    model: nn.Module
    loaded: tuple[str, ...]
    frozen: tuple[str, ...]
    skipped: tuple[str, ...]
    left: tuple[str, ...]
    live: tuple[str, ...]
    prefix: str = ""


@overload
def load_frozen(
    model: nn.Module,
    path: str | Path,
    *,
    prefix: str = "",
    skip: str | Iterable[str] = (),
    only: str | Iterable[str] = (),
    trainable_affine: bool = False,
    key: str | None = None,
    with_report: Literal[False] = False,
) -> nn.Module: ...


@overload
def load_frozen(
    model: nn.Module,
    path: str | Path,
    *,
    prefix: str = "",
    skip: str | Iterable[str] = (),
    only: str | Iterable[str] = (),
    trainable_affine: bool = False,
    key: str | None = None,
    with_report: Literal[True],
) -> LoadReport: ...


def load_frozen(
    model: nn.Module,
    path: str | Path,
    *,
    prefix: str = "",
    skip: str | Iterable[str] = (),
    only: str | Iterable[str] = (),
    trainable_affine: bool = False,
    key: str | None = None,
    with_report: bool = False,
) -> nn.Module | LoadReport:
    """Load a file that frozenbn wrote into ``model``, freezing the layers that the file froze.

    All entries of the file go into the model, and all entries of the model come from the file, but
    for those that ``prefix``, ``skip`` and ``only`` leave out. A prefix that all names of the file
    have in common is taken off where that makes them fit.

    An eps that was read or given at the conversion is set on its layer, with a warning if the
    model had another. An assumed or recognised one is not: there the model knows better, and a
    warning says where it is not the recognised one. A warning names the BatchNorm layers that are
    still live afterwards, but for those that are left out.

    Args:
        model: The model that the original checkpoint belongs to, or one that holds it or shares
            its body. Its layers may be live, or frozen already: by this package, torchvision, timm,
            detectron2 or transformers. It may be on the meta device, whose entries then are those
            of the file. Not wrapped for several devices; what DataParallel and `torch.compile` put
            around a model is looked through.
        path: The converted file.
        prefix: What the model's names have in front, such as ``backbone.body.``; entries of the
            model without it are left as they are.
        skip: Names of submodules or entries, or glob patterns, of entries that are left out in the
            file and in the model, such as ``fc`` or ``fc.*``.
        only: Likewise, of the entries that are loaded; all others are left out.
        trainable_affine: Whether weight and bias of the layers that are frozen stay parameters.
        key: Which state dict of a training checkpoint that holds several.
        with_report: Whether to return what was loaded, skipped and left, with the model in it.

    Returns:
        ``model``, or a new layer if ``model`` itself is a BatchNorm layer; or a `LoadReport`.

    Raises:
        InputError: The file cannot be read, or frozenbn did not write it.
        UsageError: Entries are missing, unexpected or of another shape; a layer that the file froze
            cannot be frozen in ``model``, or not with its eps; a pattern matches no entry. Nothing
            is changed.
    """
    record, entries = _read(Path(path), key)
    inner = unwrapped(model)
    refuse_wrapped(inner)
    plan = plan_loading(
        state_of(inner), entries, prefix=prefix, skip=_patterns(skip), only=_patterns(only)
    )
    layers = {plan.layers[name]: eps for name, eps in record.layers.items() if name in plan.layers}
    dims = {*checked_dims(record.dims), *record.dims_of.values()}
    rewritten = {plan.layers[name] for name in record.rewritten if name in plan.layers}
    freezing = _Freezing.of(inner, layers, dims, rewritten, trainable_affine=trainable_affine)
    loaded, notes = freezing.apply(lambda frozen: _load(frozen, plan, entries))
    live = _live_layers(loaded)
    for note in (*notes, *_live_notes(live, plan), *_meta_notes(loaded)):
        warnings.warn(note, stacklevel=2)
    result = model if loaded is inner else loaded
    if not with_report:
        return result
    return LoadReport(
        result,
        loaded=tuple(plan.sources),
        frozen=tuple(layers),
        skipped=plan.skipped,
        left=plan.left,
        live=tuple(live),
        prefix=plan.prefix,
    )


def freeze_layers(model: nn.Module, layers: Mapping[str, Eps]) -> nn.Module:
    """Freeze the layers of these names, with their eps where that is known, in place.

    Returns:
        ``model``, or a new layer if ``model`` itself is a BatchNorm layer.

    Raises:
        UsageError: One of them cannot be frozen.
    """
    model, notes = _Freezing.of(model, layers, _ALL_DIMS).apply(lambda _: None)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    return model


def _patterns(patterns: str | Iterable[str]) -> tuple[str, ...]:
    return Selection.of(patterns).include


def _read(path: Path, key: str | None) -> tuple[ConversionRecord, dict[str, Tensor]]:
    """Return the record and the entries of a file that frozenbn wrote."""
    with open_checkpoint(path, keep_prefix=True) as checkpoint:
        record = ConversionRecord.from_metadata(checkpoint.metadata)
        foreign = _foreign(checkpoint, record)
        if foreign is not None or record is None:
            raise foreign or _not_ours("")
        part = checkpoint.state_dict(key)
        return record.of(part), {name: to_tensor(entry) for name, entry in part.entries.items()}


def _foreign(checkpoint: Checkpoint, record: ConversionRecord | None) -> FrozenBNError | None:
    where = str(checkpoint.path)
    if checkpoint.script is not None:
        return _not_state(where, checkpoint.kind, "torch.jit.load")
    if checkpoint.program is not None:
        return _not_state(where, checkpoint.kind, "torch.export.load")
    return _not_ours(where) if record is None else None


def _not_state(where: str, kind: str, way: str) -> FrozenBNError:
    return UnsupportedFileError(
        where=(where,),
        expected="a state dict that frozenbn wrote",
        found=kind,
        advice=f"It is a model by itself: load it with {way}.",
    )


def _not_ours(where: str) -> FrozenBNError:
    return UnsupportedFileError(
        "frozenbn did not write this file",
        where=(where,),
        advice="Convert it with `frozenbn convert`, or freeze the model that you loaded it into "
        "with convert_bn_to_frozen.",
    )


@dataclass(frozen=True, slots=True)
class _Freezing:
    """The change from live layers to frozen ones, checked and not made yet.

    Attributes:
        model: The model.
        new: The frozen layer for each live one.
        eps: The eps to set on each frozen layer.
        notes: What is to be said of it.
    """

    model: nn.Module
    new: Mapping[nn.Module, nn.Module]
    eps: Mapping[Any, float]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        layers: Mapping[str, Eps],
        dims: Collection[int],
        rewritten: Collection[str] = (),
        *,
        trainable_affine: bool = False,
    ) -> _Freezing:
        decisions = decisions_on(model, Selection(), dims)
        modules = dict(model.named_modules(remove_duplicate=False))
        chosen: dict[nn.Module, BatchNormDecision] = {}
        for name in layers:
            layer = modules.get(name)
            _check(name, layer, decisions, dims)
            if layer is not None and layer in decisions:
                chosen[layer] = decisions[layer]
        new = frozen_layers_of(chosen, trainable_affine=trainable_affine)
        eps: dict[Any, float] = {}
        notes = []
        kept: dict[tuple[float | None, float], list[str]] = {}
        new_eps: dict[float, list[str]] = {}
        for name, wanted in layers.items():
            layer = new.get(modules[name], modules[name])
            had = eps_of(layer)
            if wanted.source == "assumed" or had == wanted.value:
                continue
            if wanted.source == "recognised":
                kept.setdefault((had, wanted.value), []).append(name)
            else:
                _check_settable(name, layer, wanted.value)
                eps[layer] = wanted.value
                if name in rewritten:
                    new_eps.setdefault(wanted.value, []).append(name)
                    continue
                notes.append(
                    f"{name}: eps {had:g} of the model is replaced by {wanted.value:g}, which was "
                    f"{wanted.source} when the file was converted"
                )
        notes += [
            f"eps {had:g} of the model is kept; the file was verified with {value:g}, which was "
            f"recognised from its layers when it was converted: {listed(names)}"
            for (had, value), names in kept.items()
            if had is not None
        ]
        notes += [
            f"eps of the model is replaced by {value:g}, for which their running_var was rewritten "
            f"when the file was converted: {listed(names)}"
            for value, names in new_eps.items()
        ]
        return cls(model, new, eps, tuple(notes))

    def apply(self, load: Callable[[nn.Module], None]) -> tuple[nn.Module, tuple[str, ...]]:
        """Make the change, load into the frozen model, and undo both if that fails.

        Returns:
            The model, and what is to be said.
        """
        before = {layer: layer.eps for layer in self.eps}
        model = put_in_place(self.model, self.new)
        try:
            for layer, eps in self.eps.items():
                layer.eps = eps
            load(model)
        except BaseException:
            put_in_place(model, {frozen: live for live, frozen in self.new.items()})
            for layer, eps in before.items():
                layer.eps = eps
            raise
        held = held_text(replace_held(model, self.new))
        return model, (*self.notes, *([held] if held else []))


def _check(
    name: str,
    layer: nn.Module | None,
    decisions: Mapping[nn.Module, BatchNormDecision],
    dims: Collection[int],
) -> None:
    if layer is not None and is_frozen_layer(layer):
        return
    decision = decisions.get(layer) if layer is not None else None
    if decision is None or decision.reason is not None:
        found = "nothing" if layer is None else f"a {type(layer).__name__}"
        advice = "Is this the model that the checkpoint belongs to?"
        layer_dims = dims_of_layer(layer) if layer is not None else None
        if layer_dims is not None and layer_dims not in dims:
            advice = (
                f"Convert the checkpoint again, with --dims 1,2,3 to freeze it too, or with "
                f"--dims-of {name}={layer_dims}d to leave it live."
            )
        elif decision is not None:
            found += f" ({decision.reason})"
        raise UsageError(
            f"layer {name!a}",
            expected=f"a {'BatchNorm' if len(dims) == 3 else kinds_of(dims)} that can be frozen",
            found=found,
            advice=advice,
        )


def _check_settable(name: str, layer: Any, eps: float) -> None:
    if not isinstance(getattr(layer, "eps", None), (int, float)):
        raise UsageError(
            f"layer {name!a}",
            expected=f"eps {eps:g}, as the file says",
            found=f"a {type(layer).__name__}, whose eps is fixed in its code",
            advice="Thaw the model with convert_frozen_to_bn before the file is loaded.",
        )


def _load(model: nn.Module, plan: LoadPlan, entries: Mapping[str, Tensor]) -> None:
    own = state_of(model)
    assign = any(isinstance(own.get(name), Tensor) and own[name].is_meta for name in plan.sources)
    state: OrderedDict[str, Any] = OrderedDict(own)
    for name, source in plan.sources.items():
        if name in own:
            # Where a file's bytes lie in memory decides on the last bit of some kernels.
            state[name] = entries[source].clone() if assign else entries[source]
    # Some modules (torchvision's MNASNet) insist on the version that a state dict is of.
    state._metadata = own._metadata  # type: ignore[attr-defined]
    before = {name: copy.copy(value) if assign else _cloned(value) for name, value in own.items()}
    try:
        model.load_state_dict(state, strict=True, assign=assign)
    except Exception as error:  # The loading code of a model is the user's.
        model.load_state_dict(before, strict=False, assign=assign)
        raise UsageError(
            f"the model's own load_state_dict() refused the file ({error})",
            advice="Nothing was changed.",
        ) from error


def _cloned(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _live_layers(model: nn.Module) -> dict[str, str | None]:
    """Return the BatchNorm layers that are live in a model, and why they cannot be frozen."""
    return {
        name: decision.reason
        for decision in decisions_on(model, Selection(), _ALL_DIMS).values()
        for name in decision.names
    }


def _live_notes(live: Mapping[str, str | None], plan: LoadPlan) -> list[str]:
    named = [name for name in live if not plan.leaves_out(name)]
    if not named:
        return []
    return [
        f"still live, since the file froze no layer of these names: {listed(named, _NAMED)}. "
        "Freeze them with convert_bn_to_frozen, or leave them out with skip="
    ]


def _meta_notes(model: nn.Module) -> list[str]:
    tensors = (*model.named_parameters(), *model.named_buffers())
    named = [name for name, tensor in tensors if tensor.is_meta]
    loaded = [name for name, tensor in tensors if not tensor.is_meta]
    if not named or not loaded:
        return []
    return [f"without values on the meta device: {listed(named, _NAMED)}, which the file lacks"]
