"""Commands that take their options in groups, which share what belongs together."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import is_dataclass
from inspect import Parameter
from typing import Any, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["PlainGroup", "command"]


class _PlainCommand(TyperCommand):
    """A command whose help shows what its options are called, and not of which type they are."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options and arguments, and `--help`."""
        return _plain(super().get_params(ctx))


class PlainGroup(TyperGroup):
    """The same for what commands are in."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options and arguments, and `--help`."""
        return _plain(super().get_params(ctx))


def _plain(parameters: Sequence[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
        if parameter.param_type_name == "argument":
            parameter.display_type_rich = lambda ctx: None  # noqa: ARG005  # Its name says it.
    return list(parameters)


def command(app: typer.Typer, *, epilog: str) -> Callable[[Callable[..., None]], None]:
    """Add a function to the commands of ``app``.

    A parameter of a dataclass stands for its fields, each an option of the command.

    Args:
        app: Gets the command.
        epilog: The foot of its help.
    """

    def add(function: Callable[..., None]) -> None:
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
        app.command(epilog=epilog, cls=_PlainCommand)(call)

    return add


def _parameters(function: Callable[..., Any]) -> list[Parameter]:
    """Return what a function, or a dataclass, takes; by name, with the annotations read."""
    hints = get_type_hints(function, include_extras=True)
    return [
        item.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[item.name])
        for item in inspect.signature(function).parameters.values()
    ]


def _is_group(parameter: Parameter) -> bool:
    return is_dataclass(parameter.annotation)
