"""The first claim on two files: what was not to change is there, and the same."""

from __future__ import annotations

from dataclasses import replace

from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.containers.rewriting import Rewriting
from frozenbn_cli.errors import UnsupportedFileError, located
from frozenbn_cli.outputs import own_format
from frozenbn_cli.outputs.rewritable import Rewritable, rewritable
from frozenbn_cli.stages import begin
from frozenbn_cli.verification.claims import Claim
from frozenbn_cli.verification.contents import verify_contents
from frozenbn_cli.verification.file_pair import FilePair
from frozenbn_cli.verification.freezing import COUNT, kept_entries
from frozenbn_cli.verification.records import other_record
from frozenbn_cli.version import __version__
from frozenbn_cli.wording import listed

__all__ = ["verify_file_contents"]


def verify_file_contents(pair: FilePair) -> Claim:
    """Compare all entries but those that freezing drops or rewrites.

    Of archives in one format, all else that they hold is compared too.
    """
    claim = _entries(pair)
    if claim.status == "different":
        return claim
    original = pair.original
    if unreadable := {**original.unsupported, **pair.converted.unsupported}:
        name, reason = next(iter(unreadable.items()))
        return Claim("contents", "not verified", f"{name} cannot be compared: {reason}")
    own = rewritable(pair.before, original)
    if own and own_format(pair.before) == own_format(pair.after):
        return _with_records(claim, own, pair)
    if original.left_out:
        said = f"{claim.detail}; not compared, since left out: {listed(original.left_out)}"
        return replace(claim, detail=said)
    return claim


def _entries(pair: FilePair) -> Claim:
    """Return the claim on the entries of the state dict alone."""
    frozen = pair.frozen
    kept = kept_entries(pair.original, pair.written, frozen)
    rewritten = {f"{name}.running_var".removeprefix(".") for name in pair.rewritten} & kept.keys()
    expected = {name: entry for name, entry in kept.items() if name not in rewritten}
    # TorchScript has no buffers that a state dict would leave out.
    may_have: set[str] = set()
    if pair.after.script and not pair.before.script:
        parameters = {name for name, _ in pair.after.script.parameters()}
        may_have = pair.written.names() - kept.keys() - parameters
        may_have -= {f"{name}.{COUNT}" for name in frozen}
    total = sum(tensor.size_bytes for tensor in expected.values())
    with located(str(pair.before.path)):
        return verify_contents(
            pair.written,
            expected,
            begin("comparing", total),
            tolerance=pair.tolerance,
            may_have=may_have,
            rewritten=rewritten,
        )


def _with_records(claim: Claim, own: Rewritable, pair: FilePair) -> Claim:
    """Return the claim on the contents of an archive, with its code or graph and constants."""
    what = "graph and constants" if pair.before.program else "code and constants"
    if not pair.tolerance.exact:
        return replace(claim, detail=f"{claim.detail}; {what} are not compared")
    found = _other_record(own, pair)
    if not found:
        return claim
    record = ConversionRecord.from_metadata(pair.after.metadata)
    is_ours = record is not None and record.version == __version__
    if is_ours and record and record.source.get("sha256") == pair.before.fingerprint():
        return Claim("contents", "different", found)
    reason = f"{what} cannot be compared, since frozenbn did not make it of this one"
    return replace(claim, status="not verified", detail=f"{claim.detail} are equal; {reason}")


def _other_record(own: Rewritable, pair: FilePair) -> str | None:
    """Return which record of the converted archive is not what frozenbn makes of it."""
    frozen = pair.frozen
    changed = [
        item.layer
        for item in pair.plan.layers
        if item.layer.name in frozen and not item.layer.frozen_already
    ]
    for layer in changed:
        if layer.facts.obstacle:
            return f"layer {layer.name} cannot be frozen: {layer.facts.obstacle}"
    try:
        rewriting = own.rewrite({layer.name for layer in changed}) if changed else Rewriting()
    except UnsupportedFileError as error:
        return error.problem
    return other_record(pair.after.path, own, rewriting)
