"""Files with what scanners call dangerous: nothing of it may run, and each name has to be listed.

Names and hostile bytes come from the source of published scanners, which is read and not imported::

    pip download --no-deps -d packages fickling picklescan modelscan   # and unpack them into FOLDER
    python -m tests.attacks.scan_malicious FOLDER

Prints how many commands ran, what they executed and which names they missed; ends with 1 unless
both are nothing.
"""

from __future__ import annotations

import ast
import pickletools
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.conversion.convert import ConvertOptions, convert_file
from frozenbn_cli.errors import FrozenBNError
from frozenbn_cli.inspection import inspect_file
from frozenbn_cli.pickles.values import Call, Global, Value
from frozenbn_cli.pickles.writer import write_pickle
from tests.conftest import archive_records, legacy_bytes, tensor_call, zip_bytes

_LISTS = {"_unsafe_globals", "unsafe_globals", "UNSAFE_IMPORTS", "UNSAFE_MODULES"}
# What none of the commands may cause, as Python's audit events name it.
_FORBIDDEN = (
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile",
    "subprocess.Popen", "socket.connect", "socket.bind", "pickle.find_class", "ctypes.dlopen",
    "shutil.rmtree", "urllib.Request", "webbrowser.open", "pty.spawn", "code.__new__",
)  # fmt: skip


# Scanners list it for what it may be given, which has a name of its own; it calls nothing itself.
_HARMLESS = {("functools", "partial")}


def names_in(folder: Path) -> set[tuple[str, str]]:
    """Return the modules and functions that scanners list."""
    found: set[tuple[str, str]] = set()
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_bytes())):
            for name, value in _assigned(node):
                if name in _LISTS:
                    found |= set(_names(value))
    return found


def _assigned(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """Yield what a variable, or a key of a dict, is set to."""
    if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from ((one.id, node.value) for one in targets if isinstance(one, ast.Name))
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value, value


def _names(node: ast.expr) -> Iterator[tuple[str, str]]:
    if not isinstance(node, ast.Dict):
        for part in ast.walk(node):
            if isinstance(part, ast.Constant) and isinstance(part.value, str):
                yield part.value, "anything"
        return
    for key, value in zip(node.keys, node.values, strict=True):
        if not isinstance(key, ast.Constant) or not isinstance(key.value, str):
            continue
        inner = [part.value for part in ast.walk(value) if isinstance(part, ast.Constant)]
        words = [word for word in inner if isinstance(word, str) and word.isidentifier()]
        if isinstance(value, ast.Dict):  # By severity, then by module.
            yield from _names(value)
        for word in words or ["anything"]:
            yield key.value, word


def bytes_in(folder: Path) -> set[bytes]:
    """Return the hostile bytes in the tests of scanners."""
    return {
        node.value
        for path in sorted(folder.rglob("test*.py"))
        for node in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(node, ast.Constant) and isinstance(node.value, bytes) and len(node.value) > 4
    }


def _files(name: Global) -> Iterator[bytes]:
    """Yield files with an entry, and something hostile beside it, in every container."""
    called = Call(name, ("id",))
    hostile: Mapping[str, Value] = {
        "called": called,
        "made": Call(name, ("id",), is_new=True),
        "named": name,
        "deep": {"a": [({"b": called},)]},
        "through": Call(Global("copyreg", "_reconstructor"), (name, name, None)),
    }
    for value in hostile.values():
        state = {"a": tensor_call(), "beside": value}
        yield zip_bytes(archive_records(state))
        yield legacy_bytes(state)
        yield legacy_bytes({"a": tensor_call()}, system={"little_endian": True, "x": value})
        yield write_pickle({"beside": value, "model": {"a": _array()}})
    dropped = write_pickle(called)[:-1] + b"0" + write_pickle({"model": {"a": _array()}})[2:]
    yield dropped


def _array() -> Call:
    dtype = Call(Global("numpy", "dtype"), ("f4", False, True), state=(3, "<"), has_state=True)
    made = Global("numpy.core.multiarray", "_reconstruct")
    state = (1, (1,), dtype, False, "abcd")
    return Call(made, (Global("numpy", "ndarray"), (0,), "b"), state=state, has_state=True)


class _Watch:
    """Notes forbidden events, while it is on."""

    def __init__(self) -> None:
        self.is_on = False
        self.seen: Counter[str] = Counter()
        sys.addaudithook(self._event)

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_on and event.startswith(_FORBIDDEN):
            self.seen[event] += 1


def _look(path: Path) -> set[str] | None:
    """Inspect and convert a file; return the names that were listed, or None if it is refused."""
    how = ConvertOptions(verify=False, force=True, force_unhealthy=True)
    listed: set[str] | None = None
    try:
        inspect_file(path)
        with open_checkpoint(path) as checkpoint:
            listed = set(checkpoint.foreign_names)
        convert_file(path, path.with_name("out.safetensors"), options=how)
    except FrozenBNError as error:
        if error.exit_code not in (1, 2, 3):
            raise
    return listed


def _imported(content: bytes) -> set[str]:
    """Return the names that a pickle's GLOBAL opcodes hold, by the standard library."""
    names = set()
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "GLOBAL":
                names.add(str(argument).replace(" ", ".", 1))
    except ValueError:
        return set()
    return names


def main(folder: Path) -> int:
    """Look at all files, and return how many names were missed and things executed."""
    watch, files, refused, missed = _Watch(), 0, 0, []
    names = sorted(names_in(folder) - _HARMLESS)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "model.pt")
        cases = [
            (content, {f"{module}.{function}"})
            for module, function in names
            for content in _files(Global(module, function))
        ]
        cases += [(content, _imported(content)) for content in sorted(bytes_in(folder))]
        for content, expected in cases:
            path.write_bytes(content)
            watch.is_on = True
            listed = _look(path)
            watch.is_on = False
            files += 1
            refused += listed is None
            if listed is not None and not expected <= listed:
                missed.append(expected - listed)
    sys.stdout.write(
        f"{len(names):,} names, {files:,} files, {3 * files:,} commands; {refused:,} refused; "
        f"executed: {dict(watch.seen) or 'nothing'}; names missed: {missed[:20] or 0}\n"
    )
    return len(missed) + sum(watch.seen.values())


if __name__ == "__main__":
    sys.exit(bool(main(Path(sys.argv[1]))))
