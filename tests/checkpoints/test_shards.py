"""Folders and indexes that stand for one model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from frozenbn_cli import convert_file
from frozenbn_cli.cli.app import run
from frozenbn_cli.errors import DamagedFileError, InputError, UnsupportedFileError
from frozenbn_cli.inspection import inspect_file
from tests.builders.files import save, small_state

EXPECTED = {name for name in small_state() if not name.endswith("num_batches_tracked")}


def bin_shards(folder: Path, **replaced: Any) -> Path:
    """Write a model in two files that split a BatchNorm, and return their index."""
    folder.mkdir(exist_ok=True)
    state = small_state()
    names = list(state)
    shards = {"pytorch_model-1.bin": names[:3], "pytorch_model-2.bin": names[3:]}
    for file, part in shards.items():
        save(folder / file, {name: state[name] for name in part})
    weight_map = {name: file for file, part in shards.items() for name in part}
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {**weight_map, **replaced}}))
    return index


@pytest.mark.parametrize("by", ["index", "folder"])
def test_shards_of_pickles_are_one_model(tmp_path: Path, by: str) -> None:
    index = bin_shards(tmp_path / "a")

    result = convert_file(index if by == "index" else index.parent, tmp_path / "b.safetensors")

    assert [item.layer.name for item in result.plan.frozen] == ["bn1", "bn2"]
    assert set(load_file(result.output_path)) == EXPECTED
    assert result.container == "PyTorch in 2 shards"


def test_a_damaged_shard_is_found_before_anything_is_written(tmp_path: Path) -> None:
    index = bin_shards(tmp_path / "a")
    shard = tmp_path / "a" / "pytorch_model-2.bin"
    weight = small_state()["fc.weight"].numpy().tobytes()
    shard.write_bytes(shard.read_bytes().replace(weight, bytes(len(weight))))

    with pytest.raises(DamagedFileError, match="checksum"):
        convert_file(index, tmp_path / "b.safetensors")
    assert not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"bn3.weight": "pytorch_model-1.bin"}, "entry 'bn3.weight' is not in shard"),
        ({"fc.weight": "../a/pytorch_model-2.bin"}, "names of model files beside"),
        ({"fc.weight": "missing.bin"}, "shard missing.bin"),
        ({"fc.weight": 3}, "names of model files beside"),
    ],
)
def test_a_wrong_index_is_refused(tmp_path: Path, replaced: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        inspect_file(bin_shards(tmp_path / "a", **replaced))


def test_an_index_that_lists_an_index_is_refused(tmp_path: Path) -> None:
    index = bin_shards(tmp_path / "a")
    (tmp_path / "a" / "pytorch_model-2.bin").write_bytes(index.read_bytes())

    with pytest.raises(InputError, match=r"shard pytorch_model-2\.bin: expected a file"):
        inspect_file(index)


def test_a_folder_with_one_model_file_is_that_model(tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    hub.mkdir()
    save_file(small_state(), hub / "model.safetensors")
    torch.save({"lr": 1}, hub / "training_args.bin")
    (hub / "config.json").write_text("{}")
    output = str(tmp_path / "b.safetensors")

    assert run(["inspect", str(hub)]) == 0
    assert run(["convert", str(hub), "-o", output]) == 0
    assert run(["verify", str(hub), output]) == 0


def test_of_one_model_in_two_formats_the_safe_one_is_taken(tmp_path: Path) -> None:
    save_file(small_state(), tmp_path / "model.safetensors")
    save(tmp_path / "pytorch_model.bin", small_state())

    assert inspect_file(tmp_path).container == "safetensors"


def test_a_folder_with_several_models_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.pt", small_state())
    save(tmp_path / "b.pt", small_state())

    with pytest.raises(InputError, match=r"found a\.pt, b\.pt"):
        inspect_file(tmp_path)


def test_a_folder_of_a_distributed_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"")
    (tmp_path / "__0_0.distcp").write_bytes(b"")

    with pytest.raises(UnsupportedFileError, match="dcp_to_torch"):
        inspect_file(tmp_path)


def test_what_cannot_be_written_is_left_out_and_named(tmp_path: Path) -> None:
    state = {
        **small_state(),
        "graph": torch.eye(3).to_sparse(),
        "meta": torch.ones(2, device="meta"),
    }

    result = convert_file(save(tmp_path / "a.pt", state))

    assert set(load_file(result.output_path)) == EXPECTED
    assert result.left_out == {
        "graph": "a sparse tensor",
        "meta": "a meta (shape without values) tensor",
    }
