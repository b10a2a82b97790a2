"""What Python callers read where the command line reads of its options."""

from __future__ import annotations

import re

__all__ = ["as_arguments"]

_SWITCHES = {
    "--no-verify": "verify=False",
    "--no-recognise": "may_recognise=False",
    "--live": "state='live'",
    "--frozen": "state='frozen'",
    **{
        f"--{name.replace('_', '-')}": f"{name}=True"
        for name in (
            "force", "force_unhealthy", "trust", "keep_prefix", "skip_existing", "recursive",
            "dry_run",
        )
    },
}  # fmt: skip
_OTHER_NAMES = {"input_shape": "input_shapes", "model_arg": "the arguments of the model"}
# An option, and a value where it is one that is written after it.
_OPTION = re.compile(
    r"--model package\.module:callable|--(?:to|strip-prefix|add-prefix) [\w.]*\w|--dims [\d,]+\d"
    r"|--[a-z]+(?:-[a-z]+)*"
)


def as_arguments(text: str) -> str:
    """Return a message with the arguments of the library in place of the options.

    ``Pass --force, or --to torch.`` becomes ``Pass force=True, or to='torch'.``
    """
    return _OPTION.sub(lambda found: _argument(found[0]), text)


def _argument(words: str) -> str:
    option, _, value = words.partition(" ")
    if option in _SWITCHES:
        return _SWITCHES[option]
    name = option.removeprefix("--").replace("-", "_")
    name = _OTHER_NAMES.get(name, name)
    if name == "model":
        return "model"
    if name == "dims" and value:
        return f"dims=({value.replace(',', ', ')})"
    return f"{name}={value!r}" if value else name
