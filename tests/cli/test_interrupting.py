"""Ctrl-C at any moment, imports included, is exit code 130 and one line."""

import sys

import pytest

from tests.builders.processes import HANG_SECONDS, running

# Interrupts itself when a module is looked for, as a user may in the midst of an import.
INTERRUPTED = """
import os, signal, sys

WANTED = sys.argv.pop(1)

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == WANTED:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from frozenbn_cli.cli import main
main()
"""


def ended(code: str, *arguments: str) -> tuple[int, str, str]:
    """Return the exit code of a script, and what it printed on both streams."""
    with running([sys.executable, "-c", code, *arguments]) as process:
        out, err = process.communicate(timeout=HANG_SECONDS)
    return process.returncode, out, err


@pytest.mark.parametrize(
    "module",
    ["frozenbn_cli.cli.app", "typer", "rich.console", "frozenbn_cli.conversion.convert"],
)
def test_an_interrupted_import_is_no_traceback(module: str) -> None:
    assert ended(INTERRUPTED, module, "convert", "none.pth") == (
        130,
        "",
        "frozenbn: interrupted; nothing unfinished was left behind\n",
    )


# What an import makes of an interruption: some libraries turn it into an error of their own.
TURNED = """
import os, signal, sys
from frozenbn_cli import cli
from frozenbn_cli.conversion import convert as conversion

def convert_file(*_, **__):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise ImportError("numpy failed") from None

conversion.convert_file = convert_file
sys.argv[1:] = ["convert", "none.pth"]
cli.main()
"""


def test_an_interruption_that_became_another_error_is_one_still() -> None:
    code, _, err = ended(TURNED)

    assert code == 130
    assert err.endswith("frozenbn: interrupted; nothing unfinished was left behind\n")
