"""What `torch.save` wrote is read as it is, without PyTorch's own unpickler."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from frozenbn_cli.errors import InputError
from frozenbn_cli.live_models.stored_values import read_stored
from frozenbn_cli.pickles.values import Call
from tests.conftest import archive_records, name, saved, zip_bytes

IMAGE = torch.rand(2, 3, 4).transpose(0, 1)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        IMAGE,
        (IMAGE, [IMAGE.half(), None], {"a": 1, 2: 0.5}),
        {"image": IMAGE, "flag": True, "name": "text"},
        nn.Parameter(IMAGE),
        OrderedDict(a=IMAGE, b=torch.tensor(7)),
    ],
)
def test_reads_what_torch_saves(value: Any, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(saved(value, legacy=legacy))

    assert same(read_stored(path), torch.load(path))


def same(one: Any, other: Any) -> bool:
    if isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and one.equal(other)
    if isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in other)
    if isinstance(other, (list, tuple)):
        return type(one) is type(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize(
    "value",
    [
        Call(name("os.system"), ("true",)),
        {"a": Call(name("torch.Size"), ("foo",))},
        [Call(name("_codecs.encode"), ("x", "unknown"))],
    ],
)
def test_refuses_all_else(value: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(zip_bytes(archive_records(value)))

    with pytest.raises(InputError, match="expected tensors, numbers and text"):
        read_stored(path)
