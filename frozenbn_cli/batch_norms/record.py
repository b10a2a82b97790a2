"""What a converted safetensors file says about its conversion, under ``frozenbn.conversion``.

The entry is a JSON document::

    {"schema_version": 1,
     "frozenbn": "0.1.0",
     "source": {"file": "model.pth", "sha256": "…", "size_bytes": 123},
     "layers": {"layer1.0.bn1": {"eps": 1e-05, "eps_source": "assumed"}, …},
     "recognised": [{"prefix": "", "as": ["torchvision resnet50 (0.29.1)", …]}],
     "verified": ["contents", "layers"],
     "options": {"to": "safetensors", "key": null, …}}

``layers`` names every frozen layer; ``eps_source`` is ``read``, ``given``, ``recognised`` or
``assumed``; ``recognised``, where there is any, names architectures with the same layers;
``verified`` lists the claims that were found equal before the file got its name; ``options`` is
what decided, beside the source, what the file holds. Older records have no ``options``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from frozenbn_cli.batch_norms.batch_norm import EPS_SOURCES, Eps
from frozenbn_cli.checkpoints import Renaming
from frozenbn_cli.checkpoints.pickled import METADATA_KEY
from frozenbn_cli.errors import DamagedFileError

__all__ = ["METADATA_KEY", "ConversionRecord"]

_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class ConversionRecord:
    """The record of a conversion that its output carries.

    Attributes:
        version: Of frozenbn.
        source: File name, sha256 and size in bytes of the input.
        layers: The eps of each frozen layer.
        verified: The claims that were found equal.
        options: What decided, beside the source, what the output holds; None where an older
            version did not say.
        recognised: Names of architectures whose layers these are, by the prefix of the layers.
    """

    version: str
    source: Mapping[str, str | int]
    layers: Mapping[str, Eps]
    verified: tuple[str, ...] = ()
    options: Mapping[str, Any] | None = None
    recognised: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def renamed_by(self) -> tuple[tuple[str, str], ...]:
        """What names began with in the source, and what instead in the output."""
        steps = (self.options or {}).get("renamed", ())
        if not isinstance(steps, (list, tuple)):
            return ()
        pairs = (tuple(step) for step in steps if isinstance(step, (list, tuple)))
        return tuple(
            (pair[0], pair[1])
            for pair in pairs
            if len(pair) == 2 and all(isinstance(part, str) for part in pair)
        )

    def renamed(self, renaming: Renaming) -> ConversionRecord:
        """Return the record with the names that layers got when the file was opened."""
        layers = {renaming.of_module(name): eps for name, eps in self.layers.items()}
        return replace(self, layers=layers)

    def to_text(self) -> str:
        """Return the JSON document."""
        document: dict[str, Any] = {
            "schema_version": _SCHEMA_VERSION,
            "frozenbn": self.version,
            "source": dict(self.source),
            "layers": {
                name: {"eps": eps.value, "eps_source": eps.source}
                for name, eps in self.layers.items()
            },
            "verified": list(self.verified),
        }
        if self.recognised:
            document["recognised"] = [
                {"prefix": prefix, "as": list(names)} for prefix, names in self.recognised.items()
            ]
        if self.options is not None:
            document["options"] = dict(self.options)
        return json.dumps(document, separators=(",", ":"))

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> ConversionRecord | None:
        """Return the record that a file carries, or None if frozenbn did not write it.

        Raises:
            DamagedFileError: The record is not of the documented form.
        """
        if METADATA_KEY not in metadata:
            return None
        try:
            document = json.loads(metadata[METADATA_KEY])
            layers = {name: _eps(fields) for name, fields in document["layers"].items()}
            options = document.get("options")
            recognised = {
                str(fields["prefix"]): tuple(map(str, fields["as"]))
                for fields in document.get("recognised", ())
            }
            return cls(
                str(document["frozenbn"]),
                dict(document["source"]),
                layers,
                tuple(document["verified"]),
                None if options is None else dict(options),
                recognised,
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DamagedFileError(
                f"metadata {METADATA_KEY}", expected="a record of frozenbn", found=str(error)[:80]
            ) from error


def _eps(fields: Any) -> Eps:
    value, source = fields["eps"], fields["eps_source"]
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError(f"eps {value!r}")
    if source not in EPS_SOURCES:
        raise ValueError(f"eps_source {source!r}")
    return Eps(float(value), source)
