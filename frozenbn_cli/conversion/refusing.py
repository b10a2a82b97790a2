"""Why nothing is written: what stands against a plan, and what a verification found."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from frozenbn_cli.batch_norms.plan import Plan
from frozenbn_cli.checkpoints import Checkpoint
from frozenbn_cli.conversion.terms import ConversionResult, ConvertOptions
from frozenbn_cli.errors import (
    NothingToFreezeError,
    RefusedError,
    UnhealthyStatisticsError,
    VerificationError,
)
from frozenbn_cli.selection import checked_dims, kinds_of

if TYPE_CHECKING:
    from frozenbn_cli.batch_norms.target_eps import Retargeting

__all__ = ["refuse_claims", "refuse_plan"]

_OUR_BUG = "Please report this as a bug of frozenbn."


def refuse_plan(planned: ConversionResult, checkpoint: Checkpoint, options: ConvertOptions) -> None:
    """Raise where the plan itself says that nothing should be written.

    Raises:
        UnhealthyStatisticsError: Statistics are broken, and are not to be frozen all the same.
        NothingToFreezeError: There is nothing else to do.
        RefusedError: No variance gives the same scales with the target eps.
    """
    plan = planned.plan
    error: RefusedError
    place = str(checkpoint.path)
    if plan.broken and not options.force_unhealthy:
        error = _unhealthy(plan, place)
        error.result = replace(planned, outcome="unhealthy")
        raise error
    found = planned.retargeting
    if found and found.inexact and not (options.atol or options.rtol):
        error = _inexact(found, place)
        error.result = replace(planned, outcome="inexact")
        raise error
    if not plan.frozen:
        meant = kinds_of(checked_dims(options.dims))
        what = f"no {meant} to freeze" if plan.layers else "no BatchNorm in it"
        advice = plan.advice or checkpoint.advice
        reasons = (*planned.left_out.values(), *(item.reason for item in plan.layers))
        if any("quantised" in (reason or "") for reason in reasons):
            advice = "Its tensors are quantised; convert the model as it was before that."
        error = NothingToFreezeError(what, where=(place,), advice=advice)
        error.result = replace(planned, outcome="nothing to freeze")
        raise error


def _unhealthy(plan: Plan, place: str) -> UnhealthyStatisticsError:
    count = f"{len(plan.broken)} of {len(plan.layers)} BatchNorm layers"
    if not plan.forceable:
        advice = "Freeze the others with --exclude." if plan.frozen else ""
        return UnhealthyStatisticsError(f"{count} cannot be frozen", where=(place,), advice=advice)
    return UnhealthyStatisticsError(
        f"broken or never formed statistics in {count}",
        where=(place,),
        advice="Freeze the others with --exclude, or all with --force-unhealthy.",
    )


def _inexact(retargeting: Retargeting, place: str) -> RefusedError:
    return RefusedError(
        retargeting.inexact_text,
        where=(place,),
        advice="Leave the layers live with --exclude, or allow what remains with --atol or --rtol.",
    )


def refuse_claims(result: ConversionResult) -> None:
    """Raise where the output is not what it has to be, or a claim is open that may not be.

    Raises:
        VerificationError: There is such a claim.
    """
    for claim in result.claims:
        if claim.status == "different":
            error = VerificationError(
                f"{claim.name}: {claim.detail}",
                where=(str(result.output_path),),
                advice=f"Nothing was written. {claim.advice or _OUR_BUG}",
            )
            error.result = replace(result, outcome="different")
            raise error
    for claim in result.claims:
        if claim.is_missing:
            error = VerificationError(
                f"{claim.name} is required, and not verified: {claim.detail}",
                where=(str(result.output_path),),
                advice="Nothing was written.",
            )
            error.result = replace(result, outcome="not verified")
            raise error
