"""Turns the text of options into values, and refuses what is none."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import typer

from frozenbn_cli.errors import UsageError
from frozenbn_cli.live_models.target import ModelTarget

__all__ = [
    "check_finite",
    "check_model_arguments",
    "check_shapes",
    "parse_model",
    "parse_shapes",
]

_PYTHON_WORDS = {"True", "False", "None", "nan", "inf"}


def check_finite(value: float | None) -> float | None:
    """Refuse an eps or a tolerance that is none."""
    if value is not None and not 0 <= value < math.inf:
        raise typer.BadParameter("must be a finite number, 0 or more")
    return value


def check_shapes(shapes: list[str] | None) -> list[str] | None:
    """Refuse text that is no shape."""
    for text in shapes or ():
        if not re.fullmatch(r"\d{1,9}(x\d{1,9})*", text):
            raise typer.BadParameter(f"{text!r} is no shape such as 1x3x224x224")
    return shapes


def check_model_arguments(texts: list[str] | None) -> list[str] | None:
    """Refuse text that is no argument of a model."""
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise typer.BadParameter(f"{text!r} is no NAME=VALUE")
        if value in _PYTHON_WORDS:
            raise typer.BadParameter(f"{text!r}: write it in JSON, such as true, false, null")
    return texts


def parse_model(target: str | None, arguments: list[str] | None) -> ModelTarget | None:
    """Return a model from the text of ``--model`` and ``--model-arg``.

    Raises:
        UsageError: There are arguments, and no model.
    """
    if target is None:
        if arguments:
            raise UsageError("--model-arg is given, and no --model")
        return None
    pairs = (text.partition("=") for text in arguments or ())
    return ModelTarget(target, {name: _json_or_text(value) for name, _, value in pairs})


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def parse_shapes(shapes: list[str] | None) -> tuple[tuple[int, ...], ...]:
    """Return shapes as numbers, from the text of ``--input-shape``."""
    return tuple(tuple(map(int, text.split("x"))) for text in shapes or ())
