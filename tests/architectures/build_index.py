"""Makes the index of architectures of the files that `tests/architectures/collect.py` writes.

    python -m tests.architectures.build_index FACTS.jsonl…

Of several versions of a library the newer one counts, where they agree on an architecture; where
they do not, the index holds both, and such a file is ambiguous.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from frozenbn_cli.architectures.index import INDEX_PATH, Architecture, Candidate, Index, LayerKind
from frozenbn_cli.architectures.recognition import FORMS, Form, form_fingerprint

_FEWEST_LAYERS = 4
_LARGEST_BYTES = 64 * 1024
_TWIN = "quantized_"


def index_of(lines: Iterable[Mapping[str, Any]]) -> Index:
    """Return the index of architectures as `collect.py` describes them, a line each."""
    found: dict[str, dict[tuple[LayerKind, ...], list[Architecture]]] = {}
    undecided: set[str] = set()
    libraries: set[str] = set()
    for line in lines:
        libraries.add(f"{line['library']} {line['version']}")
        architecture = Architecture(line["library"], line["version"], line["name"])
        for layers in line.get("variants", ()):
            if len(layers) < _FEWEST_LAYERS:
                continue
            for form in FORMS:
                print_, kinds = _described(layers, form)
                if kinds is None:
                    undecided.add(print_)
                else:
                    group = found.setdefault(print_, {}).setdefault(kinds, [])
                    group.append(architecture)
    return Index.of(
        {
            print_: sorted(
                (Candidate(_best(group), kinds) for kinds, group in by_kinds.items()),
                key=lambda candidate: _rank(candidate.architectures[0]),
            )
            for print_, by_kinds in found.items()
            if print_ not in undecided
        },
        libraries,
    )


def kind_of(facts: list[Any]) -> LayerKind:
    """Return what is said of a layer; one with its activation normalises as one without."""
    _, eps, momentum, class_name = facts
    return LayerKind(eps, momentum, class_name.replace("NormAct", "Norm"))


def _described(
    layers: Mapping[str, list[Any]], form: Form
) -> tuple[str, tuple[LayerKind, ...] | None]:
    """Return a fingerprint and the kinds of its layers; None where it cannot tell these apart."""
    names, print_ = form_fingerprint({name: facts[0] for name, facts in layers.items()}, form)
    kinds = tuple(kind_of(layers[name]) for name in names)
    alike = [(form(name), layers[name][0]) for name in names]
    for place in range(1, len(names)):
        if alike[place] == alike[place - 1] and kinds[place] != kinds[place - 1]:
            return print_, None
    return print_, kinds


def _best(architectures: Iterable[Architecture]) -> tuple[Architecture, ...]:
    """Return architectures with the same layers, of each library those of its newest version."""
    ordered = sorted(set(architectures), key=_rank)
    newest: dict[str, str] = {}
    for one in ordered:
        newest.setdefault(one.library, one.version)
    names = {one.name for one in ordered}
    return tuple(
        one
        for one in ordered
        if newest[one.library] == one.version
        # torchvision lists a second builder for those that can be quantised.
        and not (one.name.startswith(_TWIN) and one.name.removeprefix(_TWIN) in names)
    )


def _rank(one: Architecture) -> tuple[Any, ...]:
    """Return by what architectures are ordered: torchvision first, new versions, short names."""
    version = [-int(part) for part in one.version.split(".")]
    return one.library != "torchvision", one.library, version, len(one.name), one.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("facts", type=Path, nargs="+")
    arguments = parser.parse_args()
    lines = [json.loads(line) for path in arguments.facts for line in path.open()]
    index_of(lines).write(INDEX_PATH)
    size = INDEX_PATH.stat().st_size
    print(f"{size:,} bytes, {', '.join(Index.read(INDEX_PATH).libraries)}")
    if size > _LARGEST_BYTES:
        raise SystemExit(f"more than {_LARGEST_BYTES:,} bytes")


if __name__ == "__main__":
    main()
