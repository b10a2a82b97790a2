"""Two files that are compared, and what is known of their layers before that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from frozenbn_cli.batch_norms.batch_norm import Eps
from frozenbn_cli.batch_norms.plan import Plan
from frozenbn_cli.checkpoints import Checkpoint, StateDict
from frozenbn_cli.verification.tolerance import Tolerance
from frozenbn_cli.verification.written import WrittenFile

__all__ = ["FilePair"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePair:
    """Two files, and what of them is compared.

    Attributes:
        before: The original.
        after: The converted file.
        original: The state dict of the original, with the names that the conversion gave it.
        converted: That of the converted file.
        written: Its tensors.
        plan: The layers of the original, and which have to be frozen.
        stated: The layers that the converted file froze, with the eps that it states.
        rewritten: The eps that layers had before their variances were rewritten for another.
        tolerance: Within which values are called equal.
    """

    before: Checkpoint
    after: Checkpoint
    original: StateDict
    converted: StateDict
    written: WrittenFile
    plan: Plan
    stated: Mapping[str, Eps | None]
    rewritten: Mapping[str, Eps]
    tolerance: Tolerance

    @property
    def frozen(self) -> dict[str, Eps]:
        """The layers of the original that the converted file froze, with the eps of each."""
        known = {item.layer.name: item.layer for item in self.plan.layers}
        return {name: eps or known[name].eps for name, eps in self.stated.items() if name in known}
