"""One model of a file on its way to be frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from frozenbn_cli.batch_norms.plan import LayerPlan, Plan
from frozenbn_cli.checkpoints import StateDict

if TYPE_CHECKING:
    from frozenbn_cli.batch_norms.target_eps import Retargeting

__all__ = ["FrozenModel"]


@dataclass(frozen=True, slots=True)
class FrozenModel:
    """One model of a checkpoint, with what becomes of its layers.

    Attributes:
        part: Its state dict, with the names that the report uses.
        plan: What is frozen.
        retargeting: What a target eps takes, if there is one.
        live: The same model as an ``nn.Module``, where its parameters are asked of that.
    """

    part: StateDict
    plan: Plan
    retargeting: Retargeting | None = None
    live: Any = None

    @property
    def key(self) -> str:
        """Where it stands in the file."""
        return self.part.key

    @property
    def frozen(self) -> tuple[LayerPlan, ...]:
        """The layers to freeze."""
        return self.plan.frozen

    @property
    def gone(self) -> list[str]:
        """The names of affine entries of the layers to freeze."""
        return [
            item.layer.entry_name(role)
            for item in self.frozen
            for role in ("weight", "bias")
            if role in item.layer.tensors
        ]

    @property
    def dropped(self) -> list[str]:
        """The names in the file of the entries that go."""
        return [self.stored(edit.entry) for edit in self.plan.edits if edit.kind == "drop"]

    def eps_of(self, item: LayerPlan) -> float:
        """Return the eps that a layer has once it is frozen."""
        return self.retargeting.eps if self.retargeting else item.layer.eps.value

    def stored(self, entry: str) -> str:
        """Return what the file calls an entry."""
        return self.part.stored_names.get(entry, entry)

    def stored_layer(self, item: LayerPlan) -> str:
        """Return what the file calls a layer."""
        return self.stored(item.layer.entry_name("running_var")).rpartition(".")[0]
