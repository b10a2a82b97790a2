"""Files that are compared: which entries hold the same bits, however these lie in the file."""

from pathlib import Path

import pytest
import torch

from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.verification.written import open_part
from tests.builders.files import save

MATRIX = torch.arange(12.0).reshape(3, 4)
SPREAD = torch.zeros(3, 8)
SPREAD[:, ::2] = MATRIX


@pytest.mark.parametrize(
    ("entry", "same"),
    [
        (MATRIX, True),
        (MATRIX.t().contiguous().t(), True),
        (SPREAD[:, ::2], True),
        (MATRIX.reshape(4, 3), False),
        (MATRIX.int(), False),
        (MATRIX.view(torch.int32), False),
        (-MATRIX, False),
    ],
)
def test_an_entry_holds_the_same_bits(tmp_path: Path, entry: torch.Tensor, same: bool) -> None:
    with (
        open_checkpoint(save(tmp_path / "before.pt", {"a": MATRIX})) as before,
        open_checkpoint(save(tmp_path / "after.pt", {"a": entry})) as after,
    ):
        written = open_part(after, after.state_dict())

        assert written.holds("a", before.state_dict().entries["a"]) is same


def test_pieces_may_be_cut_in_other_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = torch.randn(300, 400)
    with (
        open_checkpoint(save(tmp_path / "before.pt", {"a": wide})) as before,
        open_checkpoint(save(tmp_path / "after.pt", {"a": wide.t().contiguous().t()})) as after,
    ):
        written = open_part(after, after.state_dict())
        monkeypatch.setattr("frozenbn_cli.containers.source.CHUNK_BYTES", 1000)

        assert written.holds("a", before.state_dict().entries["a"])
