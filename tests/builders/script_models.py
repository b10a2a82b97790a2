"""Models that TorchScript can script, for archives of every kind.

TorchScript reads the annotations of attributes, which therefore have to be types and no text.
"""

from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.builders.archives import torchscript_allowed


class Chain(nn.Module):
    """A convolution and what follows it."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.rest = nn.Sequential(*modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.conv(x))


class Several(nn.Module):
    """One layer twice, one under two names, and two with the same affine."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.twice = nn.BatchNorm2d(4, eps=1e-3)
        self.first_name = nn.BatchNorm2d(4)
        self.second_name = self.first_name
        self.tied_a = nn.BatchNorm2d(4)
        self.tied_b = nn.BatchNorm2d(4)
        self.tied_b.weight, self.tied_b.bias = self.tied_a.weight, self.tied_a.bias

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(self.conv(x)).relu())
        x = self.second_name(self.first_name(x).relu())
        return self.tied_b(self.tied_a(x).relu())


class SharedBlocks(nn.Module):
    """Layers under two names, one of them further in: a trace hands their tensors around."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.blocks = nn.Sequential(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()))
        self.block = self.blocks[0]
        self.inner = nn.Sequential(nn.BatchNorm2d(4, eps=1e-3))
        self.outer = self.inner[0]

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.blocks(self.conv(x)))
        return self.outer(self.inner(self.outer(x)))


class Containers(nn.Module):
    """Layers in every container, under names that are no identifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.listed = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)])
        self.named = nn.ModuleDict({"b n": nn.BatchNorm2d(4), "a": nn.BatchNorm2d(4)})
        self.nested = nn.Sequential(nn.Sequential(nn.BatchNorm2d(4)), nn.ReLU(), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for layer in self.listed:
            x = layer(x)
        for layer in self.named.values():
            x = layer(x)
        return self.nested(x)


class Dimensions(nn.Module):
    """Layers of all dimensions, whose code shares a file."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.two = nn.BatchNorm2d(4)
        self.three = nn.BatchNorm3d(4)
        self.one = nn.BatchNorm1d(4)
        self.without = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.without(self.two(self.conv(x)))
        return self.one(self.three(x.unsqueeze(2)).squeeze(2).mean((2, 3)))


class NormAndRelu(nn.BatchNorm2d):
    """A user's layer with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(
            x,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            self.training,
            0.1,
            self.eps,
        )
        return F.relu(x)


class ScaledElsewhere(nn.Module):
    """The weight of a layer is a parameter of another module as well."""

    class Scale(nn.Module):
        def __init__(self, weight: nn.Parameter) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x: Tensor) -> Tensor:
            return x * self.weight[:, None, None]

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.scale = self.Scale(self.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.bn(self.conv(x)))


class LargeNumbers(nn.Module):
    """Attributes that take more than 32 bits, and of every plain type."""

    limit: int

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.limit = 2**40
        self.lowest = -(2**62)
        self.sizes = [1, 2**33]
        self.names = {"a": 1.5}
        self.grid = (0.5, "größe")

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        if x.dim() == 3:
            raise ValueError("größer als vier")
        return y + (self.limit - self.lowest + self.sizes[1]) * 0.0 + self.names["a"] + self.grid[0]


class Mentions(nn.Module):
    """Text that reads like the type of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.label = "__torch__.torch.nn.modules.batchnorm.BatchNorm2d"

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            raise ValueError("no __torch__.torch.nn.modules.batchnorm.BatchNorm2d")
        return self.bn(self.conv(x))


class Views(nn.Module):
    """Statistics that are views of one storage, beside a view that stays."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        table = torch.rand(4, 4) + 0.5
        self.bn.running_mean, self.bn.running_var = table[0], table[:, 1]
        self.register_buffer("corner", table[2:, 2:])
        self.bn.num_batches_tracked = torch.tensor([3, 100, 5])[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + self.corner.sum()


class Output(NamedTuple):
    features: Tensor
    pooled: list[Tensor]


class Detector(nn.Module):
    """Nested outputs, and dropout that asks for the flag of its own module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Output:
        x = F.dropout(self.drop(self.bn(self.conv(x))), 0.5, self.training)
        return Output(x, [x.mean((2, 3)), x.amax((2, 3))])


class NeverRun(nn.Module):
    """A layer that forward does not call, so that a trace holds no code of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.unused = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


KEYWORDS = ["from", "lambda", "try", "except", "finally", "yield", "async", "await", "nonlocal"]


def keywords() -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict(head=nn.Conv2d(3, 4, 1))
    layers.update(
        (word, nn.BatchNorm2d(4, eps=10.0**-index)) for index, word in enumerate(KEYWORDS)
    )
    return nn.Sequential(layers)


class OfOneDimension(nn.BatchNorm1d):
    """A user's layer that is no BatchNorm2d, which its name does not say."""

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        return F.batch_norm(x, self.running_mean, self.running_var, training=self.training)


class Pooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.last = OfOneDimension(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.bn(self.conv(x)).mean((2, 3)))


class Named(nn.Module):
    """Layers by names of any kind."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.named = nn.ModuleDict({name: nn.BatchNorm2d(4) for name in names})

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for layer in self.named.values():
            x = layer(x)
        return x


def phrases() -> nn.Module:
    return Named("from scratch", "a-lambda")


with torchscript_allowed():

    @torch.jit.interface
    class OneTensor(nn.Module):
        def forward(self, input: Tensor) -> Tensor:
            pass


class BehindInterface(nn.Module):
    chosen: OneTensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.chosen = nn.BatchNorm2d(4)
        self.other = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.chosen.forward(self.conv(x)))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        count = self.bn.num_batches_tracked
        return self.bn(self.conv(x)) + (0 if count is None else count)


class CountingOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.block = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        count = self.block[1].num_batches_tracked
        return self.block(self.conv(x)) + (0 if count is None else count)


class NormTwice(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias,
                self.training or not self.track_running_stats, 0.1, self.eps,
            )  # fmt: skip
        return self.twice(x)

    @torch.jit.export
    def twice(self, x: Tensor) -> Tensor:
        return x + x if x.dim() == 4 else x


class Fixed(Chain):
    """A tensor that is no parameter and no buffer."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.fixed = torch.arange(4.0)[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.fixed


class DropsToo(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.running_mean, self.running_var, training=self.training)
        return F.dropout(x, 0.5, self.training)


class AddsNoise(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + torch.rand_like(x)
        return F.batch_norm(x, self.running_mean, self.running_var, training=self.training)


class DecidesByWeight(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        live = self.training or bool(self.weight.sum() > 100)
        return F.batch_norm(x, self.running_mean, self.running_var, training=live)


class Borrows(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((0, 2, 3))
        return F.batch_norm(x, mean, self.running_var, training=self.training)


class Forgets(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class CountsTurns(nn.BatchNorm2d):
    """Loops whose turns assign what the next one asks for."""

    def forward(self, x: Tensor) -> Tensor:
        is_first, is_done, is_large = True, False, False
        for _ in range(3):
            if is_first:
                x = F.batch_norm(x, self.running_mean, self.running_var, training=self.training)
            else:
                x = x * 2
            is_first = False
        while not is_done:
            x = x + 1
            is_done = True
        for _ in range(x.size(0) - 4):
            is_large = True
        return x - 3 if is_large else x


class AsksAgain(nn.BatchNorm2d):
    """Branches of the training flag within each other, that come to nothing."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            if self.training:
                print("never")
            if x.dim() == 4:
                if self.training:
                    print("never")
                else:
                    pass
        return F.batch_norm(x, self.running_mean, self.running_var, training=self.training)


class SetsItsFlag(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        self.training = x.dim() == 4
        return F.batch_norm(x, self.running_mean, self.running_var, training=self.training)


class UsesStatistics(nn.Module):
    """Layers of whose statistics others make use."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.by_its_flag = nn.BatchNorm2d(4)
        self.by_another_flag = nn.BatchNorm2d(4)
        self.switched_off = nn.BatchNorm2d(4)
        self.switched = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for_its, for_another = self.by_its_flag, self.by_another_flag
        x = F.batch_norm(x, for_its.running_mean, for_its.running_var, training=for_its.training)
        x = F.batch_norm(
            x, for_another.running_mean, for_another.running_var, training=self.training
        )
        self.switched_off.training = False
        self.switched.training = self.training
        return self.switched(self.switched_off(x))


def doubles(self: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    """A forward hook."""
    return output * 2


class Hooked(nn.Module):
    """A layer with a forward hook, and two modules of one type that have one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.plain, self.hooked = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.first, self.second = nn.Sequential(nn.BatchNorm2d(4)), nn.Sequential(nn.BatchNorm2d(4))
        for module in (self.hooked, self.first, self.second):
            module.register_forward_hook(doubles)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.hooked(self.plain(self.conv(x)))))


class OddOutputs(nn.Module):
    """Outputs whose bits do not lie in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.bn(self.conv(x))
        turned = torch.conj(torch.view_as_complex(torch.stack([x, x * 2], -1)))
        quantized = torch.quantize_per_tensor(x, 0.1, 3, torch.quint8)
        return [x.relu().to_sparse(), turned, turned.imag, quantized, x[:0]]


class Sized(nn.Module):
    """A model that takes images of one size."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.pixels = pixels

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.pixels:
            raise RuntimeError(f"only {self.pixels} pixels")
        return self.bn(self.conv(x))


class TwoInputs(nn.Module):
    """A model with two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.bn(self.conv(x)) + y


class TakesText(nn.Module):
    """A model whose input is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: str) -> Tensor:
        return self.bn(torch.ones(1, 4, len(x), 1))


class Suppressing(nn.Module):
    """A model that needs an operator of torchvision."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        boxes = self.bn(self.conv(x)).mean((2, 3)).abs().cumsum(1)
        return torch.ops.torchvision.nms(boxes, boxes[:, 0], 0.5)


class Writing(nn.Module):
    """A model that writes a file when it runs."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        torch.save(x, self.path)
        return x


class WritingWhenLoaded(nn.Module):
    """A model that writes a file when it is loaded."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        return x.relu()

    @torch.jit.export
    def __getstate__(self) -> str:
        return self.path

    @torch.jit.export
    def __setstate__(self, path: str) -> None:
        self.path = path
        torch.save(torch.ones(1), path)
