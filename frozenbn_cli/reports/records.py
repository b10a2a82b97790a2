"""The record of a conversion in words: from what, when, how, and what was found then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.reports.console import printable
from frozenbn_cli.reports.words import eps_text, named, size_text
from frozenbn_cli.wording import counted

__all__ = ["record_facts"]

_NOT_SAID = "not said, as in records of older versions"
_FLAGS = {
    "keep_prefix": "prefixes of wrappers kept",
    "force_unhealthy": "unhealthy statistics too",
}


def record_facts(record: ConversionRecord) -> tuple[tuple[str, str], ...]:
    """Return labels and values on what a converted file says of its conversion."""
    options = record.options
    facts = [
        ("made from", _source(record.source)),
        ("sha256", str(record.source.get("sha256", ""))),
        ("made on", record.date.replace("T", " ").replace("Z", " UTC") or _NOT_SAID),
        ("made by", _makers(record)),
        ("frozen", counted(len(record.layers), "layer")),
        ("eps", eps_text(Counter((eps.value, eps.source) for eps in record.layers.values()))),
        ("selection", _NOT_SAID if options is None else _selection(record, options)),
        ("options", "; ".join(_others(options or {}))),
        ("model given", _model(options or {})),
        ("recognised as", named(_recognised(record), 2)),
        *_claims(record),
    ]
    return tuple((printable(label), printable(value)) for label, value in facts if value)


def _source(source: Mapping[str, Any]) -> str:
    size = source.get("size_bytes")
    return f"{source.get('file', '')}{f' ({size_text(size)})' if isinstance(size, int) else ''}"


def _makers(record: ConversionRecord) -> str:
    return f"frozenbn {record.version}" + (f", PyTorch {record.torch}" if record.torch else "")


def _selection(record: ConversionRecord, options: Mapping[str, Any]) -> str:
    """Return which layers were meant."""
    kinds = " and ".join(f"BatchNorm{count}d" for count in record.dims or (2,))
    parts = [f"every {kinds} layer"] if not options.get("include") else []
    parts += [
        f"{words} {named(map(str, names))}"
        for words, names in (
            ("only", options.get("include")),
            ("without", options.get("exclude")),
        )
        if isinstance(names, list) and names
    ]
    if isinstance(dims := options.get("dims_of"), dict) and dims:
        parts.append("as told " + named(f"{name}={count}d" for name, count in dims.items()))
    return ", ".join(parts)


def _others(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield what else decided what the file holds, in a few words each."""
    if options.get("key"):
        yield f"key {options['key']}"
    for name, words in (("strip_prefix", "taken off"), ("add_prefix", "put in front")):
        if options.get(name):
            yield f"{options[name]} {words}"
    for name, words in (("eps", "eps"), ("target_eps", "target eps")):
        if options.get(name) is not None:
            yield f"{words} {options[name]} given"
    if options.get("optimizer"):
        yield f"optimizer {options['optimizer']}"
    for name, words in _FLAGS.items():
        if options.get(name):
            yield words
    if options.get("recognise") is False:
        yield "architectures not looked up"
    if options.get("state"):
        yield f"layers said to be {options['state']}"


def _model(options: Mapping[str, Any]) -> str:
    """Return what built the model, and the digest of its code and arguments."""
    identity = str(options.get("model") or "")
    target, _, digest = identity.rpartition(" ")
    return f"{target} (code and arguments: {digest})" if target else identity


def _recognised(record: ConversionRecord) -> list[str]:
    return [name for names in record.recognised.values() for name in names]


def _claims(record: ConversionRecord) -> Iterator[tuple[str, str]]:
    """Yield what was found of each claim; older records name those that were equal alone."""
    for claim in record.claims:
        yield claim.name, f"{claim.status}: {claim.detail}" if claim.detail else claim.status
    if not record.claims:
        equal = ", ".join(record.verified)
        yield "verified", f"{equal} equal" if equal else "nothing"
