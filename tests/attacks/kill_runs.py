"""Kills commands at random times, and counts what they leave under a final name that is not whole.

Not among the tests, since it takes minutes::

    python -m tests.attacks.kill_runs [KILLS] [SEED]

Ends with 1 if an output is partial, changed, or there beside a wrong one.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.errors import FrozenBNError

_LAYERS, _CHANNELS = 20, 96
_FROZENBN = (sys.executable, "-m", "frozenbn_cli")


def _write_inputs(folder: Path) -> None:
    folder.mkdir()
    layers = [
        part
        for _ in range(_LAYERS)
        for part in (nn.Conv2d(_CHANNELS, _CHANNELS, 3), nn.BatchNorm2d(_CHANNELS))
    ]
    model = nn.Sequential(*layers).eval()
    for layer in model[1::2]:
        layer.running_mean.normal_()
        layer.num_batches_tracked.fill_(1000)
    for name in ("a", "b", "c"):
        torch.save(model.state_dict(), folder / f"{name}.pth")
    torch.jit.script(model).save(folder / "script.pt")


def _commands(inputs: Path, outputs: Path) -> list[tuple[str, ...]]:
    convert = (*_FROZENBN, "convert")
    to = ("--output-dir", str(outputs), "--force")
    return [
        (*convert, str(inputs / "a.pth"), *to),
        (*convert, str(inputs / "a.pth"), "--to", "torch", *to),
        (*convert, str(inputs / "script.pt"), "--input-shape", "1x96x64x64", *to),
        (*convert, *(str(inputs / f"{name}.pth") for name in "abc"), "--jobs", "2", *to),
        (*_FROZENBN, "verify", str(inputs / "a.pth"), str(inputs / "done.safetensors")),
    ]


def _is_whole(path: Path) -> bool:
    """Return whether a file is complete, with the record that is written last."""
    try:
        with open_checkpoint(path, keep_prefix=True) as checkpoint:
            checkpoint.fingerprint()
            record = ConversionRecord.from_metadata(checkpoint.metadata)
            for entry in checkpoint.entries.values():
                entry.read()
            return record is not None and record.source["sha256"] != "0" * 64
    except FrozenBNError:
        return False


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def main(kills: int, seed: int) -> int:
    """Kill as many runs; return how many left something wrong."""
    chance = random.Random(seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        inputs, outputs = Path(name, "in"), Path(name, "out")
        _write_inputs(inputs)
        done = ("convert", str(inputs / "a.pth"), "-o", str(inputs / "done.safetensors"), "-q")
        subprocess.run((*_FROZENBN, *done), check=True)
        before = _hashes(inputs)
        commands = _commands(inputs, outputs)
        seconds = {command: _seconds(command) for command in commands}
        while counts["killed"] < kills:
            command = commands[counts["runs"] % len(commands)]
            counts["runs"] += 1
            started = time.monotonic()
            if _killed(command, chance.uniform(0, seconds[command])):
                counts["killed"] += 1
            else:  # The machine is less busy than before.
                seconds[command] = min(time.monotonic() - started, seconds[command])
            for path in outputs.iterdir() if outputs.exists() else ():
                if path.name.startswith("."):
                    counts["temporary files left"] += 1
                elif not _is_whole(path) and path.exists():
                    counts["partial outputs"] += 1
                path.unlink(missing_ok=True)  # A worker that lives on tidies up.
        counts["inputs changed"] = int(_hashes(inputs) != before)
    wrong = counts["partial outputs"] + counts["inputs changed"]
    sys.stdout.write(f"{dict(counts)}; partial outputs: {counts['partial outputs']}\n")
    return wrong


def _seconds(command: tuple[str, ...]) -> float:
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - started


def _killed(command: tuple[str, ...], seconds: float) -> bool:
    """Run a command, and kill it with all that it started; return whether it still ran."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True
    return False


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    sys.exit(bool(main(*(given + [60, 0][len(given) :]))))
