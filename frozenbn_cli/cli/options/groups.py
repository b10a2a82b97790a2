"""Commands that take their options in groups, which share what belongs together.

Text becomes values here, by the types that options are declared with: Typer's own way imports
pydantic for it, which takes longer than all else that a small command does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache, partial
from inspect import Parameter
from pathlib import Path
from typing import Any, get_args, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["PlainGroup", "command"]


class _PlainCommand(TyperCommand):
    """A command whose help shows what its options are called, and not of which type they are.

    Attributes:
        readers: What makes a value of the text of an option or argument, by its name.
    """

    readers: Mapping[str, Callable[[Any], Any]]

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options and arguments, and `--help`."""
        return _plain(super().get_params(ctx), self.readers)


class PlainGroup(TyperGroup):
    """The same for what commands are in."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options and arguments, and `--help`."""
        return _plain(super().get_params(ctx), {})


def _plain(parameters: Sequence[Any], readers: Mapping[str, Callable[[Any], Any]]) -> list[Any]:
    for parameter in parameters:
        parameter.process_value = partial(_processed, parameter, readers.get(parameter.name))
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
        if parameter.param_type_name == "argument":
            parameter.display_type_rich = lambda ctx: None  # noqa: ARG005  # Its name says it.
    return list(parameters)


def _processed(parameter: Any, read: Callable[[Any], Any] | None, context: Any, value: Any) -> Any:
    """Return the value of an option or argument from what was typed, as `process_value` does.

    Args:
        parameter: The option or argument.
        read: What makes a value of its text; None for a flag.
        context: Of the command.
        value: The text, or several, or the default.
    """
    is_missing = value is None or value == ()
    if parameter.required if is_missing else read is None:
        return type(parameter).process_value(parameter, context, value)
    if read and (parameter.multiple or parameter.nargs != 1):
        value = [read(item) for item in value or ()]
    elif read and not is_missing:
        value = read(value)
    if parameter.callback is not None:
        return parameter.callback(context, parameter, value)
    return value


def command(*, epilog: str) -> Callable[[Callable[..., None]], Callable[[typer.Typer], None]]:
    """Make a function what adds it to the commands of a parser.

    A parameter of a dataclass stands for its fields, each an option of the command.

    Args:
        epilog: The foot of its help.
    """
    return lambda function: partial(_add, function, epilog)


def _add(function: Callable[..., None], epilog: str, app: typer.Typer) -> None:
    parameters = _parameters(function)
    groups = {item.name: item.annotation for item in parameters if _is_group(item)}
    options = [
        option
        for item in parameters
        for option in (_parameters(item.annotation) if _is_group(item) else [item])
    ]

    def call(**values: Any) -> None:
        grouped = {
            name: group(**{item.name: values.pop(item.name) for item in _parameters(group)})
            for name, group in groups.items()
        }
        function(**values, **grouped)

    call.__name__, call.__doc__ = function.__name__, function.__doc__
    call.__annotations__ = {option.name: option.annotation for option in options}
    call.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    readers = {item.name: read for item in options if (read := _reader(item.annotation))}
    app.command(epilog=epilog, cls=type("_Command", (_PlainCommand,), {"readers": readers}))(call)


def _reader(annotation: Any) -> Callable[[Any], Any] | None:
    """Return what makes a value of an option's text; None where it is a flag, or no option."""
    declared = get_args(annotation)
    if len(declared) < 2:  # The type and what Typer is told.
        return None
    kind, option = declared
    if option.parser is not None:
        parser: Callable[[Any], Any] = option.parser
        return parser
    while kinds := [each for each in get_args(kind) if each is not type(None)]:
        (kind,) = kinds
    return kind if kind in (str, Path) else None


@cache
def _parameters(function: Callable[..., Any]) -> list[Parameter]:
    """Return what a function, or a dataclass, takes; by name, with the annotations read."""
    hints = get_type_hints(function, include_extras=True)
    return [
        item.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[item.name])
        for item in inspect.signature(function).parameters.values()
    ]


def _is_group(parameter: Parameter) -> bool:
    return is_dataclass(parameter.annotation)
