"""What a report says of the architectures that the layers of a file were recognised as."""

from __future__ import annotations

from frozenbn_cli.architectures import Match
from frozenbn_cli.batch_norms.plan import Plan
from frozenbn_cli.reports.console import printable
from frozenbn_cli.wording import counted

__all__ = ["recognised_briefly", "recognised_lines"]

_CAVEAT = "code that changed eps would not show in the file"


def recognised_briefly(plan: Plan) -> list[str]:
    """Return what the layers were recognised as, in a few words each."""
    said = []
    for match in plan.matches:
        names = dict.fromkeys(f"{one.library} {one.name}" for one in match.firsts)
        said.append(f"{_where(match) or 'exactly'} as in {' or '.join(names)}")
    return said


def recognised_lines(plan: Plan) -> list[str]:
    """Return a line on each group of layers that was recognised."""
    lines = [f"recognised: {_line(match)}" for match in plan.matches]
    sources = {item.layer.eps.source for item in plan.layers}
    if lines and "recognised" in sources:
        lines[0] += f"; {_CAVEAT}"
    unknown = sum(not item.layer.recognised for item in plan.layers)
    if lines and unknown and "assumed" in sources:
        lines[-1] += f"; {counted(unknown, 'other layer')}: assumed"
    return lines


def _line(match: Match) -> str:
    layers = counted(len(match.layers), "layer")
    where = f"{_where(match)}: {layers}" if match.prefix else layers
    return f"{where} exactly as in {' or '.join(dict.fromkeys(map(str, match.candidates)))}"


def _where(match: Match) -> str:
    return printable(f"{match.prefix}*") if match.prefix else ""
