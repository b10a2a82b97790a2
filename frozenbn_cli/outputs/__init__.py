"""The formats that are written: each takes tensors as they lie in the input, and a record.

What writes them is a module for each, imported where it is used.
"""

from __future__ import annotations

from frozenbn_cli.outputs.formats import (
    BY_KIND,
    FORMATS,
    OutputFormat,
    check_name,
    default_output,
    format_of,
    own_format,
)

__all__ = [
    "BY_KIND",
    "FORMATS",
    "OutputFormat",
    "check_name",
    "default_output",
    "format_of",
    "own_format",
]
