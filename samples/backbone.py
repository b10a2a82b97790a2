"""A small residual backbone in plain PyTorch whose normalisation layer can be chosen.

    Backbone()                                  # BatchNorm2d, to train from scratch
    Backbone(norm_layer=FrozenBatchNorm2d)      # from frozenbn_cli.nn, to fine-tune

Both have the same names for the same weights, so that the state dict of one loads into the other.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

__all__ = ["Backbone", "Bottleneck", "ConvNormAct", "NormLayer", "SqueezeExcite"]

NormLayer = Callable[[int], nn.Module]


class ConvNormAct(nn.Sequential):
    """Convolution, normalisation, activation: (N, in, H, W) → (N, out, H / stride, W / stride)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        norm_layer: NormLayer,
        stride: int = 1,
        act: bool = True,
    ) -> None:
        super().__init__()
        # The normalisation subtracts a mean, so a bias of the convolution would have no effect.
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False
        )
        self.norm = norm_layer(out_channels)
        self.act = nn.ReLU(inplace=True) if act else nn.Identity()


class SqueezeExcite(nn.Module):
    """Weigh each channel by what the whole map shows; keeps the shape."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, input: Tensor) -> Tensor:
        gate: Tensor = self.gate(input)
        return input * gate


class Bottleneck(nn.Module):
    """Residual block: 1x1 to few channels, 3x3 there, 1x1 back, squeeze-and-excitation, sum."""

    def __init__(
        self, in_channels: int, out_channels: int, *, norm_layer: NormLayer, stride: int = 1
    ) -> None:
        super().__init__()
        width = out_channels // 3
        self.reduce = ConvNormAct(in_channels, width, 1, norm_layer=norm_layer)
        self.spatial = ConvNormAct(width, width, 3, norm_layer=norm_layer, stride=stride)
        self.expand = ConvNormAct(width, out_channels, 1, norm_layer=norm_layer, act=False)
        self.excite = SqueezeExcite(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = ConvNormAct(
                in_channels, out_channels, 1, norm_layer=norm_layer, stride=stride, act=False
            )
        self.act = nn.ReLU(inplace=True)

    def forward(self, input: Tensor) -> Tensor:
        residual = self.excite(self.expand(self.spatial(self.reduce(input))))
        output: Tensor = self.act(residual + self.shortcut(input))
        return output


class Backbone(nn.Module):
    """Classify one-channel 8x8 images: (N, 1, 8, 8) → logits of shape (N, classes).

    Args:
        classes: How many logits there are for each image.
        norm_layer: Makes the normalisation of a given number of channels.
    """

    def __init__(self, classes: int = 10, norm_layer: NormLayer = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem = ConvNormAct(1, 24, 3, norm_layer=norm_layer)
        self.stage1 = _stage(24, 48, stride=1, norm_layer=norm_layer)  # 8x8
        self.stage2 = _stage(48, 96, stride=2, norm_layer=norm_layer)  # 4x4
        self.stage3 = _stage(96, 192, stride=2, norm_layer=norm_layer)  # 2x2
        self.norm = norm_layer(192)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(192, classes)

    def forward(self, input: Tensor) -> Tensor:
        features = self.norm(self.stage3(self.stage2(self.stage1(self.stem(input)))))
        logits: Tensor = self.classifier(self.pool(features).flatten(1))
        return logits


def _stage(
    in_channels: int, out_channels: int, *, stride: int, norm_layer: NormLayer
) -> nn.Sequential:
    return nn.Sequential(
        Bottleneck(in_channels, out_channels, stride=stride, norm_layer=norm_layer),
        Bottleneck(out_channels, out_channels, norm_layer=norm_layer),
    )
