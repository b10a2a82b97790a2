"""Archives of what torchvision and timm offer, scripted and traced, with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from tests.archives import (
    assert_freezes,
    assert_same_behaviour,
    claims,
    convert,
    load,
    script,
    trace,
)
from tests.models import build
from tests.test_zoo import (
    TIMM_NAMES,
    TIMM_PIXELS,
    TORCHVISION_PIXELS,
    build_detector,
    build_torchvision,
    image,
)

HOWS = ["scripted", "traced"]
TORCHVISION_NAMES = """
    convnext_tiny densenet121 efficientnet_b0 efficientnet_b1 efficientnet_v2_s googlenet
    inception_v3 maxvit_t mnasnet0_5 mnasnet1_0 mobilenet_v2 mobilenet_v3_large
    mobilenet_v3_small regnet_x_400mf regnet_x_800mf regnet_y_400mf regnet_y_800mf resnet18
    resnet34 resnet50 resnext50_32x4d shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5
    vgg11_bn vgg13_bn
""".split()  # noqa: SIM905
