"""Ctrl-C at any moment, imports included, is exit code 130 and one line."""

import subprocess
import sys

import pytest

# Interrupts itself when a module is looked for, as a user may in the midst of an import.
INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # A background job ignores it.

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


@pytest.mark.parametrize(
    "module",
    ["frozenbn_cli.cli.app", "typer", "rich.console", "frozenbn_cli.conversion.convert"],
)
def test_an_interrupted_import_is_no_traceback(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module, "convert", "none.pth"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "frozenbn: interrupted; nothing unfinished was left behind\n"


# What an import makes of an interruption: some libraries turn it into an error of their own.
TURNED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # A background job ignores it.
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
    done = subprocess.run(
        [sys.executable, "-c", TURNED], capture_output=True, text=True, check=False
    )

    assert done.returncode == 130
    assert done.stderr.endswith("frozenbn: interrupted; nothing unfinished was left behind\n")
