"""Changes values in the pickles of sound files: only documented errors may come out.

Reaches what bytes changed at random seldom do: objects of another type, without state, shared or in
each other's place. Needs no other package, and goes on until the time is over::

    python -m tests.fuzz.mutate_values SECONDS [SEED]

A failure shows the seed of the file; `SECONDS` 0 and that seed run it alone.
"""

from __future__ import annotations

import io
import random
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.conversion.convert import ConvertOptions, convert_file
from frozenbn_cli.errors import FrozenBNError
from frozenbn_cli.inspection import inspect_file
from frozenbn_cli.pickles.reader import read_pickle
from frozenbn_cli.pickles.values import Call, Global, PersistentId, Value
from frozenbn_cli.pickles.writer import write_pickle
from frozenbn_cli.torchscript.operators import unsafe_operators
from tests.fuzz.make_corpus import write_corpus, write_scripts

_FIXED: tuple[Callable[[], Value], ...] = (
    lambda: None,
    lambda: True,
    lambda: -1,
    lambda: 0,
    lambda: 2,
    lambda: 1 << 40,
    lambda: 1 << 63,
    lambda: float("nan"),
    lambda: "",
    lambda: "foo",
    lambda: "0",
    lambda: (),
    list,
    dict,
    lambda: (2,),
    lambda: (-1, 1 << 62),
    lambda: [1, 2],
    lambda: {"a": 1},
    lambda: Global("torch", "FloatStorage"),
    lambda: Global("os", "system"),
    lambda: Call(Global("torch", "Size"), ("foo",)),
    lambda: Call(Global("_codecs", "encode"), ("x", "no such codec")),
    lambda: Call(Global("collections", "OrderedDict"), ()),
    lambda: Call(Global("numpy", "dtype"), ("f4", False, True)),
    lambda: Call(Global("torch._utils", "_rebuild_tensor_v2"), ()),
    lambda: Call(Global("torch._utils", "_rebuild_parameter"), (1, 2, 3)),
    lambda: PersistentId(("storage", Global("torch", "FloatStorage"))),
    lambda: PersistentId(("storage", Global("torch", "FloatStorage"), "0", "cpu", 1 << 40)),
    lambda: PersistentId("0"),
)


class _Places:
    """Where values stand in a value: each can be read and replaced."""

    def __init__(self, root: Value) -> None:
        self.root = [root]
        self.found: list[tuple[Callable[[], Value], Callable[[Value], None]]] = []
        self._seen: set[int] = set()
        self._in(self.root)

    def _in(self, value: Value) -> None:
        if id(value) in self._seen:
            return
        self._seen.add(id(value))
        if isinstance(value, list):
            for index in range(len(value)):
                self._note(value, index)
        elif isinstance(value, dict):
            for key in value:
                self._note(value, key)
        elif isinstance(value, PersistentId):
            self._attribute(value, "value")
        elif isinstance(value, Call):
            for name in ("arguments", "state"):
                self._attribute(value, name)
            self._in(value.appended)
            for place in range(len(value.items)):
                self._item(value.items, place)
        if isinstance(value, tuple):
            for part in value:
                self._in(part)

    def _note(self, holder: Any, key: Any) -> None:
        self.found.append((lambda: holder[key], lambda new: holder.__setitem__(key, new)))
        self._in(holder[key])

    def _attribute(self, holder: Any, name: str) -> None:
        self.found.append((lambda: getattr(holder, name), lambda new: setattr(holder, name, new)))
        self._in(getattr(holder, name))

    def _item(self, items: list[tuple[Value, Value]], place: int) -> None:
        key, value = items[place]
        self.found.append(
            (lambda: items[place][1], lambda new: items.__setitem__(place, (key, new)))
        )
        self._in(value)


def _mutated(value: Value, chance: random.Random) -> Value:
    places = _Places(value)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        read, write = chance.choice(places.found)
        how = chance.random()
        old = read()
        if how < 0.3 and isinstance(old, tuple) and old:
            parts = list(old)
            place = chance.randrange(len(parts))
            if how < 0.1:
                del parts[place]
            else:
                parts[place] = _any(places, chance)
            write(tuple(parts))
        elif how < 0.4 and isinstance(old, Call):
            old.has_state = not old.has_state
        elif how < 0.5 and isinstance(old, dict) and old:
            old.pop(chance.choice(list(old)))
        else:
            write(_any(places, chance))
    return places.root[0]


def _any(places: _Places, chance: random.Random) -> Value:
    if chance.random() < 0.3:
        return chance.choice(places.found)[0]()
    return chance.choice(_FIXED)()


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Return a file with some values in its pickle changed."""
    if not content.startswith(b"PK"):
        return write_pickle(_mutated(read_pickle(io.BytesIO(content)).value, chance))
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w") as new:
        pickles = [name for name in old.namelist() if name.endswith((".pkl", ".PKL"))]
        changed = chance.choice(pickles)
        is_script = any(name.endswith("constants.pkl") for name in pickles)
        for name in old.namelist():
            record = old.read(name)
            if name == changed:
                pickle = read_pickle(io.BytesIO(record), from_torchscript=is_script)
                value = _mutated(pickle.value, chance)
                record = write_pickle(value, for_torchscript=is_script)
            new.writestr(name, record)
    return written.getvalue()


def check(path: Path) -> None:
    """Do with a file what a user may do without running a model."""
    for work in (inspect_file, _read, _convert):
        try:
            work(path)
        except FrozenBNError as error:  # noqa: PERF203  # Each has to be tried.
            if error.exit_code not in (1, 2, 3) or not str(error):
                raise


def _read(path: Path) -> None:
    with open_checkpoint(path) as checkpoint:
        checkpoint.fingerprint()
        if checkpoint.script:
            unsafe_operators(checkpoint.script)
        for part in checkpoint.state_dicts:
            for tensor in part.entries.values():
                if tensor.size_bytes < 1 << 20:
                    tensor.read()


def _convert(path: Path) -> None:
    how = ConvertOptions(verify=False, force=True, force_unhealthy=True)
    convert_file(path, path.with_name("out"), options=how)


def main(seconds: float, first: int) -> int:
    """Try files until the time is over; return how many were not refused as they should be."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    write_corpus(folder / "corpus")
    write_scripts(folder / "corpus")
    seeds = [
        path.read_bytes()
        for path in sorted((folder / "corpus").iterdir())
        if path.suffix in (".pt", ".pkl")
    ]
    end, seed, failures = time.monotonic() + seconds, first, {}
    while True:
        chance = random.Random(seed)
        with suppress(
            FrozenBNError, TypeError, AttributeError, LookupError
        ):  # What cannot be written.
            (folder / "model").write_bytes(mutated(chance.choice(seeds), chance))
            try:
                check(folder / "model")
            except Exception as error:  # Each is a defect.
                last = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{type(error).__name__} in {last.filename}:{last.lineno}"
                if place not in failures:
                    sys.stderr.write(f"seed {seed}: {place}: {error}\n")
                failures[place] = failures.get(place, 0) + 1
        seed += 1
        if time.monotonic() > end:
            break
    sys.stdout.write(f"{seed - first:,} files, {len(failures)} defects: {failures}\n")
    return len(failures)


if __name__ == "__main__":
    sys.exit(bool(main(float(sys.argv[1]), int(sys.argv[2]) if sys.argv[2:] else 0)))
