"""A report in GitHub's Markdown. Names that come out of files are code, so that none is markup."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from frozenbn_cli.reports.console import printable
from frozenbn_cli.reports.description import (
    OVERVIEW_TITLES,
    STATE_TITLES,
    Command,
    FileFacts,
    LayerRow,
    Page,
    Part,
    Section,
    claim_words,
)
from frozenbn_cli.reports.evidence import COLUMNS, difference_rows, tolerance_words
from frozenbn_cli.reports.grouping import FindingGroup
from frozenbn_cli.verification.claims import Claim
from frozenbn_cli.wording import counted

__all__ = ["render"]

_MARKS = {"good": "✅", "bad": "❌", "warn": "⚠️", "plain": "▫️"}
_CLAIM_MARKS = {"equal": "✅", "different": "❌", "not verified": "⚠️"}
_ROWS = 20


def render(page: Page) -> str:
    """Return a report as GitHub Markdown."""
    blocks = [f"# frozenbn {page.command}"]
    if page.overview:
        rows = [_overview_row(section, row) for section, row in page.overview]
        blocks.append(_table(OVERVIEW_TITLES[page.command], rows))
    for section in page.sections:
        blocks += _section(section)
    blocks += ["## How this report came about", _facts(page.provenance.facts)]
    return "\n\n".join(blocks)


def _section(section: Section) -> Iterator[str]:
    yield f"## {_code(section.title)}"
    detail = f" {_text(section.verdict.detail)}" if section.verdict.detail else ""
    yield f"**{_verdict(section)}**{'.' if detail else ''}{detail}"
    yield _table(("", "File", ""), [_file_row(file) for file in section.files])
    if section.claims:
        yield "### What was verified"
        yield _table(
            ("Claim", "", "What it says", "What was found"),
            [_claim_row(claim) for claim in section.claims],
        )
        for claim in section.claims:
            if claim.differences:
                yield from _differences(claim)
    if section.findings:
        yield "### The file"
        yield _findings(section.findings)
    for part in section.parts:
        yield from _part(part, section.command)
    if section.record:
        yield "### What the file says of its conversion"
        yield _facts(section.record)
    if section.notes:
        yield _list(map(_text, section.notes))
    if section.steps:
        sentence, lines = section.steps
        yield "### What comes next"
        yield _text(sentence)
        yield _fenced(lines)


def _overview_row(section: Section, row: Sequence[str]) -> tuple[str, ...]:
    path, holds, layers, eps, _, then = row
    return _code(path), _text(holds), layers, _text(eps), _verdict(section), _text(then)


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    return _table(("", ""), [(_text(label), _text(value)) for label, value in facts])


def _verdict(section: Section) -> str:
    return f"{_MARKS[section.verdict.tone]} {_text(section.verdict.words)}"


def _file_row(file: FileFacts) -> tuple[str, str, str]:
    facts = "<br>".join(f"{_text(label)}: {_text(value)}" for label, value in file.facts)
    return file.role, _code(file.path), facts


def _claim_row(claim: Claim) -> tuple[str, ...]:
    status = f"{_CLAIM_MARKS[claim.status]} {claim.status}"
    return claim.name, status, claim_words(claim), _text(printable(claim.detail))


def _differences(claim: Claim) -> Iterator[str]:
    rows, left_out = difference_rows(claim, at_most=_ROWS)
    yield f"#### How {claim.name} differ"
    if claim.begins:
        yield _text(printable(claim.begins)) + "."
    yield _text(tolerance_words(claim))
    cells = [(row.cells[0], _code(row.cells[1]), *map(_text, row.cells[2:])) for row in rows]
    yield _table(COLUMNS, cells)
    if left_out:
        yield left_out


def _part(part: Part, command: Command) -> Iterator[str]:
    if part.heading:
        yield f"### {_text(part.heading)}"
    if part.facts:
        yield _text(" · ".join(part.facts))
    if part.findings:
        yield "#### Findings on the statistics"
        yield _findings(part.findings)
    if part.notes:
        yield "#### Notes"
        yield _list(map(_text, part.notes))
    if part.layers:
        yield "#### Layers"
        prominent = [row for row in part.layers if row.prominent]
        yield _layers(prominent, command)
        if len(prominent) < len(part.layers):
            summary = f"<summary>All {counted(len(part.layers), 'layer')}</summary>"
            yield f"<details>{summary}\n\n{_layers(part.layers, command)}\n\n</details>"


def _layers(rows: Sequence[LayerRow], command: Command) -> str:
    titles = ("#", "Layer", "Channels", "eps", "Dims", "Variance", "Findings")
    return _table(
        (*titles, STATE_TITLES[command]),
        [
            (
                f"{row.number}",
                _code(row.name),
                row.channels,
                row.eps,
                row.dims,
                row.variance,
                ", ".join(_text(words) for words, _ in row.findings),
                row.state,
            )
            for row in rows
        ],
    )


def _findings(groups: Iterable[FindingGroup]) -> str:
    lines = []
    for group in groups:
        where = f" ({_text(group.where)})" if group.where else ""
        line = f"**{group.severity}**: {_text(group.message)}{where}. {_text(group.advice)}"
        lines.append(line.rstrip())
    return _list(lines)


# Markdown


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _code(text: str) -> str:
    """Return ``text`` as code, also within a table."""
    # A bar ends a cell, even in code, unless it is escaped; no other escape works there.
    text = text.replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    padding = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{padding}{text}{padding}{fence}" if text.strip() else "–"


def _fenced(lines: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", lines)), default=0))
    return f"{fence}python\n{lines}\n{fence}"


def _text(text: str) -> str:
    """Return ``text`` with what Markdown, HTML or GitHub would obey made harmless."""
    text = re.sub(r"([\\`*\[\]<>|~&#])", r"\\\1", text)
    text = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)
    # Nothing that looks like an address or a mention becomes one.
    return re.sub(r"(://|www\.|@)", lambda found: f"{found[0][0]}<!-- -->{found[0][1:]}", text)
