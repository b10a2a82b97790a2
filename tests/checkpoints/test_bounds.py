"""Files whose objects are shared take time and memory by their size, not by their names."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.errors import DamagedFileError
from frozenbn_cli.pickles.values import Call, Value
from tests.conftest import Open, Refuse, archive_records, name, tensor_call, zip_bytes


def module(children: dict[str, Value], entries: int = 1) -> Call:
    state = {
        "_parameters": {f"entry{number}": tensor_call() for number in range(entries)},
        "_buffers": {},
        "_modules": children,
        "training": True,
    }
    return Call(name("nets.Net"), (), is_new=True, state=state, has_state=True)


def doubled(levels: int) -> Call:
    """Return a module that is reached in 2 ** levels ways from its root."""
    inner = module({}, entries=40)
    for _ in range(levels):
        inner = module({"a": inner, "b": inner}, entries=40)
    return inner


def archive(value: Value) -> bytes:
    return zip_bytes(archive_records(value))


@pytest.mark.parametrize("levels", [pytest.param(13, marks=pytest.mark.slow), 60])
def test_refuses_ways_that_multiply(levels: int, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(archive(doubled(levels)))
    tracemalloc.start()

    with pytest.raises(DamagedFileError, match="more modules within each other than any"):
        open_checkpoint(path)

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 64 << 20


def test_refuses_many_keys_of_one_module(refused: Refuse) -> None:
    one = module({str(number): module({}) for number in range(20)})

    assert "than any model has" in refused(archive([one] * 5_000))


def test_refuses_many_keys_of_one_mapping(refused: Refuse) -> None:
    entries = {f"bn{number}.running_mean": tensor_call() for number in range(50)}

    assert "than any model has" in refused(archive([entries] * 5_000))


def test_reads_a_model_that_shares_some_of_its_layers(opened: Open) -> None:
    entries = opened(archive(doubled(4))).entries

    assert len(entries) == 40 * (2**5 - 1)
    assert "a.b.a.b.entry0" in entries
