"""What every format that is written has in common, and how results are named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from frozenbn_cli.batch_norms.record import ConversionRecord

__all__ = ["Output", "OutputFormat", "default_output"]

OutputFormat = Literal["safetensors", "torch", "torchscript"]

_OUTPUT_SUFFIXES: dict[OutputFormat, str] = {
    "safetensors": ".safetensors",
    "torch": ".pt",
    "torchscript": ".pt",
}
_INPUT_SUFFIXES = {
    ".pt", ".pth", ".bin", ".ckpt", ".tar", ".pkl", ".model", ".safetensors", ".weights", ".index",
    ".json",
}  # fmt: skip


def default_output(path: Path, to: OutputFormat = "safetensors") -> Path:
    """Return where the result of converting ``path`` goes if the user does not say."""
    path = path.resolve() if path.name in ("", "..") else path
    name = path.name
    while (suffix := Path(name).suffix) in _INPUT_SUFFIXES:
        name = name.removesuffix(suffix)
    return path.parent / f"{name}.frozen{_OUTPUT_SUFFIXES[to]}"


class Output(Protocol):
    """A file in one format, being written.

    Records that are copied whole keep the checksum that the input states. So the input's checksums
    have to be checked (`Checkpoint.fingerprint`) before the output may be used.
    """

    def write_tensors(self, count: Callable[[int], None]) -> None:
        """Write every tensor; ``count`` is told the bytes of each piece."""

    def finish(self, record: ConversionRecord) -> None:
        """Write the record; may be called again, with one that is not longer than the first."""
