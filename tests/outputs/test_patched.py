"""Copies with other elements in some tensors: what is new, and that all else is as it was."""

import io
from pathlib import Path

import pytest
import torch

from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.containers.source import CHUNK_BYTES
from frozenbn_cli.errors import UnsupportedFileError
from frozenbn_cli.outputs.patched import PatchedCopy
from tests.builders.files import save, small_state


def patched(path: Path, new: dict[str, bytes]) -> Path:
    """Write a copy with new elements, and return where it is."""
    target = path.with_name(f"copy{path.suffix}")
    with open_checkpoint(path) as checkpoint:
        copy = PatchedCopy(checkpoint)
        for name, content in new.items():
            copy.replace(name, checkpoint.entries[name], content)
        told: list[int] = []
        with target.open("xb") as file:
            copy.write(file, told.append)
        assert copy.difference(target) == ""
    return target


@pytest.mark.parametrize("suffix", [".pt", ".legacy", ".safetensors"])
def test_without_new_elements_all_bytes_are_those_of_the_input(suffix: str, tmp_path: Path) -> None:
    path = save(tmp_path / f"a{suffix}", small_state())

    copy = patched(path, {})

    if suffix != ".pt":
        assert copy.read_bytes() == path.read_bytes()
    before, after = (open_checkpoint(each) for each in (path, copy))
    with before, after:
        assert [(name, tensor.read()) for name, tensor in before.entries.items()] == [
            (name, tensor.read()) for name, tensor in after.entries.items()
        ]
        assert before.fingerprint()
        assert after.fingerprint()


@pytest.mark.parametrize("zipped", [True, False])
def test_elements_that_lie_across_the_pieces_of_a_copy_are_new(
    zipped: bool, tmp_path: Path
) -> None:
    whole = torch.zeros(2 * CHUNK_BYTES, dtype=torch.uint8)
    middle = whole[CHUNK_BYTES - 3 : CHUNK_BYTES + 3]
    every_other = whole[CHUNK_BYTES + 10 : CHUNK_BYTES + 16 : 2]
    path = tmp_path / "a.pt"
    torch.save(
        {"middle": middle, "every_other": every_other, "x.running_mean": torch.zeros(1)},
        path,
        _use_new_zipfile_serialization=zipped,
    )

    copy = patched(path, {"middle": b"\1\2\3\4\5\6", "every_other": b"\7\b\t"})

    found = torch.load(copy)
    assert found["middle"].tolist() == [1, 2, 3, 4, 5, 6]
    assert found["every_other"].tolist() == [7, 8, 9]
    storage = torch.empty(0, dtype=torch.uint8).set_(found["middle"].untyped_storage())
    assert storage.sum() == sum(range(1, 10))


def test_a_difference_on_the_disk_is_found(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", small_state())
    other = save(tmp_path / "b.pt", {"x.running_mean": torch.zeros(2)})
    with open_checkpoint(path) as checkpoint:
        copy = PatchedCopy(checkpoint)
        name = "bn1.running_mean"
        copy.replace(name, checkpoint.entries[name], bytes(16))

        assert copy.difference(path).endswith(" differs")
        assert "record " in copy.difference(other)
        copy.write(io.BytesIO(), lambda _: None)


def test_what_does_not_lie_in_the_file_as_it_is_is_refused(tmp_path: Path) -> None:
    state = {"bn.running_mean": torch.zeros(()).expand(3), "bn.running_var": torch.ones(3)}
    with open_checkpoint(save(tmp_path / "a.pt", state)) as checkpoint:
        copy = PatchedCopy(checkpoint)
        copy.check("v", checkpoint.entries["bn.running_var"])
        with pytest.raises(UnsupportedFileError, match="entry 'm' repeats one element"):
            copy.check("m", checkpoint.entries["bn.running_mean"])
    arrays = {name: value.numpy() for name, value in state.items()}
    torch.save(arrays, tmp_path / "b.pt")
    within = pytest.raises(UnsupportedFileError, match="lies within a pickle")
    with open_checkpoint(tmp_path / "b.pt") as checkpoint, within:
        PatchedCopy(checkpoint).check("v", checkpoint.entries["bn.running_var"])
