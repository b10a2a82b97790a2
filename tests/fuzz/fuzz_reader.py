"""Coverage-guided fuzzing of everything that reads a file: only documented errors may come out.

Needs atheris (``pip install atheris``), which is no dependency of the tests::

    python -m tests.fuzz.make_corpus corpus          # small files of every kind, as seeds
    python -m tests.fuzz.fuzz_reader corpus -max_len=16384 -max_total_time=1200

A crash leaves its input as ``crash-…``; give that file as the only argument to run it again.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["frozenbn_cli", "pickletools"]):
    from frozenbn_cli.checkpoints import open_checkpoint, strided
    from frozenbn_cli.containers import fingerprint, source, zip_archive
    from frozenbn_cli.errors import FrozenBNError
    from frozenbn_cli.inspection import inspect_file

# Otherwise the checksums of ZIP records would stop nearly every input at the door.
zip_archive.check_crc32 = fingerprint.check_crc32 = lambda *_: None
# Small files take the ways of large ones too.
source.CHUNK_BYTES = strided.CHUNK_BYTES = source._SMALL_BYTES = 256
strided._WINDOW_BYTES = 1024

_IN_MEMORY = Path("/dev/shm")
_FOLDER = Path(tempfile.mkdtemp(dir=_IN_MEMORY if _IN_MEMORY.is_dir() else None))
_FILE = _FOLDER / "model"
# What an index may list: shards with one entry each, of the names in the seeds.
for _name, _entry in (("a", "bn.running_mean"), ("b", "bn.running_var"), ("c", "conv.weight")):
    _header = f'{{"{_entry}":{{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}}}'.encode()
    _content = len(_header).to_bytes(8, "little") + _header + bytes(8)
    (_FOLDER / f"{_name}.safetensors").write_bytes(_content)


def test_one_input(content: bytes) -> None:
    """Inspect ``content`` as a file, and read every tensor in it."""
    descriptor = os.open(_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(descriptor, content)
    os.close(descriptor)
    try:
        inspect_file(_FILE)
        with open_checkpoint(_FILE) as checkpoint:
            checkpoint.fingerprint()
            for part in checkpoint.state_dicts:
                for tensor in part.entries.values():
                    if tensor.size_bytes < 1 << 20:
                        tensor.read()
    except FrozenBNError as error:
        if error.exit_code not in (2, 3) or not str(error):
            raise


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
