"""Exported programs that execute something when they are loaded or run, one for each way to it."""

from __future__ import annotations

import io
import json
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.builders.models import perturb
from tests.builders.programs import (
    of_newest_layout,
    program_record,
    records,
    saved,
    write_records,
)

Document = dict[str, Any]
Edit = Callable[[Document], None]

_DEPLOYED = "deployed_by_the_file"


def export(model: nn.Module, path: Path, *inputs: torch.Tensor, **options: Any) -> Path:
    """Save a program of a model as it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path.write_bytes(saved(torch.export.export(model, inputs, strict=False, **options)))
    return path


def small_program(path: Path) -> Path:
    """Save a program with a BatchNorm2d in it, in eval."""
    model = perturb(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval())
    return export(model, path, torch.rand(2, 3, 4, 4))


def edited(path: Path, out: Path, edit: Edit, more: Mapping[str, bytes] | None = None) -> Path:
    """Write a program with another JSON, and with other records.

    Args:
        path: The program.
        out: Where the other one goes.
        edit: Changes the JSON in place.
        more: Records by name, without the folder around them.
    """
    content = records(path)
    program = program_record(content)
    document = json.loads(content[program])
    edit(document)
    changed = {program: json.dumps(document).encode(), **(more or {})}
    return write_records(out, content | changed)


def graph_of(document: Document) -> Document:
    graph: Document = document["graph_module"]["graph"]
    return graph


def rename(document: Document, new: str) -> None:
    """Give the input of a program another name, wherever it stands."""
    text = json.dumps(document)
    renamed = json.loads(text.replace(json.dumps("input"), json.dumps(new)))
    for node in graph_of(renamed)["nodes"]:
        for taken in node["inputs"]:
            taken["name"] = "input" if taken["name"] == new else taken["name"]
    document.clear()
    document.update(renamed)


class _Touching:
    def __init__(self, code: str) -> None:
        self._code = code

    def __reduce__(self) -> Any:
        return eval, (self._code,)


def touching(code: str) -> bytes:
    """Return a file of `torch.save` that executes code when it is unpickled."""
    stream = io.BytesIO()
    torch.save(_Touching(code), stream)
    return stream.getvalue()


def _sizes(document: Document) -> list[Any]:
    values: list[Any] = next(iter(graph_of(document)["tensor_values"].values()))["sizes"]
    return values


def _signature(document: Document) -> Document:
    signature: Document = document["graph_module"]["module_call_graph"][0]["signature"]
    return signature


def _expression(code: str) -> Edit:
    def edit(document: Document) -> None:
        _sizes(document)[0] = {"as_expr": {"expr_str": code, "hint": None}}

    return edit


def _argument_name(code: str) -> Edit:
    def edit(document: Document) -> None:
        rename(document, f"input={code}")

    return edit


def _enumeration(_: str) -> Edit:
    def edit(document: Document) -> None:
        context = json.dumps([{"__enum__": True, "fqn": f"{_DEPLOYED}:Kind", "name": "ONE"}])
        tree = json.loads(_signature(document)["out_spec"])
        leaf = {"type": None, "context": None, "children_spec": []}
        tree[1] = {"type": "builtins.dict", "context": context, "children_spec": [leaf]}
        _signature(document)["out_spec"] = json.dumps(tree)

    return edit


def _guard(code: str) -> Edit:
    def edit(document: Document) -> None:
        document["guards_code"] = [code]

    return edit


def _target(code: str) -> Edit:
    def edit(document: Document) -> None:
        graph_of(document)["nodes"].insert(
            0,
            {
                "target": "torch.serialization.os.system",
                "inputs": [
                    {"name": "", "arg": {"as_string": f'python3 -c "{code}"'}, "kind": 1},
                ],
                "outputs": [{"as_none": True}],
                "metadata": {},
                "is_hop_single_tensor_return": None,
                "name": "system",
            },
        )

    return edit


IN_THE_PROGRAM: Mapping[str, Callable[[str], Edit]] = {
    "a size": _expression,
    "the name of an input": _argument_name,
    "an enumeration": _enumeration,
    "a guard": _guard,
    "the target of a node": _target,
}
"""Edits of the JSON, each made of the code that it is to execute."""


def unchanged(_: Document) -> None:
    """Leave the JSON as it is."""


def _constants(entry: Document) -> bytes:
    return json.dumps({"config": {"thing": {**entry, "tensor_meta": None}}}).encode()


def in_a_record(way: str, path: Path, code: str) -> dict[str, bytes]:
    """Return the records that make a program execute code, by what is done to them."""
    hostile = touching(code)
    if way == "a pickled weight":
        config = json.loads(records(path)["data/weights/model_weights_config.json"])
        first = next(iter(config["config"].values()))
        first |= {"use_pickle": True, "path_name": "weight_99"}
        return {
            "data/weights/model_weights_config.json": json.dumps(config).encode(),
            "data/weights/weight_99": hostile,
        }
    if way == "an opaque object":
        entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True}
        return {
            "data/constants/model_constants_config.json": _constants(entry),
            "data/constants/opaque_obj_0": pickle.dumps(_Touching(code)),
        }
    if way == "a custom object":
        entry = {"path_name": "custom_obj_0", "is_param": False, "use_pickle": True}
        return {
            "data/constants/model_constants_config.json": _constants(entry),
            "data/constants/custom_obj_0": hostile,
        }
    if way == "compiled code":
        return {
            "data/aotinductor/model/code.so": b"\x7fELF",
            "data/aotinductor/model/a.json": b"{}",
        }
    record = {
        "example inputs": "data/sample_inputs/model.pt",
        "weights of PyTorch 2.8": "data/weights/model.pt",
        "constants of PyTorch 2.8": "data/constants/model.pt",
    }[way]
    return {record: hostile}


IN_A_RECORD = (
    "a pickled weight",
    "an opaque object",
    "a custom object",
    "compiled code",
    "example inputs",
    "weights of PyTorch 2.8",
    "constants of PyTorch 2.8",
)
WAYS = [*IN_THE_PROGRAM, *(pytest.param(way, marks=of_newest_layout) for way in IN_A_RECORD)]


def canary_of(folder: Path) -> tuple[Path, str]:
    """Return a file that is not there, and the code that makes it; a module does so too."""
    canary = folder / "canary"
    code = f"open('{canary}','w').close()"
    deployed = f"import enum\n{code}\nclass Kind(enum.Enum):\n    ONE = 1\n"
    (folder / f"{_DEPLOYED}.py").write_text(deployed)
    return canary, code


def hostile_program(way: str, folder: Path, code: str) -> Path:
    """Save a program that executes code in one of the ways."""
    plain = small_program(folder / "plain.pt2")
    out = folder / "hostile.pt2"
    if way in IN_THE_PROGRAM:
        return edited(plain, out, IN_THE_PROGRAM[way](code))
    return edited(plain, out, unchanged, in_a_record(way, plain, code))
