"""Claims as JSON tells them, from one process to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from frozenbn_cli.verification.claims import Claim, ClaimName, Difference, Measure

__all__ = ["claim_of", "told"]


def told(claim: Claim) -> dict[str, Any]:
    """Return a claim as JSON can tell it."""
    told_claim = asdict(claim)
    for difference in told_claim["differences"]:
        measure = difference["measure"]
        for role in ("before", "after") if measure else ():
            if isinstance(measure[role], complex):
                measure[role] = [measure[role].real, measure[role].imag]
    return told_claim


def claim_of(name: ClaimName, told_claim: Mapping[str, Any]) -> Claim:
    """Return a claim that `told` told; raises where it cannot have.

    It can come from a process in which the code of a file has run.
    """
    status = told_claim["status"]
    if status not in ("equal", "different", "not verified"):
        raise ValueError(status)
    return Claim(
        name,
        status,
        _text(told_claim["detail"]),
        int(told_claim["checked"]),
        tuple(map(_difference, told_claim["differences"])),
        _text(told_claim["begins"]),
        _text(told_claim["advice"]),
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
