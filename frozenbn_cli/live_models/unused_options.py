"""Options that would have no effect are refused, with the reason."""

from __future__ import annotations

from frozenbn_cli.checkpoints import Checkpoint, StateDict
from frozenbn_cli.errors import UsageError
from frozenbn_cli.live_models.run_options import RunOptions

__all__ = ["NOTHING_IS_RUN", "check_used"]

NOTHING_IS_RUN = "--no-verify runs nothing"
_USUAL = RunOptions()


def check_used(
    options: RunOptions, *models: tuple[Checkpoint, StateDict], not_run: str = ""
) -> None:
    """Refuse what would have no effect.

    Args:
        options: On what a model is run.
        models: What would be run: a file, and what is meant of it.
        not_run: Why nothing is, whatever these are; empty if that depends on them.

    Raises:
        UsageError: Something is given that has no effect.
    """
    reasons = [not_run, *(_why_not_run(*model, options) for model in models)]
    chosen = {
        "--input-shape": bool(options.input_shapes),
        "--inputs": options.inputs is not None,
        "--runs": options.runs != _USUAL.runs,
        "--seed": options.seed != _USUAL.seed,
    }
    _check(chosen, next(filter(None, reasons), ""))
    ours = [_why_only_ours(*model, options) for model in models]
    chosen = {"--trust": options.trust, "--timeout": options.timeout != _USUAL.timeout}
    _check(chosen, not_run or (ours[0] if all(ours) else ""))


def _check(chosen: dict[str, bool], reason: str) -> None:
    for option, is_chosen in chosen.items():
        if is_chosen and reason:
            raise UsageError(f"{option} has no effect: {reason}")


def _why_not_run(checkpoint: Checkpoint, part: StateDict, options: RunOptions) -> str:
    """Return why a file and what the user says of it give no model to run; empty if they do."""
    is_run = checkpoint.script or checkpoint.program or options.model is not None
    if is_run or (part.is_module and options.trust):
        return ""
    if part.is_module:
        return "a pickled module is run with --trust or --model alone"
    return "a state dict holds no model that could be run; --model names one"


def _why_only_ours(checkpoint: Checkpoint, part: StateDict, options: RunOptions) -> str:
    """Return why no code of a file is run to verify it; empty if some is."""
    if options.runs_code_of(checkpoint, part):
        return ""
    if part.is_module and options.model is not None:
        return "the code of --model is run, and none of the file"
    return "nothing in the file is executed"
