"""What is wrong with a command line, in words of our own: the parser's change with its version."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frozenbn_cli.errors import UsageError
from frozenbn_cli.wording import is_it

__all__ = ["usage_error"]


def usage_error(error: Any, arguments: Sequence[str]) -> UsageError:
    """Return the error for what the parser refuses.

    Args:
        error: As it raised it.
        arguments: The command line.
    """
    kind, context = type(error).__name__, error.ctx
    named = next((word for word in arguments if not word.startswith("-")), "")
    command = context.command_path if context else f"frozenbn {named}".rstrip()
    see = f"See `{command} --help`."
    if kind == "NoSuchOption":
        known = [name for item in context.command.params for name in item.opts] if context else []
        bare = {name.lstrip("-"): name for name in known}
        near = is_it(error.option_name.lstrip("-"), bare)
        near = re.sub(r"'([^']*)'", lambda found: bare[found[1]], near)
        return UsageError(f"there is no option {error.option_name}", advice=near or see)
    if kind == "BadOptionUsage":
        return UsageError(f"{error.option_name} needs a value", advice=see)
    if kind == "MissingParameter":
        return UsageError(f"{_name(error.param)} is missing", advice=see)
    if kind == "BadParameter" and error.param is not None:
        what, _, advice = error.message.rstrip(".").partition(". ")
        return UsageError(f"{_name(error.param)}: {what}", advice=advice or see)
    commands = getattr(context.command, "commands", None) if context else None
    if commands and named and named not in commands:
        return _no_such_command(named, list(commands), see)
    message = error.format_message().rstrip(".")
    if extra := re.fullmatch(r"Got unexpected extra arguments?(?:\(s\))? \((.*)\)", message):
        return UsageError(f"more arguments than it takes: {extra[1]}", advice=see)
    return UsageError(message, advice=see)


def _no_such_command(named: str, commands: list[str], see: str) -> UsageError:
    if Path(named).exists():
        return UsageError(
            f"{named!a} is a file, and a command comes first",
            advice=f"`frozenbn inspect {named}` says what it is.",
        )
    return UsageError(f"there is no command {named!a}", advice=is_it(named, commands) or see)


def _name(parameter: Any) -> str:
    """Return what the help calls an argument or an option."""
    if parameter.param_type_name == "argument":
        return str(parameter.metavar or parameter.name)
    return max(map(str, parameter.opts), key=len)
