"""A report as one HTML file that loads nothing, from a template that escapes what files hold."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from frozenbn_cli.importing import import_quietly
from frozenbn_cli.reports.console import printable
from frozenbn_cli.reports.description import (
    OVERVIEW_TITLES,
    STATE_TITLES,
    LayerRow,
    Page,
    Part,
    Section,
    claim_words,
)
from frozenbn_cli.reports.evidence import COLUMNS, DifferenceRow, difference_rows, tolerance_words
from frozenbn_cli.verification.claims import Claim
from frozenbn_cli.wording import counted

__all__ = ["has_charts", "render"]

_MARKS = {"good": "✓", "bad": "✗", "warn": "!", "plain": "·"}
_CLAIM_MARKS = {"equal": "✓", "different": "✗", "not verified": "–"}
_CLAIM_TONES = {"equal": "good", "different": "bad", "not verified": "warn"}
_SPREAD_KEYS = (
    ("all", "all channels"),
    ("half", "the middle half of them"),
    ("middle", "median"),
)
_DIFFERENCE_KEYS = (("all", "from the mean to the largest"), ("middle", "99 % are below"))
_LEVEL_KEY = ("level", "eps")
_ROWS, _ROWS_SHOWN = 100, 12


@dataclass(frozen=True, slots=True)
class _Differences:
    """What the page shows of a claim that differs.

    Attributes:
        claim: The claim.
        rows: The first of the table.
        more: The rows that are folded.
        left_out: What the table leaves out, in words.
        tolerance: Which tolerance would let it pass, in words.
        chart: None if there is none.
        chart_wanted: Whether there would be one with matplotlib.
    """

    claim: Claim
    rows: list[DifferenceRow]
    more: list[DifferenceRow]
    left_out: str
    tolerance: str
    chart: Any
    chart_wanted: bool


def has_charts() -> bool:
    """Return whether what draws charts is installed: the extra ``report``."""
    return _charts_module() is not None


def _charts_module() -> Any:
    try:
        return import_quietly("frozenbn_cli.reports.charts")
    except ImportError:  # No matplotlib, or one that lacks something itself.
        return None


def render(page: Page) -> str:
    """Return a report as one HTML file."""
    folder = files("frozenbn_cli.reports").joinpath("templates")
    css, script, template = (
        folder.joinpath(f"report.{suffix}").read_text(encoding="utf-8")
        for suffix in ("css", "js", "html")
    )
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["printable"] = printable
    digest = hashlib.sha256(script.encode()).digest()
    charts = _charts_module()
    return environment.from_string(template).render(
        page=page,
        css=css,
        script=script,
        script_hash=base64.b64encode(digest).decode(),
        marks=_MARKS,
        claim_words=claim_words,
        claim_marks=_CLAIM_MARKS,
        claim_tones=_CLAIM_TONES,
        state_title=STATE_TITLES[page.command],
        overview_titles=OVERVIEW_TITLES.get(page.command, ()),
        difference_columns=COLUMNS,
        difference_keys=_DIFFERENCE_KEYS,
        differences=[
            _differences(f"s{number}", section, charts)
            for number, section in enumerate(page.sections, 1)
        ],
        charts=[
            [
                _charts(f"s{number}p{place}", part, charts)
                for place, part in enumerate(section.parts, 1)
            ]
            for number, section in enumerate(page.sections, 1)
        ],
        row_class=_row_class,
        counted=counted,
    )


def _row_class(row: LayerRow) -> Markup:
    """Return the class of rows that have findings or were not frozen, which the filter keeps."""
    return Markup(" class=x") if row.findings or row.tone in ("warn", "bad") else Markup()


def _charts(name: str, part: Part, charts: Any) -> list[tuple[Any, Any]] | None:
    if charts is None:
        return None
    drawn = (
        (charts.mean_drift_chart(f"{name}-means", part.layers), _SPREAD_KEYS),
        (charts.variance_drift_chart(f"{name}-variances", part.layers), _SPREAD_KEYS),
        (charts.variance_chart(f"{name}-variance", part.layers), (*_SPREAD_KEYS, _LEVEL_KEY)),
        (charts.scale_chart(f"{name}-scale", part.layers), _SPREAD_KEYS),
    )
    return [(chart, keys) for chart, keys in drawn if chart]


def _differences(name: str, section: Section, charts: Any) -> list[_Differences]:
    found = []
    for claim in section.claims:
        if not claim.differences:
            continue
        rows, left_out = difference_rows(claim, at_most=_ROWS)
        drawn = charts and charts.difference_chart(f"{name}-{claim.name}", claim)
        found.append(
            _Differences(
                claim,
                rows[:_ROWS_SHOWN],
                rows[_ROWS_SHOWN:],
                left_out,
                tolerance_words(claim),
                drawn,
                chart_wanted=charts is None,
            )
        )
    return found
