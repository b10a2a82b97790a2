"""What an archive would run is searched wherever it stands: in code, object tree and constants."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
from torch import nn

from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.pickles.values import Call, Value
from frozenbn_cli.pickles.writer import write_pickle
from frozenbn_cli.torchscript.operators import unsafe_operators
from frozenbn_cli.torchscript.script_archive import ScriptArchive
from tests.builders.archives import rewrite_records, script
from tests.conftest import name

PROTO, EMPTY_TUPLE, TUPLE1, STOP = b"\x80\x02", b")", b"\x85", b"."


def unsafe(folder: Path, constants: bytes) -> list[str]:
    """Return what is found in an archive of these constants."""
    path = script(nn.Sequential(nn.BatchNorm2d(2)), folder / "model.pt")

    def change(record: str, content: bytes) -> bytes:
        return constants if record == "constants.pkl" else content

    with open_checkpoint(rewrite_records(path, change)) as checkpoint:
        return unsafe_operators(cast(ScriptArchive, checkpoint.script))


def test_finds_nothing_in_a_plain_archive(tmp_path: Path) -> None:
    assert unsafe(tmp_path, write_pickle(())) == []


@pytest.mark.parametrize(
    "place",
    [
        lambda value: (value,),
        lambda value: ([{"key": (value,)}],),
        lambda value: (Call(name("__torch__.Box"), (), is_new=True, state=value, has_state=True),),
    ],
)
def test_finds_classes_of_others_in_constants(place: object, tmp_path: Path) -> None:
    foreign = Call(name("__torch__.torch.classes.rpc.Agent"), (), is_new=True)
    value: Value = place(foreign)  # type: ignore[operator]

    assert unsafe(tmp_path, write_pickle(value)) == ["__torch__.torch.classes.rpc.Agent"]


def test_finds_constants_that_end_pytorch(tmp_path: Path) -> None:
    deep = PROTO + EMPTY_TUPLE + TUPLE1 * 30_000 + STOP

    assert unsafe(tmp_path, deep) == ["values within more than 2,000 others"]


def test_finds_depth_behind_shared_values(tmp_path: Path) -> None:
    # Each thousandth value of a chain also stands in the outermost one, and is seen there first.
    memo = PROTO + EMPTY_TUPLE
    for number in range(5_000):
        memo += TUPLE1
        if number % 1_000 == 999:
            memo += b"q" + bytes([number // 1_000])
    memo += b"h\0h\1h\2" + b"\x87" + b"\x86" + STOP

    assert unsafe(tmp_path, memo) == ["values within more than 2,000 others"]
