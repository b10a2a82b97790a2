"""Programs that were exported on another device, as they would have been on the CPU."""

from __future__ import annotations

from typing import Any

from frozenbn_cli.exported.program_archive import ProgramArchive
from frozenbn_cli.exported.strict_json import json_text

__all__ = ["on_cpu"]

_DEVICES = ("device", "as_device")
_CPU = {"type": "cpu", "index": None}


def on_cpu(programs: ProgramArchive) -> dict[str, bytes]:
    """Return the records that change so that an archive can be loaded without its devices.

    Those of layouts A and B keep their weights in files within, which are not changed: PyTorch
    then says itself what it lacks.
    """
    changed: dict[str, bytes] = {}
    for model in programs.models:
        documents = {programs.program_record(model): programs.program(model)}
        for part in ("weights", "constants"):
            record = programs.config_record(model, part)
            if record in programs.archive.records:
                documents[record] = programs.config(model, part)
        changed |= {
            record: json_text(document) for record, document in documents.items() if _move(document)
        }
    return changed


def _move(document: dict[str, Any]) -> bool:
    """Put everything on the CPU, and return whether something was elsewhere."""
    moved = False
    waiting: list[Any] = [document]
    while waiting:
        value = waiting.pop()
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        for key, part in list(parts):
            if key in _DEVICES and isinstance(part, dict) and part.get("type") != "cpu":
                value[key] = dict(_CPU)
                moved = True
            elif isinstance(part, (dict, list)):
                waiting.append(part)
    return moved
