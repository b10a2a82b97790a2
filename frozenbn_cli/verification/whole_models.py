"""The third claim, where it can be made: here, or in a process of its own for code of a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from functools import partial
from typing import Any

from frozenbn_cli.foreign_code import apart
from frozenbn_cli.live_models.run_options import RunOptions
from frozenbn_cli.stages import begin
from frozenbn_cli.verification.claims import Claim, Difference, Measure
from frozenbn_cli.verification.differences import EXACT, Tolerance
from frozenbn_cli.verification.model_runs import Loader
from frozenbn_cli.verification.models import FromFile
from frozenbn_cli.verification.running import verify_model
from frozenbn_cli.wording import printable

__all__ = ["claim_of", "told", "verify_whole_model"]

_MOST_LINES = 10


def verify_whole_model(
    before: Loader | str,
    after: Loader | str,
    frozen: Iterable[str],
    options: RunOptions,
    tolerance: Tolerance = EXACT,
) -> Claim:
    """Run two models on the same inputs and compare what comes out, see `verify_model`.

    Whatever the code of a file does in its own process, crash, hang or allocate, the claim is then
    not verified, and says why.
    """
    names = tuple(frozen)
    is_foreign = isinstance(before, FromFile) or isinstance(after, FromFile)
    is_ready = not isinstance(before, str) and not isinstance(after, str)
    if not (is_foreign and is_ready and apart.CAN_RUN):
        return verify_model(before, after, names, options, tolerance)
    alone = {item.name: getattr(options, item.name) for item in fields(RunOptions)}
    how = RunOptions(**{**alone, "model": None})
    job = partial(_compare, before, after, names, how, tolerance)
    begin("starting a process that runs the model")
    try:
        return claim_of(apart.run_apart(job, timeout=options.timeout, say=_say))
    except apart.JobFailed as failed:
        return Claim("model", "not verified", str(failed))
    except (TypeError, ValueError, KeyError, AttributeError):
        return Claim("model", "not verified", "its process gave no claim as the result")


def _compare(*arguments: Any) -> dict[str, Any]:
    return told(verify_model(*arguments))


def _say(words: str) -> None:
    """Show what the code of a file printed, as its own words."""
    lines = words.splitlines()
    for line in lines[:_MOST_LINES]:
        sys.stderr.write(f"the model printed: {printable(line)[:200]}\n")
    if len(lines) > _MOST_LINES:
        sys.stderr.write(f"the model printed {len(lines) - _MOST_LINES:,} lines more\n")


def told(claim: Claim) -> dict[str, Any]:
    """Return a claim as JSON can tell it."""
    told_claim = asdict(claim)
    for difference in told_claim["differences"]:
        measure = difference["measure"]
        for role in ("before", "after") if measure else ():
            if isinstance(measure[role], complex):
                measure[role] = [measure[role].real, measure[role].imag]
    return told_claim


def claim_of(told_claim: Mapping[str, Any]) -> Claim:
    """Return a claim on the model that `told` told; raises where it cannot have.

    It comes from a process in which the code of a file has run.
    """
    status = told_claim["status"]
    if status not in ("equal", "different", "not verified"):
        raise ValueError(status)
    return Claim(
        "model",
        status,
        _text(told_claim["detail"]),
        int(told_claim["checked"]),
        tuple(map(_difference, told_claim["differences"])),
        _text(told_claim["begins"]),
        inputs_were_given=bool(told_claim["inputs_were_given"]),
    )


def _difference(told_difference: Mapping[str, Any]) -> Difference:
    measure = told_difference["measure"]
    return Difference(
        _text(told_difference["place"]),
        _text(told_difference["problem"]),
        None if measure is None else _measure(measure),
        bool(told_difference["tolerated"]),
    )


def _measure(told_measure: Mapping[str, Any]) -> Measure:
    ulps = told_measure["ulps"]
    return Measure(
        elements=int(told_measure["elements"]),
        differing=int(told_measure["differing"]),
        absolute=float(told_measure["absolute"]),
        index=tuple(map(int, told_measure["index"])),
        before=_number(told_measure["before"]),
        after=_number(told_measure["after"]),
        relative=float(told_measure["relative"]),
        relative_index=tuple(map(int, told_measure["relative_index"])),
        ulps=None if ulps is None else int(ulps),
        mean=float(told_measure["mean"]),
        percentile_99=float(told_measure["percentile_99"]),
    )


def _number(value: Any) -> float | complex:
    if isinstance(value, list):
        real, imaginary = map(float, value)
        return complex(real, imaginary)
    return value if type(value) is int else float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(type(value).__name__)
    return value
