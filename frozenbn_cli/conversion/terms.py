"""What a conversion is asked to do, and what it did."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from frozenbn_cli.batch_norms.plan import Plan
from frozenbn_cli.checkpoints import Checkpoint, open_checkpoint
from frozenbn_cli.errors import UsageError
from frozenbn_cli.live_models.run_options import RunOptions
from frozenbn_cli.live_models.target import identity_of_model
from frozenbn_cli.outputs import FORMATS, OutputFormat
from frozenbn_cli.selection import Selection, checked_dims
from frozenbn_cli.verification.claims import Claim, ClaimName, check_required

if TYPE_CHECKING:  # Most results have none of these.
    from frozenbn_cli.batch_norms.summaries import Summary
    from frozenbn_cli.batch_norms.target_eps import Retargeting
    from frozenbn_cli.training.reconciling import Reconciled

__all__ = ["ConversionResult", "ConvertOptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertOptions(RunOptions):
    """How to convert.

    Attributes:
        to: The format of the output; None for what its name says, else that of the input where it
            is an archive of code or graphs, else safetensors.
        key: Which state dict of a file that holds several, such as ``model_ema``.
        keep_prefix: Keep what wrappers put into names (``module.``, ``_orig_mod.``).
        strip_prefix: Taken off the names that begin with it.
        add_prefix: Put in front of every name.
        eps: Of every layer whose eps neither the file nor the model holds; None assumes PyTorch's
            1e-5.
        target_eps: Of the loader that the output is for, whose frozen layers have it: variances are
            rewritten so that with it every scale is the same number.
        atol: By how much outputs may differ where no variance gives the same scale.
        rtol: As above: |after - before| <= atol + rtol * |before|.
        optimizer: Returns the optimizer of the model that it is given, or several, as the training
            did: which of its parameters are which then need not be proved.
        selection: Which layers to freeze.
        dims: The spatial dimensions of the layers to freeze, of 1, 2 and 3; None for no choice,
            which is 2.
        may_recognise: Look layers up whose eps is not known among those of public architectures.
        force: Replace an output that exists.
        force_unhealthy: Freeze also statistics that are broken or were never formed.
        dry_run: Plan, and write nothing.
        verify: Check the written file before it gets its name.
        require: The claims that have to be found equal, or nothing is written.
        summarize: Sum up the numbers of each layer, for a report that draws them.
        hash_output: Take the sha256 of the output too, for a report that names it.
        date: When the conversion was begun, which the output's record tells; now if None.
    """

    to: OutputFormat | None = None
    key: str | None = None
    keep_prefix: bool = False
    strip_prefix: str = ""
    add_prefix: str = ""
    eps: float | None = None
    target_eps: float | None = None
    atol: float = 0.0
    rtol: float = 0.0
    optimizer: Callable[[Any], Any] | None = None
    selection: Selection = field(default_factory=Selection)
    dims: tuple[int, ...] | None = None
    may_recognise: bool = True
    force: bool = False
    force_unhealthy: bool = False
    dry_run: bool = False
    verify: bool = True
    require: tuple[ClaimName, ...] = ()
    summarize: bool = False
    hash_output: bool = False
    date: datetime | None = None

    def __post_init__(self) -> None:
        RunOptions.__post_init__(self)
        check_required(self.require)
        if self.require and not self.verify:
            raise UsageError("claims are required, and nothing is to be verified")
        if self.to is not None and self.to not in FORMATS:
            raise UsageError(f"format {self.to!a}", expected=" or ".join(FORMATS))
        for name in ("eps", "target_eps", "atol", "rtol"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise UsageError(f"{name} {value}", expected="a finite number, 0 or more")
        if self.optimizer is not None and self.to != "checkpoint":
            raise UsageError("--optimizer has no effect: only --to checkpoint writes an optimizer")
        if (self.atol or self.rtol) and self.target_eps is None:
            raise UsageError(
                "--atol and --rtol have no effect: nothing differs without --target-eps"
            )
        checked_dims(self.dims)

    def open(self, path: str | Path) -> Checkpoint:
        """Open an input, with the names that its entries are to have."""
        return open_checkpoint(
            path,
            keep_prefix=self.keep_prefix,
            strip_prefix=self.strip_prefix,
            add_prefix=self.add_prefix,
        )

    @property
    def names_are_given(self) -> bool:
        """Whether the user says what the names are, so that no model is asked."""
        return self.keep_prefix or bool(self.strip_prefix or self.add_prefix)

    def deciding(self, to: OutputFormat) -> dict[str, Any]:
        """Return what decides, beside the input, what an output of format ``to`` holds."""
        document: dict[str, Any] = {
            "to": to,
            "key": self.key,
            "keep_prefix": self.keep_prefix,
            "eps": self.eps,
            "include": sorted(set(self.selection.include)),
            "exclude": sorted(set(self.selection.exclude)),
            "recognise": self.may_recognise,
            "force_unhealthy": self.force_unhealthy,
            "model": identity_of_model(self.model),
        }
        names = {"strip_prefix": self.strip_prefix, "add_prefix": self.add_prefix}
        document |= {option: prefix for option, prefix in names.items() if prefix}
        if self.optimizer is not None:
            document["optimizer"] = identity_of_model(self.optimizer)
        if self.target_eps is not None:
            document |= {"target_eps": self.target_eps, "atol": self.atol, "rtol": self.rtol}
        if self.dims is not None:
            document["dims"] = sorted(set(self.dims))
        if self.selection.dims_of:
            document["dims_of"] = dict(sorted(self.selection.dims_of))
        if self.selection.state:
            document["state"] = self.selection.state
        if to in ("torchscript", "pt2") and self.model is not None:  # It may be made on these.
            document["input_shapes"] = [list(shape) for shape in self.input_shapes]
            document["inputs"] = self.inputs and self.inputs.name
        return document


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionResult:
    """What a conversion did, or would do.

    Attributes:
        outcome: ``converted``, ``planned`` in a dry run, ``unhealthy`` where statistics stopped
            it, ``nothing to freeze``, ``inexact`` where ``target_eps`` cannot be had to the last
            bit, ``different`` where the verification failed, or ``not verified`` where a claim is
            that was required.
        input_path: The file that was read.
        kind: What it holds.
        container: How it is stored.
        input_bytes: Its size.
        input_sha256: None until all of it was read.
        output_path: Where the result is, or would be.
        output_format: Of the result.
        output_bytes: Its size; None where nothing was written.
        output_sha256: None where nothing was written, or the options do not ask for it.
        key: Where in the file the state dict stands; empty if it is the whole file.
        prefix: What was taken off every name, such as ``module.``.
        renamed: What else names begin with in the input, and what instead in the output.
        entries: The names of all entries of the state dict, as they are in the output.
        left_out: What else the state dict holds, which is no tensor: name and description.
        absent: Which of that are tensors that a model needs, and that could not be written.
        beside: What the file holds beside the state dict, such as an optimizer.
        foreign_names: What unpickling the input would import that a model has no need of, with
            whether it would also be called.
        plan: Layers, findings and edits.
        retargeting: What ``target_eps`` takes, where there is one.
        others: What becomes of the layers of the other models in a training checkpoint, by key.
        optimizers: What becomes of each optimizer in it.
        claims: What was verified.
        is_taken: Whether something of that name is there, which may not be replaced.
        model: The name of the model that the layers were described by; empty if there is none, or
            the file describes them itself.
        builder: How that model is built in Python: an import, and a call; empty if that is unknown.
        made: How an archive was made of a live model: ``scripted``, ``traced (…)`` with the
            reason, or ``exported for …``; empty for all else.
        summaries: The numbers of each layer, by name, where the options ask for them.
        seconds: The time of each stage.
    """

    outcome: Literal[
        "converted",
        "planned",
        "unhealthy",
        "nothing to freeze",
        "inexact",
        "different",
        "not verified",
    ]
    input_path: Path
    kind: str
    container: str
    input_bytes: int
    input_sha256: str | None = None
    output_path: Path
    output_format: OutputFormat
    output_bytes: int | None = None
    output_sha256: str | None = None
    key: str
    prefix: str
    renamed: tuple[tuple[str, str], ...] = ()
    entries: tuple[str, ...]
    left_out: Mapping[str, str]
    absent: tuple[str, ...] = ()
    beside: Mapping[str, str]
    foreign_names: Mapping[str, bool]
    plan: Plan
    retargeting: Retargeting | None = None
    others: Mapping[str, Plan] = field(default_factory=dict)
    optimizers: tuple[Reconciled, ...] = ()
    claims: tuple[Claim, ...] = ()
    is_taken: bool = False
    model: str = ""
    builder: tuple[str, str] = ("", "")
    made: str = ""
    summaries: Mapping[str, Summary] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
