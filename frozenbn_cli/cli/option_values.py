"""Turns the text of options into values, and refuses what is none."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

import typer

from frozenbn_cli.errors import UsageError
from frozenbn_cli.live_models.known_models import KnownModel, names_known_model
from frozenbn_cli.live_models.target import ModelTarget
from frozenbn_cli.outputs import FORMATS
from frozenbn_cli.selection import Selection
from frozenbn_cli.wording import is_it

__all__ = [
    "check_dims",
    "check_dims_of",
    "check_image_size",
    "check_model_arguments",
    "check_numbers",
    "check_positive_numbers",
    "check_shapes",
    "finite",
    "format_name",
    "parse_claims",
    "parse_dims",
    "parse_image_size",
    "parse_model",
    "parse_numbers",
    "parse_selection",
    "parse_shapes",
    "whole",
]

_PYTHON_WORDS = {"True", "False", "None", "nan", "inf"}


def finite(text: str) -> float:
    """Return an eps, a tolerance or a time; refuse what is none."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise typer.BadParameter(f"expected a number, 0 or more, found {text!r}")
    return value


def whole(text: str) -> int:
    """Return a whole number; refuse what is none."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"expected a whole number, found {text!r}") from None


def format_name(text: str) -> str:
    """Return the name of a format; refuse what is none."""
    if text not in FORMATS:
        near = is_it(text, FORMATS) or f"There are {', '.join(FORMATS)}."
        raise typer.BadParameter(f"there is no format {text!a}. {near}")
    return text


def check_shapes(shapes: list[str] | None) -> list[str] | None:
    """Refuse text that is no shape."""
    for text in shapes or ():
        if not re.fullmatch(r"\d{1,9}(x\d{1,9})*", text):
            raise typer.BadParameter(f"{text!r} is no shape such as 1x3x224x224")
    return shapes


def check_image_size(text: str | None) -> str | None:
    """Refuse text that is no size of an image."""
    if text is not None and not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})?", text):
        raise typer.BadParameter(f"{text!r} is no size such as 224 or 224x320")
    return text


def parse_image_size(text: str | None) -> tuple[int, int] | None:
    """Return height and width, from the text of ``--image-size``."""
    if text is None:
        return None
    height, _, width = text.partition("x")
    return int(height), int(width or height)


def check_numbers(text: str | None) -> str | None:
    """Refuse text that is no list of numbers."""
    try:
        values = parse_numbers(text) or ()
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of numbers such as 0.485,0.456") from None
    if not all(map(math.isfinite, values)):
        raise typer.BadParameter("must be finite numbers")
    return text


def check_positive_numbers(text: str | None) -> str | None:
    """Refuse text that is no list of numbers above 0."""
    if any(value <= 0 for value in parse_numbers(check_numbers(text)) or ()):
        raise typer.BadParameter("must be numbers above 0")
    return text


def parse_numbers(text: str | None) -> tuple[float, ...] | None:
    """Return the numbers in a list with commas."""
    return None if text is None else tuple(map(float, text.split(",")))


def check_dims(text: str | None) -> str | None:
    """Refuse text that lists no spatial dimensions."""
    if text is not None and not re.fullmatch(r"[123]d?(,[123]d?)*", text):
        raise typer.BadParameter(f"{text!r} is no list of 1, 2 and 3, such as 1,2,3")
    return text


def parse_dims(text: str | None) -> tuple[int, ...] | None:
    """Return spatial dimensions as numbers, from the text of ``--dims``."""
    return tuple(int(part[0]) for part in text.split(",")) if text else None


def check_dims_of(texts: list[str] | None) -> list[str] | None:
    """Refuse text that is no layer with its dimensions."""
    for text in texts or ():
        if not re.fullmatch(r".*=[123]d", text, re.DOTALL):
            raise typer.BadParameter(f"{text!r} is no NAME=1d, NAME=2d or NAME=3d")
    return texts


def parse_selection(
    include: list[str] | None,
    exclude: list[str] | None,
    dims: list[str] | None,
    *,
    live: bool,
    frozen: bool,
) -> Selection:
    """Return which layers are meant, and what is said of them.

    Raises:
        UsageError: What is said contradicts itself.
    """
    if live and frozen:
        raise UsageError("--live and --frozen are given; layers are one of them")
    pairs = [(text[:-3], int(text[-2])) for text in dims or ()]
    if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
        raise UsageError(f"--dims-of {twice[0]!a} is given twice")
    return Selection(
        tuple(include or ()),
        tuple(exclude or ()),
        tuple(pairs),
        "live" if live else "frozen" if frozen else None,
    )


def check_model_arguments(texts: list[str] | None) -> list[str] | None:
    """Refuse text that is no argument of a model."""
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise typer.BadParameter(f"{text!r} is no NAME=VALUE")
        if value in _PYTHON_WORDS:
            raise typer.BadParameter(f"{text!r}: write it in JSON, such as true, false, null")
    return texts


def parse_model(target: str | None, arguments: list[str] | None) -> ModelTarget | KnownModel | None:
    """Return a model from the text of ``--model`` and ``--model-arg``.

    Raises:
        UsageError: There are arguments, and no model.
    """
    if target is None:
        if arguments:
            raise UsageError("--model-arg is given, and no --model")
        return None
    pairs = (text.partition("=") for text in arguments or ())
    values = {name: _json_or_text(value) for name, _, value in pairs}
    return (KnownModel if names_known_model(target) else ModelTarget)(target, values)


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse_shapes(shapes: list[str] | None) -> tuple[tuple[int, ...], ...]:
    """Return shapes as numbers, from the text of ``--input-shape``."""
    return tuple(tuple(map(int, text.split("x"))) for text in shapes or ())


def parse_claims(text: str | None) -> tuple[str, ...]:
    """Return the names in the text of ``--require``."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())
