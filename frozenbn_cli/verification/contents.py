"""The first claim: every entry that was not to change is bit-identical."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from frozenbn_cli.checkpoints import StoredTensor
from frozenbn_cli.stages import import_torch_for
from frozenbn_cli.verification.claims import Claim, Difference, summary, tolerated_text
from frozenbn_cli.verification.tolerance import EXACT, Tolerance
from frozenbn_cli.verification.written import WrittenFile, as_tensor
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
    if written.holds(name, source):
        return None
    measuring = import_torch_for("frozenbn_cli.verification.differences")
    found: Difference | None = measuring.compare(
        name, as_tensor(source), written.tensor(name), tolerance=tolerance
    )
    return found
