"""DETR as transformers has it, where that is installed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from frozenbn_cli import convert_bn_to_frozen, convert_file, convert_frozen_to_bn, load_frozen
from tests.builders.files import save
from tests.builders.models import perturb

transformers: Any = pytest.importorskip("transformers")


def detr() -> nn.Module:
    backbone = transformers.ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        encoder_layers=1,
        decoder_layers=1,
        d_model=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=5,
    )
    model: nn.Module = transformers.DetrForObjectDetection(config)
    return model.eval()


def logits(model: nn.Module) -> torch.Tensor:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found: torch.Tensor = model(pixel_values=image).logits
    return found


def test_detr_is_thawed_converted_and_frozen_again(tmp_path: Path) -> None:
    live = perturb(convert_frozen_to_bn(detr())).eval()
    count = sum(type(layer) is nn.BatchNorm2d for layer in live.modules())
    assert count == 12

    frozen = convert_bn_to_frozen(copy.deepcopy(live))
    result = convert_file(save(tmp_path / "a.pt", live.state_dict()))
    loaded = load_frozen(detr(), result.output_path, with_report=True)

    assert torch.equal(logits(frozen), logits(live))
    assert len(loaded.frozen) == count
    assert not loaded.live
    # The layers of DETR itself, which were frozen already, multiply and add.
    torch.testing.assert_close(logits(loaded.model), logits(live), rtol=1e-5, atol=1e-6)
