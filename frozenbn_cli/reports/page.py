"""What a report in a file says, whatever its format: facts, claims, findings, layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from frozenbn_cli.batch_norms.batch_norm import Eps
from frozenbn_cli.batch_norms.findings import Severity
from frozenbn_cli.batch_norms.summaries import Summary
from frozenbn_cli.reports.grouping import FindingGroup
from frozenbn_cli.verification.claims import Claim

__all__ = ["CLAIMS", "FileFacts", "LayerRow", "Page", "Part", "Section", "Tone", "Verdict"]

Tone = Literal["good", "bad", "warn", "plain"]

CLAIMS = {
    "contents": "Every entry that was not to change is bit-identical in the converted file.",
    "layers": "Each frozen layer gives the outputs of its BatchNorm2d in eval.",
    "model": "The whole model gives the same outputs before and after.",
}
"""What each claim says."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One BatchNorm layer.

    Attributes:
        number: Its place in the file, from 1.
        name: Of the layer.
        channels: How many it has.
        eps: With its source.
        dims: Its spatial dimensions and where they are known from; – if nothing tells.
        variance: The smallest and the largest running variance, in words; – if unreadable.
        findings: A few words on each, with its severity.
        state: What was, or would be, done with it.
        tone: Whether that is good news.
        prominent: Whether a table that is folded shows it.
        summary: Its numbers; None if it has none that make sense.
    """

    number: int
    name: str
    channels: int
    eps: Eps
    dims: str
    variance: str
    findings: tuple[tuple[str, Severity], ...]
    state: str
    tone: Tone
    prominent: bool
    summary: Summary | None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """What was done with one file, or one pair of files.

    Attributes:
        title: The file's name.
        verdict: What it amounts to.
        files: The files.
        claims: Those of a verification, if there was one.
        findings: On the file as a whole.
        parts: The models in it.
        notes: On the file as a whole.
        steps: What comes next: a sentence, and lines of Python.
    """

    title: str
    verdict: Verdict
    files: tuple[FileFacts, ...]
    claims: tuple[Claim, ...] = ()
    findings: tuple[FindingGroup, ...] = ()
    parts: tuple[Part, ...] = ()
    notes: tuple[str, ...] = ()
    steps: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """A report.

    Attributes:
        command: That it reports on.
        version: Of frozenbn.
        written: When.
        sections: One for each file, or pair of files.
    """

    command: Literal["convert", "inspect", "verify"]
    version: str
    written: datetime
    sections: tuple[Section, ...] = field(default_factory=tuple)
