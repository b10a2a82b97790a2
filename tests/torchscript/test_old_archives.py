"""Archives that older versions of PyTorch wrote, as they are but for the origin of each line.

What comes of them was loaded and run there too, bit-equal: PyTorch 1.13.1, 2.1.2 and 2.4.1. To make
them anew, script and trace a model whose one BatchNorm2d, without momentum, runs before and after a
convolution under two names.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.builders.archives import assert_freezes

ARCHIVES = sorted(Path(__file__).with_name("archives_of").glob("*.pt"))


@pytest.mark.parametrize("path", ARCHIVES, ids=lambda path: path.stem)
def test_converts_what_older_versions_wrote(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "a.pt"
    copy.write_bytes(path.read_bytes())
    image = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    assert_freezes(copy, image, frozen={"bn", "again"})


def test_there_are_archives_of_three_versions() -> None:
    assert len(ARCHIVES) == 6
