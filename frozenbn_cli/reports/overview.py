"""The table over several files that a report on a terminal, or in a pipe, begins with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.text import Text

from frozenbn_cli.reports.console import suited
from frozenbn_cli.reports.description import OVERVIEW_TITLES, TONE_STYLES, Section
from frozenbn_cli.reports.pieces import lean_table, separated
from frozenbn_cli.wording import counted

__all__ = ["overview_report"]

_FEWEST_LETTERS = 12


def overview_report(
    sections: Sequence[Section], console: Console, *, hint: str = ""
) -> RenderableType:
    """Return the overview of several files: a row for each, and what they amount to.

    Args:
        sections: What there is to say of each.
        console: Where it will be printed.
        hint: How to see more; empty if there is no more.
    """
    table = lean_table(console)
    longest = max(len(section.overview_row[0]) for section in sections)
    for place, title in enumerate(OVERVIEW_TITLES[sections[0].command]):
        least = min(longest, _FEWEST_LETTERS) if place == 0 else None
        table.add_column(title, overflow="fold", min_width=least)
    for section in sections:
        row = section.overview_row
        cells = [Text(suited(cell, console)) for cell in row]
        cells[0] = Text(row[0])
        cells[-2].stylize(TONE_STYLES[section.verdict.tone])
        table.add_row(*cells)
    counts = Counter(section.verdict.words.lower() for section in sections)
    said = "; ".join(f"{count:,} {words}" for words, count in counts.items())
    closing = Text(f"{counted(len(sections), 'file')}: {said}")
    if hint:
        closing.append(suited(f" · {hint}", console), "dim")
    return separated([[table], [closing]])
