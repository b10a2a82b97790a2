"""What the descriptions of all commands have in common."""

from __future__ import annotations

from collections.abc import Iterable

from frozenbn_cli.batch_norms.plan import Plan
from frozenbn_cli.reports.console import printable
from frozenbn_cli.reports.description import UNKNOWN, Tone
from frozenbn_cli.verification.claims import Claim, ClaimName, Verdict
from frozenbn_cli.wording import listed

__all__ = ["VERDICT_TONES", "eps_briefly", "file_facts", "is_equal"]

VERDICT_TONES: dict[Verdict, Tone] = {"passed": "good", "failed": "bad", "not verified": "warn"}
"""Whether what claims amount to is good news."""


def eps_briefly(*plans: Plan) -> str:
    """Return the first eps of all layers, each with its source."""
    layers = [item.layer for plan in plans for item in plan.layers]
    eps = dict.fromkeys(f"{layer.eps.value:g} {layer.eps.source}" for layer in layers)
    return listed(eps, 2) or UNKNOWN


def file_facts(**facts: str) -> tuple[tuple[str, str], ...]:
    """Return labels and values of what is known of a file, without what is not."""
    return tuple(
        (label.replace("_", " "), printable(value)) for label, value in facts.items() if value
    )


def is_equal(claims: Iterable[Claim], name: ClaimName) -> bool:
    """Return whether a claim was found to hold."""
    return any(claim.name == name and claim.status == "equal" for claim in claims)
