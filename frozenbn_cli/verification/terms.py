"""How one file is verified against another: what was wanted."""

from __future__ import annotations

from dataclasses import dataclass, field

from frozenbn_cli.live_models.run_options import RunOptions
from frozenbn_cli.selection import Selection
from frozenbn_cli.verification.claims import ClaimName, check_required

__all__ = ["VerifyOptions"]


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
