"""Messages speak of options on the command line, and of arguments to Python callers."""

import pytest

from frozenbn_cli.argument_words import as_arguments
from frozenbn_cli.errors import UsageError


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ("Pass --force to replace it.", "Pass force=True to replace it."),
        ("or all with --force-unhealthy.", "or all with force_unhealthy=True."),
        ("Choose one with --key.", "Choose one with key."),
        ("skipped by --no-verify", "skipped by verify=False"),
        ("Write --to torch instead.", "Write to='torch' instead."),
        ("--to torchscript: expected a model", "to='torchscript': expected a model"),
        ("Pass --trust, or --model package.module:callable.", "Pass trust=True, or model."),
        ("--dims 1,2,3 freezes them.", "dims=(1, 2, 3) freezes them."),
        ("off with --strip-prefix net.", "off with strip_prefix='net'."),
        ("give --input-shape", "give input_shapes"),
        ("--timeout allows more", "timeout allows more"),
        ("a well-known file -- or not", "a well-known file -- or not"),
    ],
)
def test_options_become_arguments(options: str, arguments: str) -> None:
    assert as_arguments(options) == arguments


def test_an_error_says_both() -> None:
    error = UsageError("exists already", where=("a.pt",), advice="Pass --force to replace it.")

    assert error.shown == "a.pt: exists already. Pass --force to replace it."
    assert str(error) == "a.pt: exists already. Pass force=True to replace it."
