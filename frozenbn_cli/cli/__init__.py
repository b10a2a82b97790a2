"""The command line: parse, call the library, show, return the exit code.

What a command does is a module of its own, imported when it runs, so that `--help` waits for none.
"""

from frozenbn_cli.cli.app import main, run

__all__ = ["main", "run"]
