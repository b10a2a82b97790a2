"""`calibrate_file`: what is written, what stays, and what is refused."""

import copy
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from frozenbn_cli import (
    CalibrateOptions,
    ConvertOptions,
    Selection,
    calibrate_file,
    calibrate_statistics,
    convert_file,
    inspect_file,
)
from frozenbn_cli.calibration.terms import ImageOptions
from frozenbn_cli.errors import (
    DependencyError,
    InputError,
    RefusedError,
    UnsupportedFileError,
    UsageError,
    VerificationError,
)
from frozenbn_cli.live_models.target import ModelTarget
from tests.builders.files import save
from tests.builders.models import perturb
from tests.calibration.net import Net, batches

NET = Path(__file__).with_name("net.py")
ROLES = ("running_mean", "running_var", "num_batches_tracked")
NEW = {f"{layer}.{role}" for layer in ("bn1", "bn2", "bn3") for role in ROLES}
State = Mapping[str, Tensor]


def net() -> Net:
    torch.manual_seed(0)
    model = Net()
    perturb(model)
    return model


def options(data: Any = f"{NET}:batches", **others: Any) -> CalibrateOptions:
    return CalibrateOptions(**{"model": ModelTarget(f"{NET}:Net"), "data": data, **others})


def expected() -> State:
    model = net()
    calibrate_statistics(model, batches)
    return model.state_dict()


def assert_calibrated(found: State, before: State) -> None:
    """Compare a state dict with that of a model that was calibrated, and with what it was."""
    assert found.keys() == before.keys()
    wanted = expected()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())
    changed = {name for name, value in found.items() if not torch.equal(value, before[name])}
    assert changed == NEW


# What is written


@pytest.mark.parametrize("name", ["a.pt", "a.legacy", "a.safetensors"])
def test_a_state_dict_stays_one_in_its_format(name: str, tmp_path: Path) -> None:
    before = net().state_dict()
    path = save(tmp_path / name, before)
    content = path.read_bytes()

    result = calibrate_file(path, options=options())

    assert path.read_bytes() == content
    stem, suffix = name.split(".")
    written = tmp_path / (
        f"{stem}.calibrated.{suffix}" if suffix != "legacy" else "a.legacy.calibrated"
    )
    assert result.output_path == written
    found = load_file(written) if suffix == "safetensors" else torch.load(written)
    assert_calibrated(found, before)
    if suffix != "pt":
        assert len(written.read_bytes()) == len(content)
    assert set(result.changed) == NEW
    (claim,) = result.claims
    assert (claim.name, claim.status) == ("contents", "equal")
    assert "new are 6 statistics and 3 counters" in claim.detail


def test_a_training_checkpoint_keeps_its_structure(tmp_path: Path) -> None:
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.randn(4, 1, 3, 3)}
    optimizer = {"state": {0: moments}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
    before = {f"module.{name}": value for name, value in net().state_dict().items()}
    checkpoint = {
        "model": before,
        "ema": {**copy.deepcopy(before), "n_averaged": torch.tensor(3)},
        "optimizer": optimizer,
        "epoch": 3,
        "args": {"lr": 0.1, "names": ("a", None)},
    }
    path = save(tmp_path / "last.ckpt", checkpoint)

    result = calibrate_file(path, options=options(key="model"))

    found = torch.load(tmp_path / "last.calibrated.ckpt")
    assert list(found) == list(checkpoint)
    plain = {name.removeprefix("module."): value for name, value in found["model"].items()}
    assert_calibrated(plain, net().state_dict())
    assert all(torch.equal(value, found["ema"][name]) for name, value in checkpoint["ema"].items())
    assert (found["epoch"], found["args"]) == (3, checkpoint["args"])
    assert found["optimizer"]["param_groups"] == optimizer["param_groups"]
    there = found["optimizer"]["state"][0]
    assert all(torch.equal(value, there[name]) for name, value in moments.items())
    assert (result.key, result.prefix, result.shared) == ("model", "module.", ())
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(result.output_path) as new:
        assert old.namelist() == new.namelist()
        assert new.testzip() is None
        differing = [name for name in old.namelist() if old.read(name) != new.read(name)]
    assert len(differing) == len(NEW)
    assert all("/data/" in name for name in differing)


def test_a_tensor_that_is_in_two_state_dicts_is_new_in_both_and_said(tmp_path: Path) -> None:
    state = net().state_dict()
    path = save(tmp_path / "a.pt", {"model": state, "ema": state})

    result = calibrate_file(path, options=options(key="model"))

    found = torch.load(result.output_path)
    assert_calibrated(found["model"], state)
    assert set(result.shared) == {f"ema.{name}" for name in NEW}


def test_a_storage_with_something_else_in_it_is_not_written(tmp_path: Path) -> None:
    state = net().state_dict()
    part = {"x.running_var": state["bn1.running_mean"][:2]}
    path = save(tmp_path / "a.pt", {"model": state, "ema": part})

    with pytest.raises(VerificationError, match="would change too, since it shares"):
        calibrate_file(path, options=options(key="model"))

    assert [each.name for each in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_module_is_not_unpickled(zipped: bool, tmp_path: Path) -> None:
    model = net()
    path = tmp_path / "whole.pt"
    torch.save(model, path, _use_new_zipfile_serialization=zipped)

    result = calibrate_file(path, options=options())

    found = torch.load(result.output_path, weights_only=False)
    assert isinstance(found, Net)
    assert_calibrated(found.state_dict(), model.state_dict())
    assert "pickled module" in result.kind


def test_views_of_larger_storages_are_written_where_they_lie(tmp_path: Path) -> None:
    state = dict(net().state_dict())
    together = torch.arange(20.0)
    together[3:7] = state["bn1.running_mean"]
    spread = torch.arange(12.0).reshape(6, 2)
    spread[:, 1] = state["bn2.running_var"]
    state["bn1.running_mean"], state["bn2.running_var"] = together[3:7], spread[:, 1]
    path = save(tmp_path / "a.pt", state)

    calibrate_file(path, tmp_path / "b.pt", options=options())

    found = torch.load(tmp_path / "b.pt")
    assert_calibrated(found, state)
    whole = torch.empty(0).set_(found["bn1.running_mean"].untyped_storage())
    assert whole[:3].tolist() == [0, 1, 2]
    assert whole[7:].tolist() == list(range(7, 20))


def test_what_frozenbn_froze_stays(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", net().state_dict())
    how = ConvertOptions(selection=Selection.of(include="bn1"), verify=False)
    part = convert_file(path, tmp_path / "part.safetensors", options=how).output_path

    result = calibrate_file(part, options=options())

    found, before = load_file(result.output_path), load_file(part)
    assert result.calibration.left["bn1"] == "frozen"
    assert torch.equal(found["bn1.running_mean"], before["bn1.running_mean"])
    assert not torch.equal(found["bn2.running_mean"], before["bn2.running_mean"])
    with safe_open(part, "pt") as one, safe_open(result.output_path, "pt") as other:
        assert one.metadata() == other.metadata()


def test_half_precision_and_other_counters_are_written_as_they_are(tmp_path: Path) -> None:
    state = {
        name: value.bfloat16() if value.is_floating_point() else value.int()
        for name, value in net().state_dict().items()
    }
    path = save(tmp_path / "a.pt", state)

    calibrate_file(path, tmp_path / "b.pt", options=options())

    found = torch.load(tmp_path / "b.pt")
    assert {name: value.dtype for name, value in found.items()} == {
        name: value.dtype for name, value in state.items()
    }
    wanted = expected()["bn2.running_var"]
    torch.testing.assert_close(found["bn2.running_var"].float(), wanted, rtol=0.02, atol=0.01)


def test_findings_are_told_before_and_after(tmp_path: Path) -> None:
    model = Net()
    model.bn3.running_var.add_(0.5)
    model.bn3.num_batches_tracked.fill_(3)
    path = save(tmp_path / "a.pt", model.state_dict())

    result = calibrate_file(path, options=options())

    def codes(plan: Any) -> dict[str, list[str]]:
        return {
            item.layer.name: [finding.code for finding in item.findings]
            for item in plan.layers
            if item.layer.name != "auxiliary"
        }

    assert codes(result.before) == {
        "bn1": ["never_formed"], "bn2": ["never_formed"], "bn3": ["hardly_formed"]
    }  # fmt: skip
    assert codes(result.after) == {"bn1": [], "bn2": [], "bn3": []}
    found = inspect_file(result.output_path, model=ModelTarget(f"{NET}:Net"))
    assert codes(found.state_dicts[0].plan)["bn1"] == []


# Data


def images() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).normal(size=(11, 1, 8, 8))


def calibrated(tmp_path: Path, data: Any, **others: Any) -> State:
    """Return what comes of data."""
    path = save(tmp_path / "model.pt", net().state_dict())
    result = calibrate_file(path, options=options(data, force=True, **others))
    found: State = torch.load(result.output_path)
    return found


def assert_same(first: State, second: State) -> None:
    assert all(
        torch.allclose(value, second[name], rtol=1e-5, atol=1e-6)
        for name, value in first.items()
        if "running" in name
    )


def test_files_of_tensors_are_cut_into_batches(tmp_path: Path) -> None:
    values = images()
    tensor = torch.from_numpy(values)
    np.savez(tmp_path / "one.npz", values)
    np.save(tmp_path / "one.npy", values)
    np.savez(tmp_path / "named.npz", x=values, labels=np.zeros(11))
    save_file({"x": tensor}, tmp_path / "one.safetensors")
    torch.save(tensor, tmp_path / "one.pt")
    torch.save((tensor, torch.zeros(11)), tmp_path / "pair.pt")
    torch.save({"x": tensor, "labels": torch.zeros(11)}, tmp_path / "named.pt")
    torch.save([tensor[:4], tensor[4:]], tmp_path / "list.pt")

    wanted = calibrated(tmp_path, [tensor.float()])
    for name in (
        "one.npz",
        "one.npy",
        "named.npz",
        "one.safetensors",
        "one.pt",
        "pair.pt",
        "named.pt",
    ):
        found = calibrated(tmp_path, str(tmp_path / name), batch_size=3)
        assert_same(found, wanted)
        assert found["bn1.num_batches_tracked"] == 4
    assert_same(calibrated(tmp_path, str(tmp_path / "list.pt")), wanted)


def test_a_module_a_file_and_an_object_give_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = calibrated(tmp_path, f"{NET}:batches")

    assert_same(calibrated(tmp_path, "tests.calibration.net:batches"), wanted)
    assert_same(calibrated(tmp_path, f"{NET}:listed"), wanted)
    (tmp_path / "shapes.py").write_text("sizes = (2, 2)\n")
    (tmp_path / "data.py").write_text(
        "import torch\n"
        "def give():\n"
        "    import shapes\n"
        "    return [torch.randn(size, 1, 8, 8) for size in shapes.sizes]\n"
    )
    monkeypatch.chdir(tmp_path)
    assert calibrated(tmp_path, "data.py:give")["bn1.num_batches_tracked"] == 2
    first = calibrated(tmp_path, "data:give", max_batches=1)
    assert first["bn1.num_batches_tracked"] == 1


def test_a_folder_of_images_is_scaled_and_normalised(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    pixels = (np.random.default_rng(0).random((3, 8, 12)) * 255).astype(np.uint8)
    for name, image in zip(("b.png", "a.png", "more/c.png"), pixels, strict=True):
        Image.fromarray(image).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    middle = torch.from_numpy(pixels)[:, None, :, 2:10].float() / 255

    found = calibrated(
        tmp_path,
        str(folder),
        batch_size=2,
        images=ImageOptions(size=(8, 8), mean=(0.5,), std=(0.25,)),
    )

    assert_same(found, calibrated(tmp_path, [(middle - 0.5) / 0.25]))
    assert found["bn1.num_batches_tracked"] == 2


def test_images_are_grey_or_coloured_as_the_model_takes_them(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (8, 8), (255, 128, 0)).save(folder / "a.png")
    Image.new("RGB", (8, 8), (0, 128, 255)).save(folder / "b.jpg")
    torch.manual_seed(0)
    path = save(tmp_path / "model.pt", Net(3).state_dict())
    model = ModelTarget(f"{NET}:Net", {"channels": 3})

    result = calibrate_file(path, options=options(str(folder), model=model))

    assert result.data.startswith("2 images, as large as they are, RGB")


# What is refused


def refused(tmp_path: Path, data: Any, **others: Any) -> Exception:
    path = save(tmp_path / "model.pt", net().state_dict())
    before = files_in(tmp_path)
    with pytest.raises(
        (InputError, UsageError, DependencyError, RefusedError, VerificationError)
    ) as caught:
        calibrate_file(path, options=options(data, **others))
    assert files_in(tmp_path) == before
    assert "\n" not in str(caught.value)
    return caught.value


def files_in(folder: Path) -> list[Path]:
    """Return all files, but for what Python keeps of a module that it imported."""
    return sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)


def test_code_of_the_data_that_fails_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise KeyError('at import')\n")
    for data, words in (
        (f"{NET}:failing", "the data, batch 2: making it failed (ValueError: no more)"),
        (f"{NET}:ending", "ends with SystemExit 0"),
        (f"{NET}:missing", "has no missing"),
        (f"{tmp_path}/none.py:give", "there is no file"),
        (f"{tmp_path}/broken.py:give", "importing it failed (KeyError: 'at import')"),
        ("no.such.module:give", "cannot be imported"),
        (f"{NET}:annotations", "expected what gives batches"),
    ):
        error = refused(tmp_path, data)
        assert isinstance(error, UsageError)
        assert words in str(error)


def test_data_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "two.npz", images=images(), labels=np.zeros(11))
    np.savez(tmp_path / "nan.npz", np.full((2, 1, 8, 8), np.nan))
    np.savez(tmp_path / "none.npz", np.zeros((0, 1, 8, 8)))
    for data, words in (
        (str(tmp_path / "empty"), "holds no image"),
        (str(tmp_path / "text.npz"), "cannot be read"),
        (str(tmp_path / "missing.npz"), "cannot be read (No such file or directory)"),
        (str(tmp_path / "two.npz"), "holds images, labels: expected names that forward has: x"),
        (str(tmp_path / "nan.npz"), "batch 1: holds NaN or Inf"),
        (str(tmp_path / "none.npz"), "the data: holds no batch"),
    ):
        error = refused(tmp_path, data)
        assert isinstance(error, InputError)
        assert words in str(error)
    assert "expected module:callable" in str(refused(tmp_path, "nothing"))


def test_images_that_do_not_go_together_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("L", (8, 8)).save(folder / "a.png")
    Image.new("L", (9, 8)).save(folder / "b.png")
    assert "a.png has 8x8 pixels, and b.png 8x9" in str(refused(tmp_path, str(folder)))
    three = ImageOptions(mean=(0.1, 0.2, 0.3))
    assert "mean has 3 values" in str(refused(tmp_path, str(folder), images=three))
    (folder / "b.png").write_bytes(b"no image")
    assert "b.png: cannot be read as an image" in str(refused(tmp_path, str(folder)))
    monkeypatch.setitem(__import__("sys").modules, "PIL.Image", None)
    error = refused(tmp_path, str(folder))
    assert isinstance(error, DependencyError)
    assert "pip install 'frozenbn-cli[images]'" in str(error)


def test_options_without_an_effect_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", images())
    for data, others, name in (
        (f"{NET}:batches", {"batch_size": 3}, "batch_size"),
        (f"{NET}:batches", {"images": ImageOptions(size=(8, 8))}, "image_size"),
        (str(tmp_path / "one.npz"), {"images": ImageOptions(mean=(0.5,))}, "mean"),
        ([images()], {"images": ImageOptions(std=(0.5,))}, "std"),
    ):
        assert f"{name} is given, and has an effect on" in str(refused(tmp_path, data, **others))


def test_kinds_of_files_that_cannot_be_copied_so_are_refused_before_anything_runs(
    tmp_path: Path,
) -> None:
    never = [lambda: pytest.fail("the data were asked for")]
    state = {name: value.numpy() for name, value in net().state_dict().items()}
    torch.save(state, tmp_path / "arrays.pt")
    with (
        zipfile.ZipFile(save(tmp_path / "a.pt", net().state_dict())) as old,
        zipfile.ZipFile(tmp_path / "deflated.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    for name in ("arrays.pt", "deflated.pt"):
        with pytest.raises(UnsupportedFileError, match=r"'bn1.running_mean' lies within a pickle"):
            calibrate_file(tmp_path / name, options=options(never))


def test_a_model_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, [], model=lambda: nn.BatchNorm2d(3))

    assert "does not fit the model" in str(error)


def test_outputs_are_refused_before_anything_runs(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", net().state_dict())
    save(tmp_path / "a.calibrated.pt", {})
    for output, words in (
        (path, "is the input"),
        (tmp_path / "b.safetensors", "the result is of the format of the input"),
        (None, "exists already"),
        (tmp_path / "none/b.pt", "its folder does not exist"),
    ):
        with pytest.raises(Exception, match=words):
            calibrate_file(path, output, options=options([], force=output == path))
