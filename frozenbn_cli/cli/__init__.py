"""The command line: parse, call the library, show, return the exit code.

What a command does is a module of its own, imported when it runs, so that `--help` waits for none.
The parser too is imported only when signals are watched.
"""

try:
    import gc
    import sys
    from collections.abc import Callable
    from importlib import import_module
    from typing import Any, NoReturn

    from frozenbn_cli.cli.interrupting import end_interrupted, watch_signals
    from frozenbn_cli.cli.looking_ahead import looking_ahead
except KeyboardInterrupt:
    raise SystemExit(130) from None

__all__ = ["main", "run"]

_COLLECTED_AFTER = 50_000  # New objects: a file's are many, and hardly any are garbage in a cycle.
_SWITCH_SECONDS = 0.0001  # What hashes a file takes its turn while another thread computes.


def main() -> NoReturn:
    """Run the command line and end the process with its code, whatever else it was to do."""
    try:
        watch_signals()
        gc.set_threshold(_COLLECTED_AFTER)
        sys.setswitchinterval(_SWITCH_SECONDS)
        with looking_ahead(sys.argv[1:]):
            app = import_module("frozenbn_cli.cli.app")
            app.make_streams_usable()
            code = app.run(sys.argv[1:])
    except KeyboardInterrupt:
        code = end_interrupted()
    leave: Callable[[int], NoReturn] = import_module("frozenbn_cli.cli.leaving").leave
    leave(code)


def run(arguments: list[str], **options: Any) -> int:
    """Run the command line with ``arguments`` and return the exit code, see `app.run`."""
    code: int = import_module("frozenbn_cli.cli.app").run(arguments, **options)
    return code
