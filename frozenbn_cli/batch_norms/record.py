"""What a converted safetensors file says about its conversion, under ``frozenbn.conversion``.

The entry is a JSON document::

    {"schema_version": 1,
     "frozenbn": "0.1.0",
     "source": {"file": "model.pth", "sha256": "…", "size_bytes": 123},
     "layers": {"layer1.0.bn1": {"eps": 1e-05, "eps_source": "assumed"},
                "head.bn": {"eps": 1e-05, "eps_source": "assumed", "dims": 1}, …},
     "recognised": [{"prefix": "", "as": ["torchvision resnet50 (0.29.1)", …]}],
     "rewritten": {"layer1.0.bn1": {"eps": 0.001, "eps_source": "read"}, …},
     "verified": ["contents", "layers"],
     "options": {"to": "safetensors", "key": null, …},
     "date": "2030-01-02T03:04:05Z",
     "torch": "2.14.0",
     "claims": [{"name": "model", "status": "not verified", "detail": "…"}, …]}

``layers`` names every frozen layer; ``eps_source`` is ``read``, ``given``, ``recognised`` or
``assumed``, and ``dims``, where there is one, says that it was a BatchNorm1d or 3d;
``recognised``, where there is any, names architectures with the same layers;
``rewritten``, where there is any, the eps that a layer had before its ``running_var`` was rewritten
for the one that ``layers`` states;
``state_dicts``, in a training checkpoint, has the ``layers`` and ``rewritten`` of each of its state
dicts, by key; outside it stand those of the first; ``optimizers`` has the places of the parameters
that each optimizer in it lost, counted in the source through all of its groups;
``verified`` lists the claims that were found equal before the file got its name; ``options`` is
what decided, beside the source, what the file holds; ``date`` is when the conversion was begun;
``claims`` is what was found of each claim, with long details cut. Older records have no
``options``, ``date``, ``torch`` or ``claims``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from frozenbn_cli.batch_norms.batch_norm import EPS_SOURCES, Eps
from frozenbn_cli.checkpoints import StateDict
from frozenbn_cli.checkpoints.checkpoint import METADATA_KEY
from frozenbn_cli.errors import DamagedFileError

__all__ = ["METADATA_KEY", "ConversionRecord", "FrozenLayers", "RecordedClaim"]

_SCHEMA_VERSION = 1
_MOST_DETAIL = 240


@dataclass(frozen=True, slots=True)
class RecordedClaim:
    """What was found of a claim, before the file got its name.

    Attributes:
        name: Of the claim.
        status: ``equal``, ``different`` or ``not verified``.
        detail: What was compared, or why nothing was.
    """

    name: str
    status: str
    detail: str = ""

    @classmethod
    def longest(cls, name: str) -> RecordedClaim:
        """Return one that takes as much space as any."""
        return cls(name, "not verified", "x" * _MOST_DETAIL)

    @classmethod
    def cut(cls, name: str, status: str, detail: str) -> RecordedClaim:
        """Return one whose detail takes no more space than that of `longest`."""
        short = detail if len(detail) <= _MOST_DETAIL else f"{detail[:_MOST_DETAIL]}…"
        while len(json.dumps(short)) - 2 > _MOST_DETAIL:
            short = f"{short.removesuffix('…')[:-1]}…"
        return cls(name, status, short)


@dataclass(frozen=True, slots=True)
class FrozenLayers:
    """What a record says of the layers of one state dict.

    Attributes:
        layers: The eps of each frozen layer.
        dims_of: How many spatial dimensions those of the layers have that are no BatchNorm2d.
        rewritten: The eps that a layer had before its variances were rewritten for another.
    """

    layers: Mapping[str, Eps] = field(default_factory=dict)
    dims_of: Mapping[str, int] = field(default_factory=dict)
    rewritten: Mapping[str, Eps] = field(default_factory=dict)

    def to_document(self) -> dict[str, Any]:
        """Return what becomes a part of the JSON document."""
        layers: dict[str, dict[str, Any]] = {
            name: _document(eps) for name, eps in self.layers.items()
        }
        for name in layers.keys() & self.dims_of.keys():
            layers[name]["dims"] = self.dims_of[name]
        rewritten = {name: _document(eps) for name, eps in self.rewritten.items()}
        return {"layers": layers, **({"rewritten": rewritten} if rewritten else {})}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> FrozenLayers:
        """Return what a part of the JSON document says."""
        layers, rewritten = document["layers"], document.get("rewritten", {})
        return cls(
            {name: _eps(fields) for name, fields in layers.items()},
            {name: _dims(fields["dims"]) for name, fields in layers.items() if "dims" in fields},
            {name: _eps(fields) for name, fields in rewritten.items()},
        )


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
        date: When the conversion was begun, as in ISO 8601; empty where an older version did not
            say.
        torch: The version of PyTorch that was there; empty as above.
        claims: What was found of each claim; none as above.
        dims_of: How many spatial dimensions those of the layers have that are no BatchNorm2d.
        rewritten: The eps that a layer had before its variances were rewritten for another.
        state_dicts: The layers of each state dict of a training checkpoint, by its key.
        optimizers: The places of the parameters that each of its optimizers lost, by its key.
    """

    version: str
    source: Mapping[str, str | int]
    layers: Mapping[str, Eps]
    verified: tuple[str, ...] = ()
    options: Mapping[str, Any] | None = None
    recognised: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    date: str = ""
    torch: str = ""
    claims: tuple[RecordedClaim, ...] = ()
    dims_of: Mapping[str, int] = field(default_factory=dict)
    rewritten: Mapping[str, Eps] = field(default_factory=dict)
    state_dicts: Mapping[str, FrozenLayers] = field(default_factory=dict)
    optimizers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def dims(self) -> tuple[int, ...] | None:
        """The spatial dimensions of the layers that were to be frozen; None if none were chosen."""
        chosen = (self.options or {}).get("dims")
        if not isinstance(chosen, list) or not all(map(_is_dims, chosen)):
            return None
        return tuple(chosen) or None

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

    def of_key(self, key: str) -> FrozenLayers:
        """Return what it says of the layers of a state dict, with their names in the file."""
        if self.state_dicts:
            return self.state_dicts.get(key, FrozenLayers())
        if key and (self.options or {}).get("key") not in (None, key):
            return FrozenLayers()  # Of another program in the archive.
        return FrozenLayers(self.layers, self.dims_of, self.rewritten)

    def of(self, part: StateDict) -> ConversionRecord:
        """Return the record of one state dict, with the names that it got when it was opened."""
        own, rename = self.of_key(part.key), part.renaming.of_module
        return replace(
            self,
            layers={rename(name): eps for name, eps in own.layers.items()},
            dims_of={rename(name): dims for name, dims in own.dims_of.items()},
            rewritten={rename(name): eps for name, eps in own.rewritten.items()},
        )

    def found(self, claims: Iterable[RecordedClaim]) -> ConversionRecord:
        """Return the record with what was found of each claim."""
        claims = tuple(claims)
        equal = tuple(claim.name for claim in claims if claim.status == "equal")
        return replace(self, verified=equal, claims=claims)

    def to_text(self) -> str:
        """Return the JSON document as it stands in a file."""
        return json.dumps(self.to_document(), separators=(",", ":"))

    def to_document(self) -> dict[str, Any]:
        """Return what becomes the JSON document."""
        document: dict[str, Any] = {
            "schema_version": _SCHEMA_VERSION,
            "frozenbn": self.version,
            "source": dict(self.source),
            **FrozenLayers(self.layers, self.dims_of, self.rewritten).to_document(),
            "verified": list(self.verified),
        }
        if self.recognised:
            document["recognised"] = [
                {"prefix": prefix, "as": list(names)} for prefix, names in self.recognised.items()
            ]
        if self.state_dicts:
            document["state_dicts"] = {
                key: own.to_document() for key, own in self.state_dicts.items()
            }
            document["optimizers"] = {key: list(places) for key, places in self.optimizers.items()}
        if self.options is not None:
            document["options"] = dict(self.options)
        document |= {name: value for name in ("date", "torch") if (value := getattr(self, name))}
        if self.claims:
            document["claims"] = [asdict(claim) for claim in self.claims]
        return document

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
            own = FrozenLayers.from_document(document)
            state_dicts = document.get("state_dicts", {})
            optimizers = document.get("optimizers", {})
            options = document.get("options")
            recognised = {
                str(fields["prefix"]): tuple(map(str, fields["as"]))
                for fields in document.get("recognised", ())
            }
            return cls(
                str(document["frozenbn"]),
                dict(document["source"]),
                own.layers,
                tuple(document["verified"]),
                None if options is None else dict(options),
                recognised,
                str(document.get("date", "")),
                str(document.get("torch", "")),
                tuple(map(_claim, document.get("claims", ()))),
                own.dims_of,
                own.rewritten,
                {key: FrozenLayers.from_document(each) for key, each in state_dicts.items()},
                {key: tuple(map(int, places)) for key, places in optimizers.items()},
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DamagedFileError(
                f"metadata {METADATA_KEY}", expected="a record of frozenbn", found=str(error)[:80]
            ) from error


def _claim(fields: Any) -> RecordedClaim:
    return RecordedClaim(*(str(fields[name]) for name in ("name", "status", "detail")))


def _document(eps: Eps) -> dict[str, Any]:
    return {"eps": eps.value, "eps_source": eps.source}


def _eps(fields: Any) -> Eps:
    value, source = fields["eps"], fields["eps_source"]
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise ValueError(f"eps {value!r}")
    if source not in EPS_SOURCES:
        raise ValueError(f"eps_source {source!r}")
    return Eps(float(value), source)


def _dims(value: Any) -> int:
    if not _is_dims(value):
        raise ValueError(f"dims {value!r}")
    return int(value)


def _is_dims(value: Any) -> bool:
    return type(value) is int and 1 <= value <= 3
