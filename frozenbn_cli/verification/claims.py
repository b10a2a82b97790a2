"""What a verification found out."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from frozenbn_cli.errors import UsageError
from frozenbn_cli.verification.tolerance import Tolerance

__all__ = [
    "CLAIMS",
    "Claim",
    "ClaimName",
    "Difference",
    "Measure",
    "Verdict",
    "check_required",
    "merged",
    "summary",
    "tolerated_text",
    "verdict",
    "with_required",
]

ClaimName = Literal["contents", "layers", "model"]
CLAIMS: tuple[ClaimName, ...] = ("contents", "layers", "model")
Verdict = Literal["passed", "failed", "not verified"]

# Beyond these they say nothing; between 1 and -1 lie two thousand millions.
_FEW_ULPS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """By how much two tensors of one shape differ, element by element, computed in float64.

    Attributes:
        elements: How many there are.
        differing: How many of them differ; NaN does not differ from NaN.
        absolute: The largest absolute difference; infinite where NaN meets a number.
        index: Where it is.
        before: The value there in the original.
        after: The value there in the converted.
        relative: The largest difference relative to the original's value.
        relative_index: Where that is.
        ulps: The largest number of representable values between two; None for other than floats
            of one dtype.
        mean: Of the absolute difference over all elements.
        percentile_99: Of the absolute difference over all elements.
    """

    elements: int
    differing: int
    absolute: float
    index: tuple[int, ...]
    before: float | complex
    after: float | complex
    relative: float
    relative_index: tuple[int, ...]
    ulps: int | None
    mean: float
    percentile_99: float


@dataclass(frozen=True, slots=True)
class Difference:
    """One place in which two files or models differ.

    Attributes:
        place: The entry, the layer, or the part of the output.
        problem: What is wrong, in words; empty where the numbers say all.
        measure: By how much; None where there is nothing to compare.
        tolerated: Whether it is within the tolerance that was given.
    """

    place: str
    problem: str = ""
    measure: Measure | None = None
    tolerated: bool = False

    def __str__(self) -> str:
        parts = [self.problem] if self.problem else []
        if found := self.measure:
            if found.differing:
                verb = "differs" if found.differing == 1 else "differ"
                ulps = f" ({found.ulps:,} ULP)" if found.ulps and found.ulps <= _FEW_ULPS else ""
                parts.append(
                    f"{found.differing:,} of {found.elements:,} elements {verb}, "
                    f"by up to {found.absolute:.3g}{ulps}"
                )
            elif not parts:
                parts.append("differs in bits that are no value: the sign of 0, or of which NaN")
        return f"{self.place}: {', '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Claim:
    """Something that has to hold of the converted file.

    Attributes:
        name: ``contents``: every entry that was not to change is bit-identical. ``layers``: every
            frozen layer computes what its BatchNorm2d does in eval. ``model``: the whole does.
        status: ``equal``, ``different`` or ``not verified``.
        detail: What was compared, what the first difference is, or why nothing was compared.
        checked: How many entries, layers or outputs were compared.
        differences: Every one that was found, in the order of the model; tolerated ones too.
        begins: Where along its layers a model's outputs begin to differ; empty if unknown.
        advice: What to do about a difference that is the model's own; empty for other ones.
        required: Whether it has to be found equal.
        inputs_were_given: Whether it is not verified on inputs that the user chose.
    """

    name: ClaimName
    status: Literal["equal", "different", "not verified"]
    detail: str
    checked: int = 0
    differences: tuple[Difference, ...] = ()
    begins: str = ""
    advice: str = ""
    required: bool = False
    inputs_were_given: bool = False

    @property
    def is_missing(self) -> bool:
        """Whether it is required, and not verified."""
        return self.required and self.status == "not verified"

    @property
    def smallest_atol(self) -> float | None:
        """The smallest absolute tolerance that would let it pass; None if none would."""
        return self._smallest("absolute")

    @property
    def smallest_rtol(self) -> float | None:
        """The smallest relative tolerance that would let it pass; None if none would."""
        return self._smallest("relative")

    def _smallest(self, which: Literal["absolute", "relative"]) -> float | None:
        found = [getattr(item.measure, which, math.inf) for item in self.differences]
        largest: float = max(found, default=math.inf)
        return largest if largest < math.inf else None


def summary(differences: Sequence[Difference], total: int, noun: str) -> str:
    """Return one line on differences in some of ``total`` places, the first of them in words."""
    first = next((item for item in differences if not item.tolerated), differences[0])
    if len(differences) == 1:
        return str(first)
    return f"{len(differences):,} of {total:,} {noun} differ, the first is {first}"


def tolerated_text(differences: Sequence[Difference], tolerance: Tolerance, noun: str) -> str:
    """Return one line on differences that are all within a tolerance; empty if there are none."""
    if not differences:
        return ""
    largest = max(item.measure.absolute if item.measure else 0.0 for item in differences)
    problems = dict.fromkeys(item.problem for item in differences if item.problem)
    parts = [
        f", {tolerance}: {len(differences):,} {noun} differ, by up to {largest:.3g}",
        *problems,
    ]
    return ", ".join(parts)


def merged(claims: Iterable[tuple[str, Claim]]) -> Claim:
    """Return one claim on the layers of several models, by their keys."""
    claims = list(claims)
    if len(claims) == 1:
        return claims[0][1]
    for status in ("different", "not verified"):
        for key, claim in claims:
            if claim.status == status:
                detail = f"{key}: {claim.detail}"
                return Claim("layers", status, detail, claim.checked, claim.differences)
    detail = "; ".join(f"{key}: {claim.detail}" for key, claim in claims)
    differences = tuple(item for _, claim in claims for item in claim.differences)
    return Claim("layers", "equal", detail, sum(claim.checked for _, claim in claims), differences)


def check_required(required: Iterable[str]) -> None:
    """Refuse what is no claim.

    Raises:
        UsageError: There is no claim of such a name.
    """
    for name in required:
        if name not in CLAIMS:
            raise UsageError(f"no claim is called {name!a}", expected=" or ".join(CLAIMS))


def with_required(claims: Iterable[Claim], required: Collection[str]) -> tuple[Claim, ...]:
    """Return claims, with those marked that have to be found equal."""
    return tuple(replace(claim, required=claim.name in required) for claim in claims)


def verdict(claims: Iterable[Claim]) -> Verdict:
    """Return what claims amount to.

    Those not verified say nothing beside one that is equal, unless they are required.
    """
    claims = tuple(claims)
    statuses = {claim.status for claim in claims}
    if "different" in statuses:
        return "failed"
    is_open = "equal" not in statuses or any(claim.is_missing for claim in claims)
    return "not verified" if is_open else "passed"
