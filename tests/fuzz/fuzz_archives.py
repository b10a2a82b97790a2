"""Coverage-guided fuzzing of TorchScript archives, record by record: code, objects and constants.

As `fuzz_reader`, but an input is the records of an archive (name, line break, content), joined by
`SEPARATOR`, so that a change to one of them leaves a sound archive around it::

    python -m tests.fuzz.make_corpus --archives corpus
    python -m tests.fuzz.fuzz_archives corpus -max_len=32768 -max_total_time=1200
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["frozenbn_cli"]):
    from frozenbn_cli.checkpoints import open_checkpoint
    from frozenbn_cli.conversion.convert import ConvertOptions, convert_file
    from frozenbn_cli.errors import FrozenBNError
    from frozenbn_cli.inspection import inspect_file
    from frozenbn_cli.torchscript.operators import unsafe_operators

from tests.fuzz.records import SEPARATOR

_IN_MEMORY = Path("/dev/shm")
_FILE = Path(tempfile.mkdtemp(dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None)) / "model.pt"


def test_one_input(content: bytes) -> None:
    """Look at an archive, search its code, and rewrite it."""
    with zipfile.ZipFile(_FILE, "w") as archive:
        for name, record in _records(content).items():
            archive.writestr(name, record)
    for work in (inspect_file, _search, _rewrite):
        try:
            work(_FILE)
        except FrozenBNError as error:  # noqa: PERF203  # Each has to be tried.
            if error.exit_code not in (1, 2, 3) or not str(error):
                raise


def _records(content: bytes) -> dict[str, bytes]:
    records = {}
    for part in content.split(SEPARATOR):
        name, _, record = part.partition(b"\n")
        if name.partition(b"\0")[0]:  # ZipFile cuts names there.
            records[name.decode("latin-1")] = record
    return records


def _search(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        if checkpoint.script:
            unsafe_operators(checkpoint.script)


def _rewrite(path: Path) -> None:
    how = ConvertOptions(verify=False, force=True, force_unhealthy=True)
    convert_file(path, path.with_name("out.pt"), options=how)


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
