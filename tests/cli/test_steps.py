"""What a terminal shows while a command is at work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from frozenbn_cli.conversion.convert import ConvertOptions, convert_file
from tests.builders.files import save, small_state

pty = pytest.importorskip("pty", reason="needs a pseudo-terminal")

IMPATIENT = (
    "import sys; from frozenbn_cli.reports import console; console._PATIENCE_SECONDS = 0; "
    "from frozenbn_cli import cli; sys.exit(cli.run(sys.argv[1:]))"
)


def shown_on_a_terminal(*arguments: object) -> str:
    """Return what a command whose steps are shown at once writes to its standard error."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", IMPATIENT, *map(str, arguments)]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:  # Linux says so where the other side is closed.
            pass
        os.close(ours)
    assert process.returncode == 0
    return shown.decode()


@pytest.mark.slow
def test_importing_torch_and_what_comes_after_it_is_named(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pt", small_state())
    output = convert_file(source, options=ConvertOptions(verify=False)).output_path

    shown = shown_on_a_terminal("verify", source, output, "--json")

    named = [shown.find(step) for step in ("comparing", "importing torch", "running the layers")]
    assert -1 not in named
    assert named == sorted(named)
    assert shown_on_a_terminal("verify", source, output, "--quiet") == ""
