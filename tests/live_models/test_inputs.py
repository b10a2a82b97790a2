from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from frozenbn_cli.errors import InputError, UsageError
from frozenbn_cli.live_models.inputs import Inputs, candidate_inputs
from frozenbn_cli.live_models.run_options import RunOptions


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, image: Tensor, mask: Tensor, flip: bool = False) -> Tensor:
        return self.conv(image) * mask


class Images(nn.Module):
    def forward(self, images: list[Tensor], targets: list[Tensor] | None = None) -> Tensor:
        return torch.stack(images)


def first(model: nn.Module, **options: Any) -> Inputs:
    found = candidate_inputs(model, RunOptions(**options))
    assert not isinstance(found, str), found
    return next(iter(found))[0]


class ByName(nn.Module):
    def forward(self, image: Tensor, *, scale: Tensor, shift: Tensor | None = None) -> Tensor:
        return image * scale


class Anything(nn.Module):
    def forward(self, **batch: Tensor) -> Tensor:
        return batch["image"]


class Several(nn.Module):
    def forward(self, image: Tensor, *rest: Tensor) -> Tensor:
        return image


class OneDict(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["image"]


IMAGE, MASK = torch.rand(1, 3, 8, 8, dtype=torch.float64), torch.ones(1, 1, 6, 6)


class TestRandom:
    def test_the_shapes_that_are_given(self) -> None:
        found = first(TwoInputs(), input_shapes=((1, 3, 8, 8), (1, 1, 6, 6)))

        assert [tuple(value.shape) for value in found.arguments] == [(1, 3, 8, 8), (1, 1, 6, 6)]
        assert found.shown == "1x3x8x8, 1x1x6x6 of float32"

    def test_a_list_of_images_where_that_is_what_it_takes(self) -> None:
        (images,) = first(Images(), input_shapes=((2, 3, 8, 8),)).arguments

        assert [tuple(image.shape) for image in images] == [(3, 8, 8)] * 2

    @pytest.mark.parametrize(
        ("model", "shape"),
        [
            (nn.Conv3d(2, 4, 3), (1, 2, 8, 64, 64)),
            (nn.Conv1d(5, 4, 3), (1, 5, 64)),
            (nn.Sequential(nn.Conv1d(5, 4, 3), nn.Conv2d(3, 4, 3)), (1, 3, 64, 64)),
        ],
    )
    def test_clips_and_points_where_there_are_no_images(
        self, model: nn.Module, shape: tuple[int, ...]
    ) -> None:
        assert tuple(first(model).arguments[0].shape) == shape

    @pytest.mark.parametrize(
        ("model", "shapes", "reason"),
        [
            (TwoInputs(), (), "takes 2 inputs of unknown shape; give --input-shape"),
            (TwoInputs(), ((1, 3, 8, 8),), "takes 2 inputs, and 1 shape"),
            (nn.Linear(3, 4), (), "takes 1 input of unknown shape; give --input-shape"),
            (nn.ModuleList(), (), "it has no method forward"),
            (ByName(), (), "takes scale by name; give --inputs"),
            (Anything(), (), "takes its arguments by name; give --inputs"),
            (nn.Conv2d(3, 4, 3), ((1,), (1,)), "takes 1 input, and 2 shapes given"),
        ],
    )
    def test_says_why_there_are_none(self, model: nn.Module, shapes: Any, reason: str) -> None:
        found = candidate_inputs(model, RunOptions(input_shapes=shapes))

        assert isinstance(found, str)
        assert reason in found

    def test_as_many_as_are_given_where_it_takes_any_number(self) -> None:
        found = first(Several(), input_shapes=((1, 3, 8, 8), (1, 2), (3,)))

        assert [tuple(value.shape) for value in found.arguments] == [(1, 3, 8, 8), (1, 2), (3,)]

    def test_a_shape_that_is_too_large(self) -> None:
        for shape in ((1, 3, 10**6, 10**8), (10**9,) * 4):
            with pytest.raises(UsageError, match="cannot be made"):
                first(nn.Conv2d(3, 4, 3), input_shapes=(shape,))

    def test_seeds_make_different_inputs(self) -> None:
        runs = candidate_inputs(nn.Conv2d(3, 4, 3), RunOptions(runs=2, seed=7))
        again = candidate_inputs(nn.Conv2d(3, 4, 3), RunOptions(seed=8))
        assert not isinstance(runs, str)
        assert not isinstance(again, str)

        one, two = next(runs)

        assert not one.arguments[0].equal(two.arguments[0])
        assert two.arguments[0].equal(next(again)[0].arguments[0])

    def test_floats_take_the_dtype_of_the_model(self) -> None:
        inputs = Inputs((IMAGE, [MASK.int()]), {"mask": MASK})

        arguments, keywords = inputs.of_dtype(torch.float16)

        assert arguments[0].dtype == keywords["mask"].dtype == torch.float16
        assert arguments[1][0].dtype == torch.int32
        assert arguments[1][0] is not inputs.arguments[1][0]


class TestFiles:
    def test_tensors_by_the_names_of_arguments(self, tmp_path: Path) -> None:
        save_file({"mask": MASK, "image": IMAGE}, tmp_path / "a.safetensors")
        np.savez(tmp_path / "a.npz", mask=MASK.numpy(), image=IMAGE.numpy())
        torch.save({"mask": MASK, "image": IMAGE}, tmp_path / "a.pt")

        for name in ("a.safetensors", "a.npz", "a.pt"):
            found = first(TwoInputs(), inputs=tmp_path / name)
            assert found.arguments == ()
            assert found.keywords["image"].equal(IMAGE)
            assert found.keywords["mask"].equal(MASK)
            assert found.shown.startswith(f"{name} (")
            assert found.shown.endswith(", run in float32)")

    def test_tensors_of_other_names_in_their_order(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", *[np.full((1, 3, 8, 8), value) for value in range(11)])

        found = first(TwoInputs(), inputs=tmp_path / "a.npz")

        assert [int(value.flatten()[0]) for value in found.arguments] == list(range(11))

    @pytest.mark.parametrize("model", [ByName(), Anything()])
    def test_tensors_that_are_given_by_name_alone(self, tmp_path: Path, model: nn.Module) -> None:
        save_file({"image": IMAGE, "scale": MASK}, tmp_path / "a.safetensors")

        found = first(model, inputs=tmp_path / "a.safetensors")

        assert found.arguments == ()
        assert found.keywords.keys() == {"image", "scale"}

    def test_a_dict_that_is_one_argument(self, tmp_path: Path) -> None:
        torch.save({"image": IMAGE, 3: MASK}, tmp_path / "a.pt")
        torch.save({"image": IMAGE, "scale": MASK}, tmp_path / "b.pt")

        assert first(OneDict(), inputs=tmp_path / "a.pt").arguments[0].keys() == {"image", 3}
        found = candidate_inputs(OneDict(), RunOptions(inputs=tmp_path / "b.pt"))
        assert not isinstance(found, str)
        in_order, whole = (inputs for (inputs,) in found)
        assert len(in_order.arguments) == 2
        assert whole.arguments[0].keys() == {"image", "scale"}
        assert whole.shown == "b.pt ({image: 1x3x8x8, scale: 1x1x6x6}, run in float32)"

    def test_one_array(self, tmp_path: Path) -> None:
        np.save(tmp_path / "a.npy", IMAGE.numpy())

        (image,) = first(nn.Conv2d(3, 4, 3), inputs=tmp_path / "a.npy").arguments

        assert image.equal(IMAGE)

    @pytest.mark.parametrize(
        ("value", "count"), [((IMAGE, MASK), 2), (IMAGE, 1), ([IMAGE[0], IMAGE[0]], 1)]
    )
    def test_what_a_pt_file_holds(self, tmp_path: Path, value: Any, count: int) -> None:
        torch.save(value, tmp_path / "a.pt")

        assert len(first(TwoInputs(), inputs=tmp_path / "a.pt").arguments) == count

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.csv", b"1,2", "expected .npz or .npy or .safetensors or .pt or .pth, found .csv"),
            ("a.npz", b"PK\x03\x04 damaged", "cannot be read"),
            ("a.safetensors", b"\xff" * 20, "cannot be read"),
            ("a.pt", b"cos\nsystem\n(S'true'\ntR.", "cannot be read"),
            ("a.pt", b"", "cannot be read"),
        ],
    )
    def test_what_cannot_be_read(
        self, tmp_path: Path, name: str, content: bytes, message: str
    ) -> None:
        (tmp_path / name).write_bytes(content)

        with pytest.raises(InputError) as caught:
            first(TwoInputs(), inputs=tmp_path / name)

        assert message in str(caught.value)
        assert str(caught.value).startswith(f"inputs {tmp_path / name}")

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        for name in ("a.npz", "a.safetensors", "a.pt"):
            with pytest.raises(InputError, match="No such file"):
                first(TwoInputs(), inputs=tmp_path / name)

    def test_a_file_without_tensors(self, tmp_path: Path) -> None:
        torch.save({"epoch": 3}, tmp_path / "a.pt")

        with pytest.raises(InputError, match="expected tensors, found dict"):
            first(TwoInputs(), inputs=tmp_path / "a.pt")

    def test_pickled_arrays_are_not_executed(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "a.npz", np.array([print], dtype=object))

        with pytest.raises(InputError, match="cannot be read"):
            first(TwoInputs(), inputs=tmp_path / "a.npz")

    @pytest.mark.parametrize("array", [np.array(["text"]), np.zeros(2, dtype="f4,i4")])
    def test_arrays_that_hold_no_tensors(self, tmp_path: Path, array: np.ndarray) -> None:
        np.save(tmp_path / "a.npy", array)

        with pytest.raises(InputError, match="cannot be read"):
            first(TwoInputs(), inputs=tmp_path / "a.npy")

    @pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.safetensors"])
    def test_files_are_not_read_by_their_own_libraries(
        self, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        np.savez(tmp_path / "a.npz", IMAGE.numpy())
        np.save(tmp_path / "a.npy", IMAGE.numpy())
        save_file({"image": IMAGE}, tmp_path / "a.safetensors")
        for library, function in ((np, "load"), (safetensors.torch, "load_file")):
            monkeypatch.delattr(library, function)
        monkeypatch.delattr(safetensors, "safe_open")

        (image,) = first(nn.Conv2d(3, 4, 3), inputs=tmp_path / name).arguments

        assert torch.equal(image, IMAGE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": 0}, "runs 0: expected 1 to 100"),
        ({"runs": 10**9}, "runs 1000000000: expected 1 to 100"),
        ({"seed": -1}, "seed -1"),
        ({"inputs": Path("a"), "input_shapes": ((1,),)}, "also by shapes"),
        ({"inputs": Path("a"), "runs": 2}, "also by shapes, runs or a seed"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RunOptions(**options)
