"""Tables and blocks as reports on a terminal have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["lean_table", "plain_table", "separated"]


def lean_table(console: Console, *, header: bool = True) -> Table:
    """Return an empty table as reports have it, lean on a terminal, plain in a pipe."""
    return Table(
        box=box.SIMPLE_HEAD if header and console.is_terminal else None,
        show_header=header,
        header_style="bold",
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0) if console.is_terminal else (0, 2, 0, 0),
    )


def plain_table(*, no_wrap: int) -> Table:
    """Return an empty table of words alone; after ``no_wrap`` columns comes one that folds."""
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for _ in range(no_wrap):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def separated(blocks: Iterable[Sequence[RenderableType]]) -> RenderableType:
    """Return the blocks that hold anything, with an empty line between."""
    parts: list[RenderableType] = []
    for block in blocks:
        if block:
            parts += [Text(), *block] if parts else [*block]
    return Group(*parts)
