"""What a report says, wherever it is shown: verdict, facts, claims, findings, layers, steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from frozenbn_cli.batch_norms.findings import Severity
from frozenbn_cli.batch_norms.plan import LayerPlan
from frozenbn_cli.batch_norms.summaries import Summary
from frozenbn_cli.calibration.drift import Drift
from frozenbn_cli.inspection import Statistics
from frozenbn_cli.reports.console import printable
from frozenbn_cli.reports.grouping import FindingGroup, finding_labels
from frozenbn_cli.reports.provenance import Provenance
from frozenbn_cli.reports.words import range_text
from frozenbn_cli.verification.claims import Claim, ClaimName

__all__ = [
    "OVERVIEW_TITLES",
    "STATE_TITLES",
    "TONE_STYLES",
    "UNKNOWN",
    "Command",
    "FileFacts",
    "Glance",
    "LayerRow",
    "Page",
    "Part",
    "Section",
    "Tone",
    "Verdict",
    "claim_words",
]

Command = Literal["calibrate", "convert", "inspect", "verify"]
Tone = Literal["good", "bad", "warn", "plain"]

TONE_STYLES: dict[Tone, str] = {"good": "green", "bad": "red", "warn": "yellow", "plain": ""}
"""How a terminal shows good news and bad ones."""

UNKNOWN = "–"
"""What stands for a fact that the file does not tell."""

STATE_TITLES: dict[Command, str] = {
    "calibrate": "Drift",
    "convert": "Frozen",
    "verify": "Frozen",
    "inspect": "With convert",
}
"""The title over what was, or would be, done with each layer."""

OVERVIEW_TITLES: dict[Command, tuple[str, ...]] = {
    "calibrate": ("File", "Holds", "Layers", "eps", "Result", "Output"),
    "convert": ("File", "Holds", "Frozen", "eps", "Result", "Output"),
    "verify": ("File", "Holds", "Frozen", "eps", "Result", "Compared with"),
    "inspect": ("File", "Holds", "Layers", "eps", "Health", "convert would"),
}
"""The titles over the overview that a report of several files begins with."""

_CLAIMS: dict[ClaimName, tuple[str, str]] = {
    "contents": (
        "Every entry that was not to change is bit-identical in the converted file.",
        "Is every entry that was not to change bit-identical in the converted file?",
    ),
    "layers": (
        "Each frozen layer gives the outputs of its BatchNorm in eval.",
        "Does each frozen layer give the outputs of its BatchNorm in eval?",
    ),
    "model": (
        "The whole model gives the same outputs before and after.",
        "Does the whole model give the same outputs before and after?",
    ),
}


def claim_words(claim: Claim) -> str:
    """Return what a claim says: a question, until it was found to hold."""
    statement, question = _CLAIMS[claim.name]
    return statement if claim.status == "equal" else question


@dataclass(frozen=True, slots=True)
class Verdict:
    """What it all amounts to.

    Attributes:
        tone: Whether that is good news.
        words: In a few words.
        detail: In a sentence or two; may be empty.
    """

    tone: Tone
    words: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One of the files that a section is about.

    Attributes:
        role: What it is here, such as *original*.
        path: As the user gave it.
        facts: What is known of it: label and value.
    """

    role: str
    path: str
    facts: tuple[tuple[str, str], ...] = ()

    def get(self, label: str) -> str:
        """Return what is known of one thing; empty if nothing is."""
        return dict(self.facts).get(label, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One BatchNorm layer, and how reports put its facts into words.

    Attributes:
        number: Its place in the file, from 1.
        plan: What is known of it, what was found, and what should become of it.
        state: What was, or would be, done with it.
        tone: Whether that is good news.
        prominent: Whether a table that is folded shows it.
        statistics: The ranges of its statistics, where they were read.
        summary: Its numbers, where they were asked for and make sense.
        drift: How far its statistics have moved, where they were formed anew.
    """

    number: int
    plan: LayerPlan
    state: str
    tone: Tone
    prominent: bool
    statistics: Statistics | None = None
    summary: Summary | None = None
    drift: Drift | None = None

    @property
    def name(self) -> str:
        """Its name in the file."""
        return printable(self.plan.layer.name) or "(the file itself)"

    @property
    def channels(self) -> str:
        """How many channels it has."""
        return f"{self.plan.layer.channels:,}"

    @property
    def eps(self) -> str:
        """Its eps and where that is known from."""
        return f"{self.plan.layer.eps.value:g} {self.plan.layer.eps.source}"

    @property
    def dims(self) -> str:
        """Its spatial dimensions and where they are known from."""
        source = self.plan.layer.dims_known
        return f"{self.short_dims} {source}" if source else UNKNOWN

    @property
    def short_dims(self) -> str:
        """Its spatial dimensions."""
        dims = self.plan.layer.spatial_dims
        return f"{dims}d" if dims else UNKNOWN

    @property
    def momentum(self) -> str:
        """The momentum of its running statistics."""
        momentum = self.plan.layer.momentum
        return UNKNOWN if momentum is None else f"{momentum:g}"

    @property
    def batches(self) -> str:
        """How many batches formed its statistics."""
        count = self.plan.layer.batches_tracked
        return UNKNOWN if count is None else f"{count:,}"

    @property
    def mean(self) -> str:
        """The smallest and the largest running mean."""
        return range_text(*self.statistics.mean) if self.statistics else UNKNOWN

    @property
    def variance(self) -> str:
        """The smallest and the largest running variance."""
        if self.summary:
            return range_text(self.summary.variance.lowest, self.summary.variance.highest)
        return range_text(*self.statistics.variance) if self.statistics else UNKNOWN

    @property
    def findings(self) -> list[tuple[str, Severity]]:
        """A few words on each finding, with its severity."""
        return finding_labels(self.plan.findings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One model.

    Attributes:
        heading: Where in the file it stands, if the file holds several.
        facts: What it consists of.
        findings: On its statistics, the gravest first.
        notes: What was left alone, left out, or does not fit.
        layers: Its BatchNorm layers, in the file's order.
    """

    heading: str = ""
    facts: tuple[str, ...] = ()
    findings: tuple[FindingGroup, ...] = ()
    notes: tuple[str, ...] = ()
    layers: tuple[LayerRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Glance:
    """One file in the overview of several, beside its name and what it amounts to.

    Attributes:
        holds: What kind of file it is.
        layers: How many BatchNorm layers it has, or how many of them are frozen.
        eps: Their eps, and where that is known from.
        then: What `convert` would do with it, or where the result is.
    """

    holds: str = UNKNOWN
    layers: str = UNKNOWN
    eps: str = UNKNOWN
    then: str = UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What was done with one file, or one pair of files.

    Attributes:
        command: That did it.
        title: The file's name.
        verdict: What it amounts to.
        files: The files.
        claims: Those of a verification, if there was one.
        findings: On the file as a whole.
        parts: The models in it.
        glance: What the overview of several files says of this one.
        record: What the file says of its own conversion: label and value.
        notes: On the file as a whole.
        steps: What comes next: a sentence, and lines of Python.
    """

    command: Command
    title: str
    verdict: Verdict
    files: tuple[FileFacts, ...]
    claims: tuple[Claim, ...] = ()
    findings: tuple[FindingGroup, ...] = ()
    parts: tuple[Part, ...] = ()
    glance: Glance = field(default_factory=Glance)
    record: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    steps: tuple[str, str] | None = None

    @property
    def overview_row(self) -> tuple[str, ...]:
        """What the overview of several files says of this one, in the order of its titles."""
        glance, words = self.glance, self.verdict.words
        return self.files[0].path, glance.holds, glance.layers, glance.eps, words, glance.then


@dataclass(frozen=True, slots=True)
class Page:
    """A report.

    Attributes:
        command: That it reports on.
        provenance: How it came about.
        sections: One for each file, or pair of files.
    """

    command: Command
    provenance: Provenance
    sections: tuple[Section, ...] = ()

    @property
    def overview(self) -> list[tuple[Section, tuple[str, ...]]]:
        """The rows over several files, in the order of `OVERVIEW_TITLES`, each with its section."""
        if len(self.sections) < 2:
            return []
        return [(section, section.overview_row) for section in self.sections]
