"""Archives whose objects are not what their classes say are refused, whatever they are instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.errors import DamagedFileError
from frozenbn_cli.pickles.values import Value
from frozenbn_cli.pickles.writer import write_pickle
from tests.builders.archives import rewrite_records, script
from tests.conftest import pickle_of


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("state", [..., None, 7, "text", (1, 2), ["training"]])
def test_refuses_an_object_without_a_dict_of_attributes(
    state: Value, inner: bool, tmp_path: Path
) -> None:
    path = script(nn.Sequential(nn.BatchNorm2d(2)), tmp_path / "model.pt")

    def change(record: str, content: bytes) -> bytes:
        if record != "data.pkl":
            return content
        root: Any = pickle_of(content).value
        changed = root.state["0"] if inner else root
        changed.state, changed.has_state = (None, False) if state is ... else (state, True)
        return write_pickle(root)

    with pytest.raises(DamagedFileError, match="expected its attributes"):
        open_checkpoint(rewrite_records(path, change))
