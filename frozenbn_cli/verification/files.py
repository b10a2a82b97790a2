"""Verifies one file against another: opens both, and checks the three claims. Imports torch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import frozenbn_cli
from frozenbn_cli.batch_norm import BatchNorm, Eps, find_batch_norms
from frozenbn_cli.checkpoints import Checkpoint, StateDict, StoredTensor, open_checkpoint
from frozenbn_cli.checkpoints.torchscript import record_path
from frozenbn_cli.claims import Claim, Difference, Verdict, verdict
from frozenbn_cli.errors import located
from frozenbn_cli.live_models import described_by
from frozenbn_cli.metadata import ConversionRecord
from frozenbn_cli.plan import Plan, check_eps_is_wanted, plan_state_dict
from frozenbn_cli.torchscript.rewriting import rewrite
from frozenbn_cli.verification.contents import verify_contents, verify_records
from frozenbn_cli.verification.differences import Tolerance, summary
from frozenbn_cli.verification.layers import verify_layers
from frozenbn_cli.verification.models import blank_loader, frozen_loader, original_loader
from frozenbn_cli.verification.options import VerifyOptions
from frozenbn_cli.verification.running import verify_model
from frozenbn_cli.verification.written import WrittenFile, open_part

__all__ = ["VerificationResult", "verify_files"]

Progress = Callable[[str, int, int], None]
_COUNT = "num_batches_tracked"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerificationResult:
    """What a verification found out.

    Attributes:
        original_path: The file before.
        original_kind: What it holds, and how it is stored.
        original_bytes: Its size.
        converted_path: The file after.
        converted_kind: What it holds, and how it is stored.
        converted_bytes: Its size.
        key: Where in the original the state dict stands; empty if it is the whole file.
        plan: The layers of the original, findings, and which should be frozen.
        frozen: The layers that the converted file froze, with the eps of each.
        live: Why BatchNorm layers of the original were not to be frozen, by name.
        tolerance: Within which values were called equal.
        claims: Contents, layers, model.
        seconds: The time of each stage.
    """

    original_path: Path
    original_kind: str
    original_bytes: int
    converted_path: Path
    converted_kind: str
    converted_bytes: int
    key: str
    plan: Plan
    frozen: Mapping[str, Eps]
    live: Mapping[str, str]
    tolerance: Tolerance
    claims: tuple[Claim, ...]
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """What the claims amount to."""
        return verdict(self.claims)


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
    with open_checkpoint(original) as before, open_checkpoint(converted) as after:
        return _Verification(before, after, options, progress).run()


class _Verification:
    """One run: both files, and the steps that compare them."""

    def __init__(
        self,
        before: Checkpoint,
        after: Checkpoint,
        options: VerifyOptions,
        progress: Progress | None,
    ) -> None:
        self._before = before
        self._after = after
        self._options = options
        self._tolerance = Tolerance(options.atol, options.rtol)
        self._report = progress or (lambda *_: None)
        self._seconds: dict[str, float] = {}

    def run(self) -> VerificationResult:
        options = self._options
        with self._timed("plan"):
            with located(str(self._before.path)):
                original = self._described(self._before.state_dict(options.key))
                plan = plan_state_dict(
                    original, self._before.metadata, eps=options.eps, selection=options.selection
                )
                check_eps_is_wanted(plan, options.eps)
            with located(str(self._after.path)):
                converted = self._converted_part()
            written = open_part(self._after, converted)
            stated = _frozen_layers(converted, self._after.metadata, plan)
            known = {item.layer.name: item.layer for item in plan.layers}
            frozen = {name: eps or known[name].eps for name, eps in stated.items() if name in known}
        with self._timed("contents"):
            contents = self._contents(original, converted, written, set(frozen))
        with self._timed("layers"):
            layers = self._layers(written, plan, stated)
        with self._timed("model"):
            model = self._model(original, converted, written, frozen)
        return VerificationResult(
            original_path=self._before.path,
            original_kind=f"{self._before.kind} ({self._before.container})",
            original_bytes=self._before.size_bytes,
            converted_path=self._after.path,
            converted_kind=f"{self._after.kind} ({self._after.container})",
            converted_bytes=self._after.size_bytes,
            key=original.key,
            plan=plan,
            frozen=frozen,
            live={
                item.layer.name: item.reason or ""
                for item in plan.left
                if item.layer.name not in frozen and not item.layer.frozen_already
            },
            tolerance=self._tolerance,
            claims=(contents, layers, model),
            seconds=self._seconds,
        )

    def _described(self, part: StateDict) -> StateDict:
        """Return the original's state dict with what the model says of its layers."""
        if self._options.model is None or self._before.script:
            return part
        return described_by(self._options.model, part, strict=True)[0]

    def _converted_part(self) -> StateDict:
        key = self._options.key
        keys = {part.key for part in self._after.state_dicts} | set(self._after.others)
        return self._after.state_dict(key if key in keys else None)

    # The three claims

    def _contents(
        self, original: StateDict, converted: StateDict, written: WrittenFile, frozen: set[str]
    ) -> Claim:
        expected = _kept(original, written, frozen)
        # TorchScript has no buffers that a state dict would leave out.
        keeps_more = self._after.script is not None and self._before.script is None
        may_have = written.names() - expected.keys() if keeps_more else set()
        may_have -= {f"{name}.{_COUNT}" for name in frozen}
        total = sum(tensor.size_bytes for tensor in expected.values())
        with located(str(self._before.path)):
            claim = verify_contents(
                written,
                expected,
                self._counter("comparing", total),
                tolerance=self._tolerance,
                may_have=may_have,
            )
        if claim.status == "equal" and (found := self._other_record()):
            return Claim("contents", "different", found)
        unreadable = {**original.unsupported, **converted.unsupported}
        if claim.status == "equal" and unreadable:
            name, reason = next(iter(unreadable.items()))
            return Claim("contents", "not verified", f"{name} cannot be compared: {reason}")
        return claim

    def _other_record(self) -> str | None:
        """Return which record of an archive that frozenbn rewrote is not what it has to be."""
        record = ConversionRecord.from_metadata(self._after.metadata)
        if not (self._before.script and self._after.script and record):
            return None
        if record.version != frozenbn_cli.__version__:
            return None
        if record.source.get("sha256") != self._before.fingerprint():
            return None
        rewriting = rewrite(self._before.script, record.layers)
        dropped = rewriting.dropped | {record_path(self._before.script.root)}
        return verify_records(
            self._after.path, self._before.script, replace(rewriting, dropped=dropped)
        )

    def _layers(self, written: WrittenFile, plan: Plan, stated: Mapping[str, Eps | None]) -> Claim:
        sources: dict[str, BatchNorm] = {}
        eps: dict[str, Eps] = {}
        silent: list[str] = []
        for source in (item.layer for item in plan.layers):
            name = source.name
            if name not in stated or not source.has_statistics:
                continue
            found = stated[name]
            if found is None:
                silent.append(name)
            eps[name] = found or source.eps
            # An original that does not hold it takes what the conversion was told.
            is_told = source.eps.source == "assumed" and eps[name].source != "assumed"
            sources[name] = replace(source, eps=eps[name]) if is_told else source
        claim = verify_layers(
            written,
            sources,
            self._counter("running", len(sources)),
            stated=eps,
            tolerance=self._tolerance,
        )
        return _with_live(claim, _unexpected(plan, stated), silent, len(sources))

    def _model(
        self,
        original: StateDict,
        converted: StateDict,
        written: WrittenFile,
        frozen: Mapping[str, Eps],
    ) -> Claim:
        options = self._options
        before = original_loader(self._before, original, options)
        if self._after.script or (options.model is None and converted.is_module):
            after = original_loader(self._after, converted, options)
        else:
            after = frozen_loader(blank_loader(self._before, original, options), written, frozen)
        return verify_model(before, after, frozen, options, self._tolerance)

    def _counter(self, stage: str, total: int) -> Callable[[int], None]:
        done = 0

        def count(more: int) -> None:
            nonlocal done
            done += more
            self._report(stage, done, total)

        return count

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self._seconds[stage] = time.perf_counter() - started


def _frozen_layers(
    part: StateDict, metadata: Mapping[str, str], plan: Plan
) -> dict[str, Eps | None]:
    """Return the layers that a converted file froze, with the eps that it states.

    By its record or its classes; a file with neither is taken to have frozen the layers whose
    counts of batches are gone.
    """
    record = ConversionRecord.from_metadata(metadata)
    found: dict[str, Eps | None] = {}
    if record:
        found |= record.without_prefix(part.prefix).layers
    for layer in find_batch_norms(part):
        if layer.frozen_already:
            found[layer.name] = layer.eps if layer.eps.source == "read" else found.get(layer.name)
    if found or part.layers:
        return found
    return {
        item.layer.name: None
        for item in plan.layers
        if _COUNT in item.layer.tensors
        and item.layer.entry_name(_COUNT) not in part.entries
        and item.layer.entry_name("running_var") in part.entries
    }


def _kept(original: StateDict, written: WrittenFile, frozen: set[str]) -> dict[str, StoredTensor]:
    """Return the entries that have to be there still: all but the counts of frozen layers.

    Such a count may stay, for code that reads it, if it is the same.
    """
    names = written.names()
    return {
        name: entry
        for name, entry in original.entries.items()
        if name in names or not (name.endswith(_COUNT) and name[: -len(_COUNT) - 1] in frozen)
    }


def _unexpected(plan: Plan, stated: Mapping[str, object]) -> list[Difference]:
    """Return the layers that should be frozen and are not, and the reverse."""
    found = []
    for item in plan.layers:
        name = item.layer.name
        if item.action == "freeze" and name not in stated:
            found.append(
                Difference(name or "the layer", "a BatchNorm2d that is live in the converted file")
            )
        if item.deselected and name in stated:
            found.append(Difference(name, f"frozen in the converted file, but {item.reason}"))
    known = {item.layer.name for item in plan.layers}
    found += [Difference(name, "no layer of the original") for name in stated if name not in known]
    return found


def _with_live(claim: Claim, unexpected: list[Difference], silent: list[str], count: int) -> Claim:
    """Return the claim on layers with what is wrong beside their outputs, or not known."""
    if unexpected:
        if claim.status == "different":
            unexpected = [*claim.differences, *unexpected]
        said = summary(unexpected, max(count, len(unexpected)), "layers")
        if not count:
            said = f"no layer of the original is frozen in the converted file; {said}"
        return Claim("layers", "different", said, count, tuple(unexpected))
    if silent and claim.status == "equal":
        reason = (
            f"the converted file does not state the eps of {len(silent):,} of {count:,} layers; "
            "with the same eps their outputs are equal"
        )
        return Claim("layers", "not verified", reason, count)
    return claim
