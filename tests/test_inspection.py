import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from frozenbn_cli.errors import UsageError
from frozenbn_cli.inspection import inspect_file
from frozenbn_cli.selection import Selection
from tests.builders.files import batch_norm, nested, save, small_state


def test_tells_what_a_file_is(tmp_path: Path) -> None:
    found = inspect_file(save(tmp_path / "a.pt", small_state()))

    (part,) = found.state_dicts
    assert (found.kind, found.container) == ("state dict", "PyTorch ZIP")
    assert found.size_bytes == (tmp_path / "a.pt").stat().st_size
    assert (part.entries, part.elements) == (13, {"float32": 184, "int64": 2})
    assert [plan.layer.name for plan in part.plan.frozen] == ["bn1", "bn2"]
    assert not found.has_errors


def test_summarises_the_statistics_of_each_layer(tmp_path: Path) -> None:
    entries = batch_norm(9)
    entries["running_mean"] = torch.arange(9.0) - 4
    entries["running_var"] = torch.tensor([0, 9e-6, 2e-5, 3e-3, 0.5, 1, 9, 10, 1e6])

    found = inspect_file(save(tmp_path / "a.pt", nested(bn=entries)))

    statistics = found.state_dicts[0].statistics["bn"]
    assert statistics.mean == (-4, 4)
    assert statistics.variance == (0, 1e6)
    assert statistics.variance_decades == (2, 1, 0, 1, 0, 1, 2, 2)


def test_summarises_statistics_that_are_broken(tmp_path: Path) -> None:
    entries = batch_norm(3)
    entries["running_var"] = torch.tensor([math.nan, math.inf, -1])

    found = inspect_file(save(tmp_path / "a.pt", nested(bn=entries)))

    statistics = found.state_dicts[0].statistics["bn"]
    assert all(math.isnan(bound) for bound in statistics.variance)
    assert sum(statistics.variance_decades) == 3
    assert found.has_errors


@pytest.mark.parametrize("lost", ["running_mean", "running_var"])
def test_a_layer_without_half_its_statistics_has_no_summary(tmp_path: Path, lost: str) -> None:
    entries = batch_norm(3)
    del entries[lost]

    found = inspect_file(save(tmp_path / "a.pt", nested(bn=entries)))

    assert not found.state_dicts[0].statistics
    assert found.has_errors


def test_several_state_dicts_are_all_shown_or_the_one_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", {"model": small_state(), "ema": small_state(), "epoch": 3})

    both = inspect_file(path)
    one = inspect_file(path, key="ema")

    assert [part.key for part in both.state_dicts] == ["model", "ema"]
    assert [part.key for part in one.state_dicts] == ["ema"]
    with pytest.raises(UsageError, match=r"a\.pt: no state dict at key 'emma'. Is it 'ema'"):
        inspect_file(path, key="emma")


def test_shows_what_options_would_change(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", small_state())

    found = inspect_file(path, eps=1e-3, selection=Selection.of(exclude="bn2"))

    plan = found.state_dicts[0].plan
    assert plan.layers[0].layer.eps.value == 1e-3
    assert plan.layers[1].reason == "excluded by 'bn2'"


def test_reads_statistics_and_never_the_weights(tmp_path: Path) -> None:
    state = nested(conv={"weight": torch.zeros(64, 64, 9, 9)}, bn=batch_norm(64))
    path = save(tmp_path / "a.pt", state)
    read = 0

    from frozenbn_cli.containers.source import ByteSource

    original = ByteSource.read

    def counting(self: ByteSource, start: int, count: int) -> bytes:
        nonlocal read
        read += count
        return original(self, start, count)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ByteSource, "read", counting)
        inspect_file(path)

    assert read < 200_000 < state["conv.weight"].nbytes


def test_imports_nothing_large(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", nn.BatchNorm2d(3))
    code = (
        "import sys; from frozenbn_cli import cli; assert cli.run(['inspect', sys.argv[1]]) == 0;"
        "sys.exit(bool({'torch', 'numpy', 'safetensors', 'pydantic'} & sys.modules.keys()))"
    )

    run = subprocess.run([sys.executable, "-c", code, path], capture_output=True, check=False)

    assert run.returncode == 0, run.stderr
