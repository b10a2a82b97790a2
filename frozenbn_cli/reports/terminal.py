"""Lays a description out for a terminal, or plainly for a pipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from frozenbn_cli.calibration.drift import Drift
from frozenbn_cli.reports.console import printable, suited, symbol
from frozenbn_cli.reports.description import (
    STATE_TITLES,
    TONE_STYLES,
    UNKNOWN,
    LayerRow,
    Part,
    Section,
)
from frozenbn_cli.reports.evidence import evidence
from frozenbn_cli.reports.grouping import FindingGroup
from frozenbn_cli.reports.pieces import lean_table, plain_table, separated
from frozenbn_cli.reports.words import factor_text, mean_drift_text, verdict_words
from frozenbn_cli.verification.claims import Claim
from frozenbn_cli.wording import counted

__all__ = ["section_report"]

_ENDLESS = 10_000
_NAME_WIDTH = 12
_BARS = "▁▂▃▄▅▆▇█"
_ASCII_BARS = ".:-=+*%#"
_SEVERITIES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_STATUSES = {
    "equal": ("✓", "green"),
    "different": ("✗", "bold red"),
    "not verified": ("–", "yellow"),
}
_VERDICTS = {"PASSED": "bold green", "FAILED": "bold red", "NOT VERIFIED": "bold yellow"}


def section_report(
    section: Section, console: Console, *, all_layers: bool = False
) -> RenderableType:
    """Return the report of what was done with a file, or a pair of files.

    Args:
        section: What there is to say.
        console: Where it will be printed, for its width and encoding.
        all_layers: Show every layer; a long table is folded otherwise.
    """

    def lines(texts: Iterable[str]) -> list[RenderableType]:
        return [Text(suited(text, console)) for text in texts]

    blocks: list[Sequence[RenderableType]] = [
        [_HEADERS[section.command](section, console)],
        [_finding_line(group) for group in section.findings],
    ]
    for part in section.parts:
        if section.command != "verify" or all_layers:
            blocks += _part(part, section, console, all_layers)
            blocks.append([_finding_line(group) for group in part.findings])
        blocks.append(lines(part.notes))
    if section.record:
        blocks.append(_record(section.record, console))
    if section.claims:
        blocks += [[_claims(section.claims, console)], evidence(section.claims, console)]
    closing = [*lines(section.notes)]
    if section.command == "inspect":
        closing += lines([section.verdict.detail])
    if section.steps:
        blocks.append([_steps(*section.steps)])
    if section.claims:
        closing.append(_verdict_line(section.claims))
    return separated([*blocks, closing])


# Headers


def _convert_header(section: Section, console: Console) -> Text:
    source, output = section.files
    is_output = section.steps or section.verdict.tone == "plain"
    paths = [source.path, output.path] if is_output else [source.path]
    sizes = [source.get("size")]
    if output.get("size") != "not written":
        sizes.append(output.get("size"))
    key = f", key {source.get('key')}" if source.get("key") else ""
    to = f" → {output.get('format')}" if is_output else ""
    facts = [
        f"{source.get('holds')}{key} ({source.get('stored as')}){to}",
        " → ".join(sizes),
        output.get("took"),
        f"model {source.get('model')}" if source.get("model") else "",
        output.get("made"),
    ]
    words = section.verdict.words
    style = f"bold {TONE_STYLES[section.verdict.tone]}".rstrip()
    return Text.assemble(
        Text(suited(" → ", console)).join(Text(path, "bold") for path in paths),
        "\n",
        (words[0].lower() + words[1:], style),
        _dotted(["", *section.parts[0].facts], console),
        "\n",
        _dotted(facts, console),
    )


def _inspect_header(section: Section, console: Console) -> Text:
    (file,) = section.files
    model = f"model {file.get('model')}" if file.get("model") else ""
    facts = [*(file.get(label) for label in ("holds", "stored as", "size", "took")), model]
    return Text.assemble((file.path, "bold"), "\n", _dotted(facts, console))


def _verify_header(section: Section, console: Console) -> Text:
    header = Text()
    for file in section.files:
        key = f", key {file.get('key')}" if file.get("key") else ""
        header.append(f"{file.role:<9}  ").append(file.path, "bold")
        header.append(_dotted(["", file.get("holds") + key, file.get("size")], console) + "\n")
    converted = section.files[-1]
    layers = section.parts[0].facts[0]
    facts = [layers, f"compared {converted.get('compared')}", converted.get("took")]
    return header.append(_dotted(facts, console))


def _calibrate_header(section: Section, console: Console) -> Text:
    source, output, data = section.files
    key = f", key {source.get('key')}" if source.get("key") else ""
    facts = [
        f"{source.get('holds')}{key} ({source.get('stored as')})",
        source.get("size"),
        output.get("took"),
        f"model {source.get('model')}",
    ]
    over = [f"data {data.path}", *(data.get(label) for label in ("batches", "passes"))]
    words = section.verdict.words
    return Text.assemble(
        Text(suited(" → ", console)).join(Text(file.path, "bold") for file in (source, output)),
        "\n",
        (words[0].lower() + words[1:], f"bold {TONE_STYLES[section.verdict.tone]}".rstrip()),
        _dotted(["", *section.parts[-1].facts], console),
        "\n",
        _dotted(facts, console),
        "\n",
        _dotted(over, console),
    )


_HEADERS: dict[str, Callable[[Section, Console], Text]] = {
    "calibrate": _calibrate_header,
    "convert": _convert_header,
    "inspect": _inspect_header,
    "verify": _verify_header,
}


def _dotted(facts: Sequence[str], console: Console) -> str:
    """Return facts with dots between; an empty one in front keeps its dot."""
    first, *others = facts
    return suited(" · ".join([first, *filter(None, others)]), console)


# Layers


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the table of layers."""

    title: str
    cell: Callable[[LayerRow, Console], str | Text]
    justify: Literal["left", "right"] = "left"
    is_folded: bool = False


def _part(
    part: Part, section: Section, console: Console, all_layers: bool
) -> list[list[RenderableType]]:
    """Return what a model consists of, and the table of its layers."""
    heading: list[RenderableType] = [Text(part.heading, "bold")] if part.heading else []
    if section.command == "inspect":
        heading.append(Text(_dotted(part.facts, console)))
    if not part.layers:
        return [heading]
    shown = [row for row in part.layers if all_layers or row.prominent]
    rest = [row for row in part.layers if not (all_layers or row.prominent)]
    columns = _COLUMNS[section.command]
    table = _layer_table(shown, columns, console)
    if section.command == "inspect" and _natural_width(table, console) > console.width:
        table = _layer_table(shown, _NARROW, console)
    return [heading, [table, *([_rest(rest, console)] if rest else [])]]


def _layer_table(rows: Sequence[LayerRow], columns: Iterable[_Column], console: Console) -> Table:
    """Return a table whose names fold where they are too long, but never into slivers."""
    table = lean_table(console)
    longest = max((len(row.plan.layer.name) for row in rows), default=0)
    table.add_column("Layer", overflow="fold", min_width=min(longest, _NAME_WIDTH))
    for column in columns:
        table.add_column(
            column.title,
            justify=column.justify,
            no_wrap=not column.is_folded and column.justify == "left",
            overflow="fold",
        )
    for row in rows:
        table.add_row(Text(row.name), *(column.cell(row, console) for column in columns))
    return table


def _natural_width(table: Table, console: Console) -> int:
    """Return how wide a table is where nothing in it has to fold."""
    options = console.options.update(max_width=_ENDLESS)
    return Measurement.get(console, options, table).maximum


def _eps(row: LayerRow, _: Console) -> Text:
    return Text(row.eps, "yellow" if row.plan.layer.eps.source == "assumed" else "")


def _findings(row: LayerRow, console: Console) -> Text:
    texts = [
        Text(suited(words, console), _SEVERITIES[severity]) for words, severity in row.findings
    ]
    return Text(", ").join(texts) if texts else Text(symbol(console, UNKNOWN), "dim")


def _findings_or_state(row: LayerRow, console: Console) -> Text:
    """Return what `convert` would do with a layer where that is not to freeze it, and findings."""
    if row.plan.layer.frozen_already:
        return Text(row.state)
    if row.plan.action != "leave":
        return _findings(row, console)
    state = Text(row.state, TONE_STYLES[row.tone])
    return Text(", ").join([state, _findings(row, console)]) if row.plan.findings else state


def _state(row: LayerRow, console: Console) -> Text:
    mark = f"{symbol(console, '✓')} " if row.tone == "good" else ""
    return Text(mark + row.state, TONE_STYLES[row.tone])


def _words(name: str) -> Callable[[LayerRow, Console], str]:
    return lambda row, console: suited(getattr(row, name), console)


def _decades(row: LayerRow, console: Console) -> str:
    """Return the distribution of variances by decades, from below 1e-5 to 10 and more."""
    if row.statistics is None:
        return ""
    bars = _BARS if symbol(console, "▁") == "▁" else _ASCII_BARS
    counts = row.statistics.variance_decades
    most = max(counts)
    return "".join(
        bars[round((len(bars) - 1) * count / most)] if count else " " for count in counts
    )


def _drifted(words: Callable[[Drift], str]) -> Callable[[LayerRow, Console], str]:
    return lambda row, console: suited(words(row.drift) if row.drift else UNKNOWN, console)


_mean_drift = _drifted(lambda drift: mean_drift_text(drift.means))
_worst_mean = _drifted(
    lambda drift: f"{mean_drift_text(drift.mean_spread.highest)}, ch. {drift.worst_mean}"
)
_variance_drift = _drifted(lambda drift: factor_text(drift.variances))
_worst_variance = _drifted(
    lambda drift: f"{factor_text(drift.worst_factor)}, ch. {drift.worst_variance}"
)
_CHANNELS = _Column("Channels", _words("channels"), "right")
_EPS = _Column("eps", _eps)
_VARIANCE = _Column("Variance", _words("variance"))
_FOUND = _Column("Findings", _findings_or_state, is_folded=True)
_COLUMNS = {
    "calibrate": (
        _CHANNELS,
        _Column("Means by", _mean_drift, "right"),
        _Column("Worst", _worst_mean),
        _Column("Variances by", _variance_drift, "right"),
        _Column("Worst", _worst_variance),
        _Column("Findings", _findings, is_folded=True),
    ),
    "convert": (
        _CHANNELS,
        _EPS,
        _Column("Findings", _findings, is_folded=True),
        _Column(STATE_TITLES["convert"], _state),
    ),
    "inspect": (
        _CHANNELS,
        _Column("Dims", _words("dims")),
        _EPS,
        _Column("Momentum", _words("momentum"), "right"),
        _Column("Batches", _words("batches"), "right"),
        _Column("Mean", _words("mean")),
        _VARIANCE,
        _Column("1e-5..10", _decades),
        _FOUND,
    ),
}
_COLUMNS["verify"] = _COLUMNS["convert"]
_NARROW = (_CHANNELS, _Column("Dims", _words("short_dims")), _EPS, _VARIANCE, _FOUND)


def _rest(rows: Sequence[LayerRow], console: Console) -> Padding:
    """Return one line on the layers that a folded table leaves out."""
    channels = [row.plan.layer.channels for row in rows]
    found = sum(bool(row.plan.findings) for row in rows)
    facts = [
        counted(len(rows), "more layer"),
        "–".join(f"{n:,}" for n in sorted({min(channels), max(channels)})) + " channels",
        "eps " + ", ".join(Counter(row.eps for row in rows)),
        f"{found} with findings" if found else "no findings",
        "--all shows each",
    ]
    return Padding(Text(_dotted(facts, console), "dim"), (0, 0, 0, 2))


def _finding_line(group: FindingGroup) -> Text:
    line = Text()
    line.append(f"{group.severity}: ", _SEVERITIES[group.severity])
    where = f" ({group.where})" if group.where else ""
    return line.append(f"{group.message}{where}. {group.advice}".rstrip())


def _record(facts: Iterable[tuple[str, str]], console: Console) -> list[RenderableType]:
    """Return what a file says of its own conversion."""
    table = plain_table(no_wrap=1)
    for label, value in facts:
        table.add_row(Text(label), Text(suited(value, console)))
    return [Text("what the file says of its conversion", "bold"), Padding(table, (0, 0, 0, 2))]


# Claims and what comes next


def _claims(claims: Iterable[Claim], console: Console) -> Table:
    """Return a line for each claim: its name, its status, and what was compared."""
    table = plain_table(no_wrap=2)
    for claim in claims:
        mark, style = _STATUSES[claim.status]
        table.add_row(
            Text(claim.name, "bold"),
            Text(f"{symbol(console, mark)} {claim.status}", style),
            Text(printable(claim.detail)),
        )
    return table


def _verdict_line(claims: Sequence[Claim]) -> Text:
    said = verdict_words(claims)
    word = (said.word, _VERDICTS[said.word])
    return Text.assemble((said.first, "bold yellow"), word, said.what, (said.rest, "yellow"))


def _steps(sentence: str, lines: str) -> Text:
    steps = Text(f"{sentence}\n")
    return steps.append("\n".join(f"    {line}" for line in lines.splitlines()), "cyan")
