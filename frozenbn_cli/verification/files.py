"""Verifies one file against another: opens both, and checks the three claims."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from frozenbn_cli.batch_norms.plan import Plan, check_eps_is_wanted, plan_state_dict
from frozenbn_cli.batch_norms.summaries import summaries_of
from frozenbn_cli.checkpoints import Checkpoint, StateDict, open_checkpoint
from frozenbn_cli.checkpoints.names import renamed
from frozenbn_cli.containers.fingerprint import fingerprint
from frozenbn_cli.errors import UsageError, located
from frozenbn_cli.foreign_code import apart
from frozenbn_cli.live_models.resolving import fitted_to
from frozenbn_cli.live_models.target import no_model_wanted
from frozenbn_cli.live_models.unused_options import check_used
from frozenbn_cli.outputs import own_format
from frozenbn_cli.selection import Selection
from frozenbn_cli.stages import Progress, Stages, begin, import_torch_for, telling
from frozenbn_cli.verification.claims import Claim, merged, with_required
from frozenbn_cli.verification.file_contents import verify_file_contents
from frozenbn_cli.verification.file_layers import verify_file_layers
from frozenbn_cli.verification.file_pair import FilePair
from frozenbn_cli.verification.freezing import frozen_layers, rewritten_layers
from frozenbn_cli.verification.loaders import blank_loader, frozen_loader, original_loader
from frozenbn_cli.verification.private_copies import PrivateCopies
from frozenbn_cli.verification.recorded import are_swapped, check_order, recorded_of
from frozenbn_cli.verification.recorded_edits import contents_of_all, recorded_keys
from frozenbn_cli.verification.terms import Recorded, VerificationResult, VerifyOptions
from frozenbn_cli.verification.tolerance import Tolerance
from frozenbn_cli.verification.whole_models import verify_whole_model
from frozenbn_cli.verification.written import open_part

__all__ = ["VerificationResult", "verify_files"]

_NOT_RUN = Claim("model", "not verified", "another model of the checkpoint is run")


def verify_files(
    original: str | Path,
    converted: str | Path,
    *,
    options: VerifyOptions | None = None,
    progress: Progress | None = None,
) -> VerificationResult:
    """Check that one file is another with its BatchNorm2d layers frozen, and nothing else changed.

    Any two kinds of files go together. No pickle in them is executed, unless ``options.trust``
    says so; a TorchScript archive is run.

    Args:
        original: The file before.
        converted: The file after.
        options: How to verify.
        progress: Is told how far the work has come.

    Returns:
        The three claims with their evidence; a difference is a result, not an error.

    Raises:
        InputError: A file is damaged or of an unsupported kind.
        UsageError: The model does not fit the files, or a pattern matches no layer.
    """
    options = options or VerifyOptions()
    with (
        telling(progress),
        open_checkpoint(original) as before,
        open_checkpoint(converted) as after,
    ):
        check_order(before, after)
        keys = recorded_keys(before, after, options.key)
        recorded = recorded_of(before, after, options)
        options = recorded.completed(options)
        if options.model is not None:
            key = keys[0] if keys else options.key
            model = fitted_to(before.state_dict(key), options.model)
            building = import_torch_for("frozenbn_cli.live_models.building")
            options = replace(options, model=model and building.BuiltOnce(model))
        run = partial(_verified, before, after, options, recorded)
        if not options.hash_files:
            return run(keys)
        with _hashed_beside(before, after) as (first, second):
            result = run(keys)
            begin("hashing")
            return replace(result, original_sha256=first.result(), converted_sha256=second.result())


@contextmanager
def _hashed_beside(*files: Checkpoint) -> Iterator[list[Future[str]]]:
    """Take the sha256 of files while they are read for something else."""
    pool = ThreadPoolExecutor(len(files))
    try:
        yield [pool.submit(fingerprint, file.sources) for file in files]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _verified(
    before: Checkpoint,
    after: Checkpoint,
    options: VerifyOptions,
    recorded: Recorded,
    keys: Sequence[str],
) -> VerificationResult:
    """Verify one state dict, or a training checkpoint that stayed one: all models and all else.

    Args:
        before: The original.
        after: The converted file.
        options: How to verify.
        recorded: What the record adds to that.
        keys: The models of a training checkpoint that were frozen; none for one state dict.
    """
    if not keys:
        return _Verification(before, after, options, recorded).run()
    parts, results = [], []
    for key in keys:
        each = _Verification(before, after, replace(options, key=key), recorded)
        results.append(each.run(is_main=key == keys[0]))
        parts.append((each.original, results[-1].plan))
    model = results[0].claims[2]
    contents = contents_of_all(
        (before, after), parts, [result.claims[0] for result in results], results[0].tolerance
    )
    layers = merged((result.key, result.claims[1]) for result in results)
    return replace(results[0], claims=with_required((contents, layers, model), options.require))


class _Verification:
    """One run: both files, and the steps that compare them."""

    def __init__(
        self,
        before: Checkpoint,
        after: Checkpoint,
        options: VerifyOptions,
        recorded: Recorded,
    ) -> None:
        self._before = before
        self._after = after
        self._options = options
        self._recorded = recorded
        self._tolerance = Tolerance(options.atol, options.rtol)
        self._stages = Stages()
        self.original: StateDict

    def run(self, *, is_main: bool = True) -> VerificationResult:
        """Compare both files; of a training checkpoint, its main model alone is run."""
        with self._stages.timed("plan"):
            pair = self._pair()
        with self._stages.timed("contents"):
            contents = verify_file_contents(pair)
        with self._stages.timed("layers"):
            layers = verify_file_layers(pair)
        with self._stages.timed("model"):
            model = self._model(pair) if is_main else _NOT_RUN
        self._before.check_unchanged()
        self._after.check_unchanged()
        return self._result(pair, (contents, layers, model))

    def _pair(self) -> FilePair:
        """Return both files, with the layers that have to be frozen and those that are."""
        options = self._options
        with located(str(self._before.path)):
            self._check_options()
            named = self._named_alike(self._before.state_dict(options.key))
            original = self.original = self._described(named)
            plan = self._plan(original)
            check_eps_is_wanted(plan, options.eps)
        with located(str(self._after.path)):
            converted = self._converted_part()
        if options.runs_code_of(self._before, original) or own_format(self._after):
            apart.prepare(for_programs="pt2" in map(own_format, (self._before, self._after)))
        written = open_part(self._after, converted)
        metadata = self._after.metadata
        stated = frozen_layers(converted, metadata, plan)
        return FilePair(
            before=self._before,
            after=self._after,
            original=original,
            converted=converted,
            written=written,
            plan=plan,
            stated=stated,
            rewritten=rewritten_layers(converted, metadata, stated),
            tolerance=self._tolerance,
        )

    def _result(self, pair: FilePair, claims: tuple[Claim, ...]) -> VerificationResult:
        plan, frozen = pair.plan, pair.frozen
        return VerificationResult(
            original_path=self._before.path,
            original_kind=f"{self._before.kind} ({self._before.container})",
            original_bytes=self._before.size_bytes,
            converted_path=self._after.path,
            converted_kind=f"{self._after.kind} ({self._after.container})",
            converted_bytes=self._after.size_bytes,
            key=pair.original.key,
            recorded=self._recorded,
            plan=plan,
            frozen=frozen,
            live={
                item.layer.name: item.reason or ""
                for item in plan.left
                if item.layer.name not in frozen and not item.layer.frozen_already
            },
            tolerance=pair.tolerance,
            claims=with_required(claims, self._options.require),
            swapped=are_swapped(plan, self._after, pair.converted),
            summaries=summaries_of(plan) if self._options.summarize else {},
            seconds=self._stages.seconds,
        )

    def _named_alike(self, part: StateDict) -> StateDict:
        """Return the original's state dict with the names that the conversion gave its entries."""
        steps, done = self._recorded.renamed, part.renaming.steps
        return renamed(part, steps[len(done) :]) if steps[: len(done)] == done else part

    def _check_options(self) -> None:
        """Refuse what would have no effect."""
        options = self._options
        before = self._before, self._before.state_dict(options.key)
        after = self._after, self._converted_part()
        runs_itself = own_format(self._after) or (
            options.model is None and (after[1].is_module or self._before.script)
        )
        check_used(options, before, after if runs_itself else before)

    def _plan(self, original: StateDict) -> Plan:
        """Return which layers have to be frozen, as the user says or, if not, as recorded."""
        options = self._options
        given = self._recorded.eps
        eps = given[0] if options.eps is None and len(given) == 1 else options.eps
        plan_with = partial(
            plan_state_dict, original, self._before.metadata, eps=eps, dims=options.dims
        )
        for selection in self._recorded.selections:
            with suppress(UsageError):  # It may be of a file with other layers than these.
                plan = plan_with(selection=selection)
                self._recorded = replace(self._recorded, selection=selection)
                return plan
        self._recorded = replace(self._recorded, selection=Selection())
        return plan_with(selection=options.selection)

    def _described(self, part: StateDict) -> StateDict:
        """Return the original's state dict with what the model says of its layers."""
        if self._options.model is None:
            return part
        if own := own_format(self._before):
            if own == "torchscript" == own_format(self._after):
                raise no_model_wanted()
            return part
        describing = import_torch_for("frozenbn_cli.live_models.describing")
        described: StateDict = describing.described_by(self._options.model, part, strict=True)[0]
        return described

    def _converted_part(self) -> StateDict:
        key = self._options.key
        keys = {part.key for part in self._after.state_dicts} | set(self._after.others)
        return self._after.state_dict(key if key in keys else None)

    def _model(self, pair: FilePair) -> Claim:
        options, frozen = self._options, pair.frozen
        with PrivateCopies() as copies:
            before = original_loader(
                self._before,
                pair.original,
                options,
                copies,
                frozen=frozen,
                as_program=self._after.program is not None,
            )
            if own_format(self._after) or (options.model is None and pair.converted.is_module):
                after = original_loader(
                    self._after, pair.converted, options, copies, as_program=True
                )
            else:
                blank = blank_loader(self._before, pair.original, options)
                after = frozen_loader(blank, pair.written, frozen)
            return verify_whole_model(before, after, frozen, options, pair.tolerance)
