"""The third claim, where it can be made: here, or in a process of its own for code of a file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import fields
from functools import partial
from typing import Any

from frozenbn_cli.foreign_code import apart
from frozenbn_cli.live_models.run_options import RunOptions
from frozenbn_cli.stages import begin, import_torch_for
from frozenbn_cli.verification.claims import Claim
from frozenbn_cli.verification.loaders import FromFile, Loader
from frozenbn_cli.verification.told_claims import claim_of, told
from frozenbn_cli.verification.tolerance import EXACT, Tolerance
from frozenbn_cli.wording import printable

__all__ = ["verify_whole_model"]

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
    if isinstance(before, str) or isinstance(after, str):
        return Claim("model", "not verified", before if isinstance(before, str) else str(after))
    names = tuple(frozen)
    is_foreign = isinstance(before, FromFile) or isinstance(after, FromFile)
    if not (is_foreign and apart.CAN_RUN):
        return _verify(before, after, names, options, tolerance)
    alone = {item.name: getattr(options, item.name) for item in fields(RunOptions)}
    how = RunOptions(**{**alone, "model": None})
    job = partial(_compare, before, after, names, how, tolerance)
    begin("starting a process that runs the model")
    try:
        return claim_of("model", apart.run_apart(job, timeout=options.timeout, say=_say))
    except apart.JobFailed as failed:
        return Claim("model", "not verified", str(failed))
    except (TypeError, ValueError, KeyError, AttributeError):
        return Claim("model", "not verified", "its process gave no claim as the result")


def _compare(*arguments: Any) -> dict[str, Any]:
    return told(_verify(*arguments))


def _verify(*arguments: Any) -> Claim:
    claim: Claim = import_torch_for("frozenbn_cli.verification.running").verify_model(*arguments)
    return claim


def _say(words: str) -> None:
    """Show what the code of a file printed, as its own words."""
    lines = words.splitlines()
    for line in lines[:_MOST_LINES]:
        sys.stderr.write(f"the model printed: {printable(line)[:200]}\n")
    if len(lines) > _MOST_LINES:
        sys.stderr.write(f"the model printed {len(lines) - _MOST_LINES:,} lines more\n")
