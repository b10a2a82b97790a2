"""The third claim: the whole model gives the same outputs. Runs models, and imports torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from frozenbn_cli import torch_jit
from frozenbn_cli.errors import FrozenBNError, UsageError
from frozenbn_cli.live_models.building import scripted
from frozenbn_cli.live_models.guarding import first_line, foreign_code
from frozenbn_cli.live_models.inputs import Inputs, candidate_inputs
from frozenbn_cli.live_models.programs import takes_of
from frozenbn_cli.live_models.run_options import RunOptions
from frozenbn_cli.stages import begin
from frozenbn_cli.verification.claims import Claim, Difference, summary, tolerated_text
from frozenbn_cli.verification.leaves import (
    count_values,
    has_numbers,
    have_same_form,
    leaf_differences,
)
from frozenbn_cli.verification.loaders import ArchiveLoader, Loader, ProgramLoader
from frozenbn_cli.verification.model_runs import (
    LoadingError,
    ModelError,
    Run,
    buffers_of,
    changed,
    load,
    ran,
)
from frozenbn_cli.verification.staying import changes_of_frozen, claim_of_changes, train_once
from frozenbn_cli.verification.tolerance import EXACT, Tolerance
from frozenbn_cli.verification.watching import step_difference, submodule, watched

__all__ = ["find_inputs", "verify_model"]

_RUNNING = "running the model ({} of 4)"
# The original in eval; the converted in eval, with its frozen layers in training mode, with all.


def verify_model(
    before: Loader,
    after: Loader,
    frozen: Iterable[str],
    options: RunOptions,
    tolerance: Tolerance = EXACT,
) -> Claim:
    """Run two models on the same inputs and compare what comes out, bit by bit.

    First in eval; then with the frozen layers of the second alone in training mode, in which they
    must not change anything; then with all of it in training mode. No buffer of a frozen layer may
    change in any of these, also where it does in the original.

    Args:
        before: Loads the original.
        after: Loads the converted.
        frozen: The names of its frozen layers.
        options: On what to run them.
        tolerance: Of the outputs.
    """
    if not torch_jit.IS_THERE and any(_loads(each, ArchiveLoader) for each in (before, after)):
        return _not_verified(torch_jit.MISSING)
    try:
        runs = _find_runs(before, options, taker=after)
        if isinstance(runs, str):
            were_given = bool(options.input_shapes or options.inputs)
            return replace(_not_verified(runs), inputs_were_given=were_given)
        return _Comparison(before, after, list(frozen), runs, tolerance).run()
    except LoadingError as error:
        return _not_verified(f"PyTorch cannot load the input here: {error.first}")
    except ModelError as error:
        return _not_verified(f"it does not run again: {error.last}")


def _loads(loader: Loader, kind: type[ArchiveLoader | ProgramLoader]) -> bool:
    return isinstance(getattr(loader, "load", loader), kind)


def find_inputs(model: Loader, options: RunOptions, *, sizes: Sequence[int] = ()) -> Inputs | str:
    """Return inputs on which a model runs, the first of them, or why there are none.

    Args:
        model: Loads the model.
        options: What is given of its inputs.
        sizes: Of images, in the order in which they are tried; small ones first if there are none.
    """
    runs = _find_runs(model, options, sizes)
    return runs if isinstance(runs, str) else runs[0].inputs


def _find_runs(
    loader: Loader, options: RunOptions, sizes: Sequence[int] = (), taker: Loader | None = None
) -> list[Run] | str:
    """Return the runs of a model on the first inputs that it takes, or why there are none.

    A program says what it takes, where others have to be tried; so does one that is run later.
    """
    model = load(loader)
    asked = model
    if taker and takes_of(model) is None and _loads(taker, ProgramLoader):
        asked = load(taker)
    try:
        with foreign_code():
            candidates = candidate_inputs(asked, options, sizes=sizes)
    except FrozenBNError:
        raise
    except Exception as error:  # A model is foreign code, which may raise anything.
        return f"what its forward takes cannot be found out: {first_line(error)}"
    if isinstance(candidates, str):
        return candidates
    reason = ""
    for inputs in candidates:
        runs = _try(model, inputs)
        if not isinstance(runs, str):
            # A run that failed may have left traces in the model.
            return _try(load(loader), inputs) if reason else runs
        reason = reason or runs
    is_given = options.input_shapes or options.inputs
    return reason if is_given else f"{reason}; give --input-shape"


def _try(model: Any, inputs: tuple[Inputs, ...]) -> list[Run] | str:
    count = begin(_RUNNING.format(1), len(inputs))
    try:
        return [ran(model, each, count) for each in inputs]
    except ModelError as error:
        return f"it does not run on {_shape(inputs[0])}: {error.last}"


def _shape(inputs: Inputs) -> str:
    return inputs.shown.partition(" of ")[0]


@dataclass(slots=True)
class _Comparison:
    """Compares what became of the original with what becomes of the converted."""

    before: Loader
    after: Loader
    frozen: list[str]
    runs: list[Run]
    tolerance: Tolerance
    _tolerated: list[Difference] = field(default_factory=list)
    _is_scripted: bool = False
    # Buffers of frozen layers that change all the same.
    _changes: list[Difference] = field(default_factory=list)

    def run(self) -> Claim:
        model = None
        for mode, in_training in (
            ("in eval", []),
            ("with the frozen layers in training mode", self.frozen),
        ):
            fresh = model is None
            try:
                model = model or load(self.after)
                if in_training and takes_of(model):
                    break  # It has one mode.
                differences = self._differences(model, in_training)
                # Layers that stay live may have learnt from the run before.
                if _matter(differences) and (not fresh or self._is_scripted_alike(model)):
                    differences = self._differences(load(self.after), in_training)
            except ModelError as error:
                differences = [Difference("the converted model", f"fails ({error.last})")]
            except UsageError as error:
                # An original that is no archive fits the model, or was refused before.
                if torch_jit.is_script_module(load(self.before)):
                    raise
                differences = [Difference("the converted file", error.problem)]
            if self._changes:
                return claim_of_changes(self._changes, f"{mode}, on {self._shown()}")
            if _matter(differences):
                return self._different(differences, mode, in_training)
            self._tolerated = self._tolerated or differences
        said = self._train()
        if self._changes:
            mode = "with the whole model in train()"
            return claim_of_changes(self._changes, f"{mode}, on {self._shown()}")
        return self._equal(said)

    def _train(self) -> str:
        """Run the converted with all of it in training mode; return in words what came of it."""
        if _loads(self.after, ProgramLoader):
            return "frozen layers do not change, and an exported program has no other mode"
        inputs = self.runs[0].inputs
        for each in (inputs, inputs.doubled()):
            model = load(self.after)
            before = buffers_of(model)
            begin(_RUNNING.format(4))
            reason = train_once(model, each)
            self._changes += changes_of_frozen(changed(before, buffers_of(model)), self.frozen)
            if reason is None or self._changes:
                return "frozen layers do not change in train() either"
        return f"in train() it does not run on this ({reason})"

    def _differences(self, model: Any, in_training: list[str]) -> list[Difference]:
        for name in in_training:
            submodule(model, name).training = True
        found: list[Difference] = []
        count = begin(_RUNNING.format(3 if in_training else 2), len(self.runs))
        for run in self.runs:
            again = ran(model, run.inputs, count)
            self._changes += changes_of_frozen(again.changed, self.frozen)
            found += leaf_differences(run.outputs, again.outputs, self.tolerance)
            found += self._buffer_differences(run, again)
            if _matter(found):
                break
        return found

    def _is_scripted_alike(self, model: Any) -> bool:
        """Script the original too, if that is what gives its outputs the form of the converted.

        The detectors and some classifiers of torchvision return more where they are scripted.
        """
        original, run = load(self.before), self.runs[0]
        is_script = [torch_jit.is_script_module(each) for each in (original, model)]
        again = ran(model, run.inputs).outputs
        if is_script != [False, True] or have_same_form(run.outputs, again):
            return False
        before = self.before

        def load_scripted() -> Any:
            return scripted(load(before))[0]

        compiled = scripted(original)[0]
        runs = compiled and _try(compiled, tuple(run.inputs for run in self.runs))
        if isinstance(runs, str) or not runs or not have_same_form(runs[0].outputs, again):
            return False
        self.before, self.runs, self._is_scripted = load_scripted, runs, True
        return True

    def _buffer_differences(self, run: Run, again: Run) -> list[Difference]:
        """Return the buffers that one run changed, and the other did not or otherwise."""
        found = [
            Difference(name, "is changed by a run")
            for name, value in again.changed.items()
            if name not in run.changed
            or _matter(leaf_differences(run.changed[name], value, self.tolerance))
        ]
        unchanged = run.changed.keys() - again.changed.keys()
        return found + [Difference(name, "is no longer changed by a run") for name in unchanged]

    def _different(self, differences: list[Difference], mode: str, in_training: list[str]) -> Claim:
        shown = self._shown()
        begin("measuring how outputs differ")
        with contextlib.suppress(ModelError):
            original = load(self.before)
            again = [ran(original, run.inputs) for run in self.runs]
            if any(
                leaf_differences(run.outputs, other.outputs, EXACT)
                for run, other in zip(self.runs, again, strict=True)
            ):
                return _not_verified(f"run twice on {shown}, the input itself differs")
        count = count_values(self.runs[0].outputs)
        total = max(count * len(self.runs), len(differences))
        said = f"{summary(differences, total, 'outputs')}, {mode}, on {shown}"
        begins = ""
        with contextlib.suppress(ModelError, UsageError):
            begins = self._begins(in_training) or ""
        return Claim("model", "different", said, count, tuple(differences), begins)

    def _equal(self, in_training: str) -> Claim:
        count = count_values(self.runs[0].outputs)
        modes = ", in eval and with the frozen layers in training mode"
        detail = f"outputs on {self._shown()}{'' if _loads(self.after, ProgramLoader) else modes}"
        if not any(has_numbers(run.outputs) for run in self.runs):
            detail = f"outputs hold no finite numbers on {self._shown()}"
            if not self._can_be_watched():
                return _not_verified(f"{detail}; give --inputs")
            if begins := self._begins(self.frozen):
                return Claim("model", "different", begins, count, begins=begins)
            original = load(self.before)
            steps = watched(original, self.frozen, partial(ran, original, self.runs[0].inputs))
            told_by = {step.name for step in steps if step.output.isfinite().any()}
            if not told_by:
                return _not_verified(f"{detail}, nor do those of its layers; give --inputs")
            detail += f"; those of {len(told_by):,} of {len(self.frozen):,} frozen layers are equal"
        detail += f"; {in_training}" + tolerated_text(self._tolerated, self.tolerance, "outputs")
        return Claim("model", "equal", detail, count, tuple(self._tolerated))

    def _shown(self) -> str:
        count = len(self.runs)
        shown = self.runs[0].inputs.shown
        shown = shown if count == 1 else f"{count:,} inputs of {shown}"
        return f"{shown}, the original scripted too" if self._is_scripted else shown

    # Along the layers

    def _can_be_watched(self) -> bool:
        return all(map(_is_watchable, map(load, (self.before, self.after))))

    def _begins(self, in_training: list[str]) -> str | None:
        """Return where along the frozen layers outputs begin to differ; None if they do not."""
        before, after = load(self.before), load(self.after)
        if not (_is_watchable(before) and _is_watchable(after)):
            return None
        for name in in_training:
            submodule(after, name).training = True
        for run in self.runs:
            expected = watched(before, self.frozen, partial(ran, before, run.inputs))
            found = watched(after, self.frozen, partial(ran, after, run.inputs))
            for place, (first, second) in enumerate(zip(expected, found, strict=False)):
                which = f"layer {place + 1:,} of {len(expected):,} in running order"
                if said := step_difference(first, second, which, self.tolerance):
                    return said
            if len(expected) != len(found):
                return f"{len(found):,} layers run instead of {len(expected):,}"
        return None


def _is_watchable(model: Any) -> bool:
    """Return whether its layers are modules that can be watched at work."""
    return not torch_jit.is_script_module(model) and takes_of(model) is None


def _matter(differences: list[Difference]) -> bool:
    return any(not item.tolerated for item in differences)


def _not_verified(reason: str) -> Claim:
    return Claim("model", "not verified", reason)
