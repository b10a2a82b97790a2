"""Draw the README's picture of a report from a real conversion of the sample.

python samples/make_pictures.py      # writes samples/convert.svg
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
from pathlib import Path

from rich.console import Console

from frozenbn_cli import convert_file
from frozenbn_cli.reports.terminal import conversion_report

SAMPLES = Path(__file__).resolve().parent


def draw(target: Path) -> None:
    """Convert the sample in an empty folder and save its report as SVG."""
    console = Console(record=True, width=96, force_terminal=True, file=io.StringIO())
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(SAMPLES / "digits_backbone.pt", folder)
        os.chdir(folder)
        result = convert_file("digits_backbone.pt")
        console.print("$ frozenbn convert digits_backbone.pt", style="bold")
        console.print(conversion_report(result, console))
        os.chdir(SAMPLES)
    svg = console.export_svg(title="frozenbn", unique_id="frozenbn")
    # Rich's template loads its font from the web; a picture should need nothing.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.S)
    target.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    draw(SAMPLES / "convert.svg")
