"""Checks the claims about a written file against its source. Imports torch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from operator import ne
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from frozenbn_cli.batch_norm import BatchNorm, Eps, find_batch_norms
from frozenbn_cli.checkpoints import StoredTensor, open_checkpoint
from frozenbn_cli.checkpoints.torchscript import record_path
from frozenbn_cli.claims import Claim
from frozenbn_cli.containers.source import ByteSource, Extent, chunks
from frozenbn_cli.containers.zip_archive import ZipArchive
from frozenbn_cli.errors import VerificationError
from frozenbn_cli.metadata import ConversionRecord
from frozenbn_cli.nn import FrozenBatchNorm2d
from frozenbn_cli.outputs import OutputFormat
from frozenbn_cli.running import same_bits
from frozenbn_cli.torchscript.rewriting import Rewriting
from frozenbn_cli.torchscript.script_archive import ScriptArchive

__all__ = [
    "WrittenFile",
    "open_written",
    "verify_contents",
    "verify_layers",
    "verify_records",
]

Progress = Callable[[int], None]


class WrittenFile(Protocol):
    """An output, opened anew with the library that its format belongs to."""

    def names(self) -> set[str]:
        """Return the names of the entries."""

    def stated_eps(self) -> Mapping[str, Eps]:
        """Return the eps that the file states for each frozen layer."""

    def tensor(self, name: str) -> Tensor:
        """Return an entry, as the library reads it."""


def open_written(path: Path, output_format: OutputFormat) -> WrittenFile:
    """Open an output with the library that its format belongs to.

    Raises:
        VerificationError: The library that is installed cannot read it.
    """
    try:
        return _FILES[output_format](path)
    except (SafetensorError, UnpicklingError) as error:
        raise VerificationError(
            f"the output cannot be read back ({str(error).splitlines()[0]})",
            advice=f"A newer {output_format} may know its dtypes; nothing was written.",
        ) from error


class _SafetensorsFile:
    def __init__(self, path: Path) -> None:
        self._file: Any = safe_open(path, framework="pt")

    def names(self) -> set[str]:
        return set(self._file.keys())

    def stated_eps(self) -> Mapping[str, Eps]:
        return _stated_eps(self._file.metadata() or {})

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


class _TorchFile:
    def __init__(self, path: Path) -> None:
        self._entries = torch.load(path, weights_only=True, mmap=True, map_location="cpu")
        with open_checkpoint(path, keep_prefix=True) as checkpoint:
            self._metadata = checkpoint.metadata

    def names(self) -> set[str]:
        return set(self._entries)

    def stated_eps(self) -> Mapping[str, Eps]:
        return _stated_eps(self._metadata)

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._entries[name]
        return tensor


class _ScriptFile:
    """Read as text and inert values, since loading an archive can run its code."""

    def __init__(self, path: Path) -> None:
        checkpoint = open_checkpoint(path)
        weakref.finalize(self, checkpoint.close)
        part = checkpoint.state_dict()
        self._eps = {layer.name: layer.eps for layer in find_batch_norms(part)}
        self._entries = part.entries

    def names(self) -> set[str]:
        return set(self._entries)

    def stated_eps(self) -> Mapping[str, Eps]:
        return self._eps

    def tensor(self, name: str) -> Tensor:
        return _tensor(self._entries[name])


_FILES: Mapping[OutputFormat, Callable[[Path], WrittenFile]] = {
    "safetensors": _SafetensorsFile,
    "torch": _TorchFile,
    "torchscript": _ScriptFile,
}


def _stated_eps(metadata: Mapping[str, str]) -> Mapping[str, Eps]:
    record = ConversionRecord.from_metadata(metadata)
    return record.layers if record else {}


def verify_contents(
    written: WrittenFile, expected: Mapping[str, StoredTensor], progress: Progress
) -> Claim:
    """Compare every entry of the written file with the source, bit by bit.

    Args:
        written: The file, opened anew.
        expected: What it must hold, by name; no more and no less.
        progress: Is told the bytes of each entry that was compared.
    """
    names = written.names()
    for name in [*expected, *names]:
        if (name in expected) != (name in names):
            where = "missing" if name in expected else "added"
            return Claim("contents", "different", f"{name} is {where}", len(expected))
    for count, (name, source) in enumerate(expected.items()):
        if difference := _difference(written.tensor(name), source):
            return Claim("contents", "different", f"{name}: {difference}", count)
        progress(source.size_bytes)
    total = sum(tensor.size_bytes for tensor in expected.values())
    detail = f"{len(expected):,} entries, {total:,} bytes"
    return Claim("contents", "equal", detail, len(expected))


def verify_records(written: Path, script: ScriptArchive, rewriting: Rewriting) -> str | None:
    """Return which record of an archive is not what it was, or should have become, or None."""
    original, replaced = script.archive, rewriting.replaced
    expected = original.records.keys() - rewriting.dropped | replaced.keys()
    source = ByteSource(written)
    try:
        archive = ZipArchive(source)
        for name in expected ^ (archive.records.keys() - {record_path(script.root)}):
            return f"record {name} is {'missing' if name in expected else 'one too many'}"
        for name in expected:
            found = archive.extent(name)
            if name in replaced:
                is_same = found.read(0, found.size_bytes) == replaced[name]
            else:
                is_same = _same_bytes(found, original.extent(name))
            if not is_same:
                return f"record {name} differs"
    finally:
        source.close()
    return None


def _same_bytes(first: Extent, second: Extent) -> bool:
    return first.size_bytes == second.size_bytes and not any(map(ne, chunks(first), chunks(second)))


def _difference(tensor: Tensor, source: StoredTensor) -> str | None:
    if str(tensor.dtype) != f"torch.{source.dtype.name}":
        return f"expected dtype {source.dtype}, found {tensor.dtype}"
    if tuple(tensor.shape) != source.shape:
        return f"expected shape {list(source.shape)}, found {list(tensor.shape)}"
    position = 0
    found = tensor.reshape(-1).view(torch.uint8)
    for chunk in source.chunks():
        part = found[position : position + len(chunk)]
        if not torch.equal(part, torch.frombuffer(bytearray(chunk), dtype=torch.uint8)):
            return f"differs within bytes {position:,} to {position + len(chunk):,}"
        position += len(chunk)
    return None


def verify_layers(
    written: WrittenFile, layers: Mapping[str, BatchNorm], progress: Progress
) -> Claim:
    """Compare each frozen layer with its BatchNorm2d in eval, bit by bit, on a probe input.

    The probe lies around the layer's running statistics and beyond, in both memory formats, with
    gradients and without, with the frozen layer in eval and in training mode.

    Args:
        written: The file, opened anew.
        layers: The source layers, by their names in the file.
        progress: Is called for each layer that was compared.
    """
    stated = written.stated_eps()
    unrunnable = ""
    for count, (name, source) in enumerate(layers.items()):
        shown = name or "the layer"
        if name not in stated:
            return Claim("layers", "different", f"{shown}: the file does not state its eps", count)
        try:
            difference = _layer_difference(written, name, source, stated[name])
        except RuntimeError as error:
            # PyTorch has no kernel for this dtype on this machine.
            unrunnable = unrunnable or f"{shown} cannot be run here: {str(error).splitlines()[0]}"
            continue
        if difference:
            return Claim("layers", "different", f"{shown}: {difference}", count)
        progress(1)
    if unrunnable:
        return Claim("layers", "not verified", unrunnable)
    if not layers:
        return Claim("layers", "not verified", "no layer was frozen")
    detail = f"{len(layers):,} layers against BatchNorm2d in eval, with gradients and without"
    return Claim("layers", "equal", detail, len(layers))


def _layer_difference(written: WrittenFile, name: str, source: BatchNorm, eps: Eps) -> str | None:
    tensors = {role: _tensor(stored) for role, stored in source.tensors.items()}
    original = nn.BatchNorm2d(
        source.channels, eps=source.eps.value, affine="weight" in tensors
    ).eval()
    frozen = FrozenBatchNorm2d(source.channels, eps=eps.value, affine="weight" in tensors)
    for role, tensor in tensors.items():
        if role == "num_batches_tracked":
            continue
        is_affine = role in ("weight", "bias")
        setattr(original, role, nn.Parameter(tensor) if is_affine else tensor)
        entry = f"{name}.{role}" if name else role
        setattr(frozen, role, written.tensor(entry))
    for probe, training in _probes(original):
        frozen.train(training)
        expected, found = original(probe).detach(), frozen(probe)
        if not same_bits(expected, found):
            gap = (expected.double() - found.detach().double()).abs().nan_to_num().max().item()
            return f"outputs differ by up to {gap:.3g} on a probe of shape {list(probe.shape)}"
    return None


def _probes(layer: Any) -> Iterator[tuple[Tensor, bool]]:
    """Yield inputs of shape (4, C, 4, 4) that cover a layer's statistics, and a training flag."""
    generator = torch.Generator().manual_seed(0)
    mean = layer.running_mean.double().view(1, -1, 1, 1)
    deviation = layer.running_var.double().clamp(min=0).sqrt().view(1, -1, 1, 1)
    noise = torch.randn(4, mean.numel(), 4, 4, generator=generator, dtype=torch.float64)
    # One image each: near the mean, far out, exactly at it, and without regard to it.
    spread = torch.tensor([1.0, 30.0, 0.0, 1.0], dtype=torch.float64).view(4, 1, 1, 1)
    probe = mean + deviation * noise * spread
    probe[3] = noise[3]
    probe = probe.to(layer.running_mean.dtype)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        formatted = probe.contiguous(memory_format=memory_format)
        yield formatted, False
        yield formatted.clone().requires_grad_(), True


def _tensor(stored: StoredTensor) -> Tensor:
    dtype = getattr(torch, stored.dtype.name)
    if not stored.elements:
        return torch.empty(stored.shape, dtype=dtype)
    return torch.frombuffer(bytearray(stored.read()), dtype=dtype).reshape(stored.shape)
