"""How statistics are formed anew, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frozenbn_cli.batch_norms.plan import Plan
from frozenbn_cli.batch_norms.summaries import Summary
from frozenbn_cli.calibration.drift import Drift
from frozenbn_cli.errors import UsageError
from frozenbn_cli.selection import Selection
from frozenbn_cli.verification.claims import Claim

__all__ = [
    "CalibrateOptions",
    "CalibratedLayer",
    "Calibration",
    "CalibrationResult",
    "ImageOptions",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """What is made of images before a model is given them.

    Attributes:
        size: Height and width in pixels; as large as they are if None.
        mean: Subtracted from values from 0 to 1, for all channels or for each.
        std: By which they are divided after that.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrateOptions:
    """How the statistics of a file are formed anew.

    Attributes:
        model: Returns a new module that the file belongs to.
        data: ``module:callable``, ``file.py:callable``, a file of tensors or a folder of images; or
            what `calibrate_statistics` takes.
        batch_size: How many tensors or images are in a batch; 32 if None.
        images: What is made of images.
        max_batches: How many batches count; all if None.
        passes: How often the data are gone through at most; until all is settled if None.
        key: Which state dict of a file that holds several.
        keep_prefix: Keep what wrappers put into names.
        strip_prefix: Taken off the names that begin with it.
        add_prefix: Put in front of every name.
        selection: Which layers are calibrated.
        force: Replace an output that exists.
        summarize: Sum up the numbers of each layer, for a report that draws them.
    """

    model: Callable[[], Any]
    data: Any
    batch_size: int | None = None
    images: ImageOptions = field(default_factory=ImageOptions)
    max_batches: int | None = None
    passes: int | None = None
    key: str | None = None
    keep_prefix: bool = False
    strip_prefix: str = ""
    add_prefix: str = ""
    selection: Selection = field(default_factory=Selection)
    force: bool = False
    summarize: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_batches", "passes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} {value}", expected="1 or more")

    @property
    def names_are_given(self) -> bool:
        """Whether the user says what the names are, so that no model has to be asked."""
        return self.keep_prefix or bool(self.strip_prefix or self.add_prefix)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibratedLayer:
    """A layer whose statistics were formed anew.

    Attributes:
        names: Its names in the model.
        means: The running mean of each channel.
        variances: The running variance of each channel.
        elements: How many values of each channel formed them.
        uses: How often a pass used it, which is what its counter says now.
        drift: How far the statistics are from what they were; None if those were broken.
    """

    names: tuple[str, ...]
    means: tuple[float, ...]
    variances: tuple[float, ...]
    elements: int
    uses: int
    drift: Drift | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What became of the statistics of a model.

    Attributes:
        layers: Those with new statistics, in the order in which the model uses them.
        left: The layers that were left as they are, by name, and why.
        batches: How many batches there are in the data.
        passes: How often the model ran over all of them.
        settled: Whether a last pass measured in every layer the statistics that it has, so that all
            are consistent with each other.
        apart: How far that pass found means, in standard deviations, and variances, as a factor,
            from these at most; None where there was no such pass.
        steady: Whether the first layer got the same in each pass. If not, the data differ from one
            to the next, and nothing can settle.
    """

    layers: tuple[CalibratedLayer, ...]
    left: Mapping[str, str]
    batches: int
    passes: int
    settled: bool
    apart: tuple[float, float] | None
    steady: bool = True

    @property
    def worst_first(self) -> tuple[CalibratedLayer, ...]:
        """The layers whose statistics moved most first; broken ones in front."""

        def gravity(layer: CalibratedLayer) -> tuple[bool, float]:
            return layer.drift is None, layer.drift.gravity if layer.drift else 0.0

        return tuple(sorted(self.layers, key=gravity, reverse=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationResult:
    """What was done with a file.

    Attributes:
        input_path: As the user gave it.
        output_path: Where the result is.
        kind: What the file holds.
        container: How it is stored.
        input_bytes: Its size, which is that of the output too.
        output_bytes: The size of the output.
        input_sha256: Of the input.
        key: Where in it the state dict stands.
        prefix: What was taken off every name to find the model's.
        renamed: What else names begin with in the file, and what instead in the model.
        model: The name of the model.
        data: What the data are, in words.
        calibration: What became of the statistics.
        before: The layers and the findings on them as they were.
        after: The same as they are now.
        changed: The names of the entries that are new.
        shared: Entries of other state dicts in the file that are the very same tensors.
        claims: What was verified.
        seconds: The time of each stage.
        summaries: The numbers of each layer, by name, where they are asked for.
    """

    input_path: Path
    output_path: Path
    kind: str
    container: str
    input_bytes: int
    output_bytes: int
    input_sha256: str
    key: str
    prefix: str
    renamed: tuple[tuple[str, str], ...]
    model: str
    data: str
    calibration: Calibration
    before: Plan
    after: Plan
    changed: tuple[str, ...]
    shared: tuple[str, ...]
    claims: tuple[Claim, ...]
    seconds: Mapping[str, float]
    summaries: Mapping[str, Summary] = field(default_factory=dict)
