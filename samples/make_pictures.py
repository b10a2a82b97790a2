"""Draw the pictures of reports in README and docs from real runs on the sample.

python samples/make_pictures.py      # writes inspect.svg, convert.svg, verify.svg, calibrate.svg

It needs scikit-learn: pip install '.[samples]'
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from frozenbn_cli import (
    CalibrateOptions,
    ConvertOptions,
    VerifyOptions,
    calibrate_file,
    convert_file,
    inspect_file,
    verify_files,
)
from frozenbn_cli.live_models.target import ModelTarget
from frozenbn_cli.reports.calibrations import describe_calibration
from frozenbn_cli.reports.conversions import describe_conversion
from frozenbn_cli.reports.description import Section
from frozenbn_cli.reports.inspections import describe_inspection
from frozenbn_cli.reports.terminal import section_report
from frozenbn_cli.reports.verifications import describe_verification

if TYPE_CHECKING or not __package__:
    from fine_tuning import pale, shifted
    from make_samples import read_digits
else:
    from samples.fine_tuning import pale, shifted
    from samples.make_samples import read_digits

SAMPLES = Path(__file__).resolve().parent
WIDTH = 110
MODEL = "backbone.py:Backbone"
PALE_IMAGES = 64


@contextmanager
def folder_with_the_sample() -> Iterator[None]:
    """Work in a folder with the sample and its model, which is gone afterwards."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("digits_backbone.pt", "backbone.py"):
            shutil.copy(SAMPLES / name, folder)
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def draw(name: str, command: str, section: Section) -> None:
    """Save what ``command`` prints as a picture that needs nothing from elsewhere."""
    console = Console(record=True, width=WIDTH, force_terminal=True, file=io.StringIO())
    console.print(f"$ {command}", style="bold", highlight=False)
    console.print(section_report(section, console))
    svg = console.export_svg(title="frozenbn", unique_id=f"frozenbn-{name}")
    # Rich's template loads its font from the web.
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.S)
    (SAMPLES / f"{name}.svg").write_text(svg, encoding="utf-8")


def flip_a_bit(path: str) -> None:
    """Damage one weight of a converted file, as the picture of `verify` shows."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = load_file(path)
    weight = state["stage2.0.spatial.conv.weight"].reshape(-1)
    weight[7] = -weight[7]
    save_file(state, path, metadata)


def draw_calibration() -> None:
    """Draw how statistics of full contrast are replaced by those of pale digits."""
    digits = shifted(read_digits(), pale, images=PALE_IMAGES, seed=0)
    torch.save(digits.train_images, "pale.pt")
    how = CalibrateOptions(model=ModelTarget(MODEL), data="pale.pt")
    calibrated = calibrate_file("digits_backbone.pt", options=how)
    command = f"frozenbn calibrate digits_backbone.pt --model {MODEL} --data pale.pt"
    draw("calibrate", command, describe_calibration(calibrated))


def main() -> None:
    """Draw all pictures."""
    model = ModelTarget(MODEL)
    named = f"--model {shlex.quote(MODEL)}"
    with folder_with_the_sample():
        inspection = inspect_file("digits_backbone.pt")
        command = "frozenbn inspect digits_backbone.pt"
        draw("inspect", command, describe_inspection(inspection))

        converted = convert_file("digits_backbone.pt", options=ConvertOptions(model=model))
        command = f"frozenbn convert digits_backbone.pt {named}"
        draw("convert", command, describe_conversion(converted))

        flip_a_bit(str(converted.output_path))
        verified = verify_files(
            "digits_backbone.pt", converted.output_path, options=VerifyOptions(model=model)
        )
        command = f"frozenbn verify digits_backbone.pt {converted.output_path} {named}"
        draw("verify", command, describe_verification(verified))

        draw_calibration()


if __name__ == "__main__":
    main()
