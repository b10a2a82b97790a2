"""How one file is verified against another: what was wanted, and what found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from frozenbn_cli.batch_norms.batch_norm import Eps
from frozenbn_cli.batch_norms.plan import Plan
from frozenbn_cli.batch_norms.summaries import Summary
from frozenbn_cli.live_models.run_options import RunOptions
from frozenbn_cli.selection import Selection
from frozenbn_cli.verification.claims import Claim, ClaimName, Verdict, check_required, verdict
from frozenbn_cli.verification.tolerance import Tolerance

__all__ = ["Recorded", "VerificationResult", "VerifyOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions(RunOptions):
    """How to verify one file against another.

    Attributes:
        key: Which state dict of a file that holds several, such as ``model_ema``.
        eps: Of every layer whose eps the original does not hold; None takes what the converted
            file states.
        selection: Which layers have to be frozen.
        dims: Of how many spatial dimensions; None takes what the converted file's record says.
        atol: How far values may lie apart: |after - before| <= atol + rtol * |before|.
        rtol: As above.
        require: The claims that have to be found equal, or the verdict is no ``passed``.
        summarize: Sum up the numbers of each layer, for a report that draws them.
        hash_files: Take the sha256 of both files, for a report that names it.
    """

    key: str | None = None
    eps: float | None = None
    selection: Selection = field(default_factory=Selection)
    dims: tuple[int, ...] | None = None
    atol: float = 0.0
    rtol: float = 0.0
    require: tuple[ClaimName, ...] = ()
    summarize: bool = False
    hash_files: bool = False

    def __post_init__(self) -> None:
        RunOptions.__post_init__(self)
        check_required(self.require)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What was taken from a record, as far as it was.

    Attributes:
        key: Which state dict of the original was converted.
        eps: Those that were given at conversion, of layers whose eps the original does not hold.
        selection: Which layers were to be frozen, and what was said of them.
        dims: Of which spatial dimensions layers were to be frozen.
        renamed: What names began with in the original, and what instead in the converted file.
    """

    key: str | None = None
    eps: tuple[float, ...] = ()
    selection: Selection = field(default_factory=Selection)
    dims: tuple[int, ...] | None = None
    renamed: tuple[tuple[str, str], ...] = ()

    @property
    def selections(self) -> tuple[Selection, ...]:
        """The selection, and what of it holds still where more is known of the layers."""
        full = self.selection
        patterns = Selection(full.include, full.exclude)
        return tuple(one for one in dict.fromkeys((full, patterns)) if one != Selection())

    def completed(self, options: VerifyOptions) -> VerifyOptions:
        """Return options with what the record adds to them."""
        return replace(options, key=options.key or self.key, dims=options.dims or self.dims)


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
        original_sha256: None where the options do not ask for it.
        converted_sha256: As above.
        key: Where in the original the state dict stands; empty if it is the whole file.
        recorded: What was taken from the record of the converted file.
        plan: The layers of the original, findings, and which should be frozen.
        frozen: The layers that the converted file froze, with the eps of each.
        live: Why BatchNorm layers of the original were not to be frozen, by name.
        tolerance: Within which values were called equal.
        claims: Contents, layers, model.
        swapped: Whether it looks as if the two files had been given in the wrong order.
        summaries: The numbers of each layer of the original, by name, where the options ask for
            them.
        seconds: The time of each stage.
    """

    original_path: Path
    original_kind: str
    original_bytes: int
    converted_path: Path
    converted_kind: str
    converted_bytes: int
    original_sha256: str | None = None
    converted_sha256: str | None = None
    key: str
    recorded: Recorded
    plan: Plan
    frozen: Mapping[str, Eps]
    live: Mapping[str, str]
    tolerance: Tolerance
    claims: tuple[Claim, ...]
    swapped: bool = False
    summaries: Mapping[str, Summary] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """What the claims amount to."""
        return verdict(self.claims)
