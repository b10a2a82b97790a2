"""Checkpoints made by the packages that people train with; skipped where one is not installed.

To run them all: a throw-away environment with ultralytics, lightning, fastai, mmengine,
transformers and segmentation-models-pytorch beside the test requirements.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from frozenbn_cli import ConvertOptions, convert_file, load_frozen
from frozenbn_cli.selection import Selection
from tests.builders.models import perturb

pytestmark = pytest.mark.filterwarnings("ignore")


def trained(model: Any) -> Any:
    perturb(model)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            assert layer.num_batches_tracked is not None
            layer.num_batches_tracked.fill_(9999)
    return model.eval()


def layers_of(model: nn.Module) -> set[str]:
    return {name for name, layer in model.named_modules() if type(layer) is nn.BatchNorm2d}


def converted(path: Path, model: nn.Module, output: Path, **options: Any) -> None:
    """Convert, with every layer of ``model`` frozen, and load the result into a copy of it."""
    result = convert_file(path, output, options=ConvertOptions(**options))

    assert {item.layer.name for item in result.plan.frozen} == layers_of(model)
    frozen = load_frozen(copy.deepcopy(model), output)
    for name, value in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(frozen.state_dict()[name], value), name


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "frozen.safetensors"


def test_timm(tmp_path: Path, output: Path) -> None:
    timm = pytest.importorskip("timm")
    model = trained(timm.create_model("resnet18"))
    ema = timm.utils.ModelEmaV3(model)
    torch.save(
        {"state_dict": model.state_dict(), "state_dict_ema": ema.state_dict(), "arch": "resnet18"},
        tmp_path / "last.pth.tar",
    )

    for key in ("state_dict", "state_dict_ema"):
        converted(tmp_path / "last.pth.tar", model, output, key=key, force=True)


def test_torchvision(tmp_path: Path, output: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    model = trained(torchvision.models.mobilenet_v3_small())
    torch.save({"model": nn.DataParallel(model).state_dict(), "epoch": 1}, tmp_path / "a.pth")

    converted(tmp_path / "a.pth", model, output)


def test_ultralytics(tmp_path: Path, output: Path) -> None:
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    model = trained(tasks.DetectionModel("yolov8n.yaml", verbose=False))
    torch.save({"epoch": -1, "model": model, "ema": None, "train_args": {}}, tmp_path / "best.pt")

    converted(tmp_path / "best.pt", model, output)


def test_lightning(tmp_path: Path, output: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))

    module = Module()
    trainer = lightning.Trainer(max_epochs=0, logger=False, accelerator="cpu")
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "last.ckpt")

    converted(tmp_path / "last.ckpt", module, output)
    converted(tmp_path / "last.ckpt", module.model, output, strip_prefix="model.", force=True)


class Items(list[Any]):
    """A data set that fastai can export."""

    def new_empty(self) -> Items:
        return self


def test_fastai(tmp_path: Path, output: Path) -> None:
    learner_module = pytest.importorskip("fastai.learner")
    loaders = pytest.importorskip("fastai.data.core").DataLoaders
    items = Items([(torch.ones(3, 8, 8), 0)] * 4)
    data = loaders.from_dsets(items, items, bs=2)
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    learner = learner_module.Learner(data, model, loss_func=nn.CrossEntropyLoss(), path=tmp_path)
    saved = learner.save("stage-1")
    learner.export("export.pkl")

    converted(Path(saved), model, output)
    converted(tmp_path / "export.pkl", model, output, force=True)


def test_mmengine(tmp_path: Path, output: Path) -> None:
    runner = pytest.importorskip("mmengine.runner")
    config = pytest.importorskip("mmengine.config")
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    checkpoint = {
        "meta": {"cfg": config.Config({"model": {"type": "A"}}), "epoch": 3},
        "state_dict": model.state_dict(),
        "message_hub": config.ConfigDict(a=1),
    }
    runner.save_checkpoint(checkpoint, str(tmp_path / "epoch_3.pth"))

    converted(tmp_path / "epoch_3.pth", model, output)


@pytest.mark.parametrize("size", ["1GB", "10KB"])
def test_transformers(tmp_path: Path, output: Path, size: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
    )
    model = trained(transformers.ResNetModel(config))
    model.save_pretrained(tmp_path / "hub", max_shard_size=size)

    converted(tmp_path / "hub", model, output)


def test_segmentation_models(tmp_path: Path, output: Path) -> None:
    smp = pytest.importorskip("segmentation_models_pytorch")
    model = trained(smp.Unet("resnet18", encoder_weights=None))
    model.save_pretrained(tmp_path / "hub")
    torch.save(model.state_dict(), tmp_path / "a.pth")

    converted(tmp_path / "hub", model, output)
    converted(tmp_path / "a.pth", model, output, force=True)


def test_a_zoo_of_detectron2(tmp_path: Path, output: Path) -> None:
    """As its zoo is written: a pickle of NumPy arrays without counts."""
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)))
    arrays = {
        name: value.numpy()
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    content = {"model": arrays, "__author__": "Detectron2 Model Zoo"}
    (tmp_path / "model_final.pkl").write_bytes(pickle.dumps(content))

    converted(tmp_path / "model_final.pkl", model, output)
    said = Selection(include=("1",))
    converted(tmp_path / "model_final.pkl", model, output, force=True, selection=said)
