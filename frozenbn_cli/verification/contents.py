"""The first claim: every entry that was not to change is bit-identical. Imports torch."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Collection, Mapping

from torch import Tensor

from frozenbn_cli.checkpoints import StoredTensor
from frozenbn_cli.live_models.stored_values import to_tensor
from frozenbn_cli.verification.claims import Claim, Difference
from frozenbn_cli.verification.differences import EXACT, Tolerance, compare, summary, tolerated_text
from frozenbn_cli.verification.written import WINDOW_BYTES, WrittenFile
from frozenbn_cli.wording import counted, listed

__all__ = ["Progress", "verify_contents"]

Progress = Callable[[int], None]


def verify_contents(
    written: WrittenFile,
    expected: Mapping[str, StoredTensor],
    progress: Progress,
    *,
    tolerance: Tolerance = EXACT,
    may_have: Collection[str] = (),
    rewritten: Collection[str] = (),
) -> Claim:
    """Compare every entry of the written file with the source, bit by bit.

    Args:
        written: The file, opened anew.
        expected: What it must hold, by name, in the order of the model; no more and no less.
        progress: Is told the bytes of each entry that was compared.
        tolerance: Of the values.
        may_have: Names of entries that it may hold beside these.
        rewritten: Names of entries that were to change, and that the claim on layers compares.
    """
    names = written.names()
    differences = []
    for name, source in expected.items():
        if name not in names:
            differences.append(Difference(name, "missing"))
        elif found := _difference(name, source, written, tolerance):
            differences.append(found)
        progress(source.size_bytes)
    added = names - expected.keys() - set(rewritten)
    differences += [Difference(name, "added") for name in sorted(added - set(may_have))]
    total = sum(tensor.size_bytes for tensor in expected.values())
    detail = f"{counted(len(expected), 'entry', 'entries')}, {counted(total, 'byte')}"
    if rewritten:
        detail += f"; {len(rewritten):,} running_var were rewritten, see layers"
    if kept := sorted(added & set(may_have)):
        detail += f"; beside them {listed(kept)}"
    if all(item.tolerated for item in differences):
        detail += tolerated_text(differences, tolerance, "entries")
        return Claim("contents", "equal", detail, len(expected), tuple(differences))
    said = summary(differences, len(names | expected.keys()), "entries")
    return Claim("contents", "different", said, len(expected), tuple(differences))


def _difference(
    name: str, source: StoredTensor, written: WrittenFile, tolerance: Tolerance
) -> Difference | None:
    found = written.tensor(name)
    is_alike = (
        str(found.dtype) == f"torch.{source.dtype.name}" and tuple(found.shape) == source.shape
    )
    if is_alike and _has_same_bytes(name, source, written, found):
        return None
    return compare(name, to_tensor(source), found, tolerance=tolerance)


def _has_same_bytes(name: str, source: StoredTensor, written: WrittenFile, found: Tensor) -> bool:
    """Compare piece by piece, and keep no more than a window in memory, however large it is."""
    is_mapped = written.is_mapped and found.is_contiguous()
    memory, position, window_end = _plain(found), 0, WINDOW_BYTES
    for chunk in source.chunks():
        if position >= window_end and is_mapped:
            memory, window_end = _plain(written.tensor(name)), position + WINDOW_BYTES
        # Several times as fast as `torch.equal`.
        if ctypes.string_at(memory.data_ptr() + position, len(chunk)) != chunk:
            return False
        position += len(chunk)
    return True


def _plain(tensor: Tensor) -> Tensor:
    """Return a tensor whose memory is its elements in row-major order."""
    return tensor.resolve_conj().resolve_neg().contiguous()
