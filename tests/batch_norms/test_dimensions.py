"""How many dimensions a BatchNorm has: what proves it, and what only seems to."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm

from frozenbn_cli.batch_norms.dimensions import Surroundings

Dims = dict[str, int | None]


def named(**children: nn.Module) -> nn.Module:
    return nn.Sequential(OrderedDict(children))


def conv(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3)


def bn(channels: int = 8) -> nn.Module:
    return nn.BatchNorm2d(channels)


def dims_of(model: nn.Module, order: str = "file") -> Dims:
    state = model.state_dict()
    names = list(state)
    if order == "sorted":
        names.sort()
    elif order == "shuffled":
        random.Random(1).shuffle(names)
    layers = {
        name: module.num_features
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    surroundings = Surroundings({name: tuple(state[name].shape) for name in names}, layers)
    return {name: surroundings.dims_of(name)[0] for name in layers}


class Conditional(nn.Module):
    """A normalisation whose scale and shift are made from a class or a style."""

    def __init__(self, make: Callable[[], nn.Module], *, first: bool) -> None:
        super().__init__()
        if first:
            self.gamma, self.beta = make(), make()
        self.bn = nn.BatchNorm2d(8, affine=False)
        if not first:
            self.gamma, self.beta = make(), make()


class Kernel(nn.Module):
    """A convolution that stores its weight in a way of its own."""

    def __init__(self, name: str, *shape: int) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


class Points(nn.Module):
    """PointNet: all convolutions come first, then all linear layers, then all BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 64, 1), nn.Conv2d(64, 128, 1)
        self.fc1, self.fc2 = nn.Linear(128, 32), nn.Linear(32, 16)
        self.bn1, self.bn2 = nn.BatchNorm2d(64), nn.BatchNorm2d(128)
        self.bn3, self.bn4 = nn.BatchNorm1d(32), nn.BatchNorm1d(16)


def body(channels: int = 8) -> nn.Module:
    return nn.Sequential(
        nn.Sequential(conv(3, channels), bn(channels), conv(channels, channels)),
        nn.Sequential(conv(channels, channels), bn(channels)),
    )


BODY: Dims = {"body.0.1": 2, "body.1.1": 2}
Case = tuple[Callable[[], nn.Module], Dims]
PROVED: dict[str, Case] = {
    "beside a convolution": (lambda: named(conv=conv(3, 8), bn=bn()), {"bn": 2}),
    "beside a convolution and a classifier": (
        lambda: named(conv=conv(3, 8), bn=bn(), fc=nn.Linear(8, 2)),
        {"bn": 2},
    ),
    "pruned": (
        lambda: named(
            conv=prune.l1_unstructured(conv(3, 8), "weight", 0.5), bn=bn(), fc=nn.Linear(8, 2)
        ),
        {"bn": 2},
    ),
    "spectral norm by a hook": (
        lambda: named(conv=spectral_norm(conv(3, 8)), bn=bn(), fc=nn.Linear(8, 2)),
        {"bn": 2},
    ),
    "spectral norm": (
        lambda: named(conv=parametrizations.spectral_norm(conv(3, 8)), bn=bn(), fc=nn.Linear(8, 2)),
        {"bn": 2},
    ),
    "weight norm": (
        lambda: named(conv=parametrizations.weight_norm(conv(3, 8)), bn=bn(), fc=nn.Linear(8, 2)),
        {"bn": 2},
    ),
    "weight norm of a linear layer": (
        lambda: named(fc=parametrizations.weight_norm(nn.Linear(3, 8)), bn=nn.BatchNorm1d(8)),
        {"bn": 1},
    ),
    "a concatenation that a convolution takes": (
        lambda: named(conv=conv(3, 8), norm=bn(11), next=conv(11, 2)),
        {"norm": 2},
    ),
    "text: convolutions, then a recurrent layer": (
        lambda: named(
            cnn=named(conv0=conv(1, 8), batchnorm0=bn()),
            rnn=nn.Sequential(nn.LSTM(8, 8), nn.Linear(16, 5)),
        ),
        {"cnn.batchnorm0": 2},
    ),
    "nothing but linear layers": (
        lambda: named(bn=nn.BatchNorm1d(13), fc=nn.Linear(13, 8), bn2=nn.BatchNorm1d(8)),
        {"bn": 1, "bn2": 1},
    ),
    "a projector": (
        lambda: named(
            body=body(4),
            projector=nn.Sequential(
                nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.BatchNorm1d(8, affine=False)
            ),
        ),
        {**BODY, "projector.1": 1, "projector.3": 1},
    ),
    "sparse, of MinkowskiEngine": (
        lambda: named(conv=Kernel("kernel", 27, 3, 8), norm=named(bn=nn.BatchNorm1d(8))),
        {"norm.bn": 1},
    ),
    "sparse, of spconv 2": (
        lambda: named(conv=Kernel("weight", 16, 3, 3, 3, 8), bn=nn.BatchNorm1d(16)),
        {"bn": 1},
    ),
    "sparse and flat, of spconv 2": (
        lambda: named(conv=Kernel("weight", 16, 3, 3, 16), bn=nn.BatchNorm1d(16)),
        {"bn": 1},
    ),
    "sparse, of spconv 1": (
        lambda: named(conv=Kernel("weight", 3, 3, 3, 8, 16), bn=nn.BatchNorm1d(16)),
        {"bn": 1},
    ),
    "a kernel as TensorFlow stores it": (
        lambda: named(conv=Kernel("kernel", 3, 3, 3, 16), bn=bn(16)),
        {"bn": 2},
    ),
    "a kernel as PyTorch stores it": (
        lambda: named(conv=Kernel("kernel", 16, 3, 3, 3), bn=bn(16)),
        {"bn": 2},
    ),
    "electrodes: a kernel along time": (
        lambda: named(conv=nn.Conv2d(1, 8, (1, 64)), bn=bn()),
        {"bn": 2},
    ),
    "a transposed convolution behind": (
        lambda: named(fc=nn.Linear(5, 8 * 16), bn=bn(), up=nn.ConvTranspose2d(8, 4, 4)),
        {"bn": 2},
    ),
}
UNKNOWN: dict[str, Case] = {
    "skeletons: joints times channels": (
        lambda: named(data_bn=nn.BatchNorm1d(54), conv=conv(3, 64), bn=bn(64)),
        {"data_bn": None, "bn": 2},
    ),
    "a neck with its classifier": (
        lambda: named(body=body(), bottleneck=nn.BatchNorm1d(8), classifier=nn.Linear(8, 2)),
        {**BODY, "bottleneck": None},
    ),
    "a neck without": (
        lambda: named(body=body(), bottleneck=nn.BatchNorm1d(8)),
        {**BODY, "bottleneck": None},
    ),
    "a neck behind convolutions without norms": (
        lambda: named(
            features=nn.Sequential(conv(3, 8), conv(8, 8)),
            neck=nn.BatchNorm1d(8),
            fc=nn.Linear(8, 2),
        ),
        {"neck": None},
    ),
    "a last norm before pooling": (
        lambda: named(body=body(), norm=bn(), fc=nn.Linear(8, 2)),
        {**BODY, "norm": None},
    ),
    "a concatenation that a classifier takes": (
        lambda: named(conv=conv(3, 8), norm=bn(11), fc=nn.Linear(11, 2)),
        {"norm": None},
    ),
    "before a flatten": (
        lambda: named(
            body=body(),
            output=nn.Sequential(bn(), nn.Flatten(), nn.Linear(8 * 49, 8), nn.BatchNorm1d(8)),
        ),
        {**BODY, "output.0": None, "output.3": 1},
    ),
    "conditional, by linear layers": (
        lambda: named(cbn=Conditional(lambda: nn.Linear(5, 8), first=False), out=conv(6, 3)),
        {"cbn.bn": None},
    ),
    "conditional, by linear layers that come first": (
        lambda: named(cbn=Conditional(lambda: nn.Linear(5, 8), first=True), out=conv(6, 3)),
        {"cbn.bn": None},
    ),
    "conditional, by embeddings": (
        lambda: named(cbn=Conditional(lambda: nn.Embedding(5, 8), first=False), out=conv(6, 3)),
        {"cbn.bn": None},
    ),
    "conditional, by embeddings of as many classes": (
        lambda: named(cbn=Conditional(lambda: nn.Embedding(8, 8), first=True), out=conv(6, 3)),
        {"cbn.bn": None},
    ),
}


@pytest.mark.parametrize("order", ["file", "sorted", "shuffled"])
@pytest.mark.parametrize("case", [*PROVED, *UNKNOWN])
def test_tells_what_is_proved_and_nothing_else(case: str, order: str) -> None:
    make, expected = (PROVED | UNKNOWN)[case]

    assert dims_of(make(), order) == expected


IN_ORDER: dict[str, Case] = {
    "PointNet": (Points, {"bn1": 2, "bn2": 2, "bn3": 1, "bn4": 1}),
    "before and behind a flatten": (
        lambda: named(
            layer4=named(conv=conv(3, 8), bn=bn()),
            bn2=bn(),
            fc=nn.Linear(8 * 49, 8),
            features=nn.BatchNorm1d(8),
        ),
        {"layer4.bn": 2, "bn2": None, "features": 1},
    ),
    "convolutions in one list, norms in another": (
        lambda: named(convs=nn.Sequential(conv(3, 8), conv(8, 8)), bns=nn.Sequential(bn(), bn())),
        {"bns.0": 2, "bns.1": 2},
    ),
    "a gate between convolution and norm": (
        lambda: named(conv=conv(3, 8), se=nn.Sequential(nn.Linear(8, 2), nn.Linear(2, 8)), bn=bn()),
        {"bn": 2},
    ),
}


@pytest.mark.parametrize("case", IN_ORDER)
def test_the_order_of_the_file_settles_more(case: str) -> None:
    make, expected = IN_ORDER[case]

    assert dims_of(make()) == expected
    for order in ("sorted", "shuffled"):  # Less may be known then, and nothing else.
        found = dims_of(make(), order)
        assert all(dims in (None, expected[name]) for name, dims in found.items())


@pytest.mark.parametrize("order", ["file", "sorted", "shuffled"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "r3d_18", "densenet121"])
def test_knows_every_layer_of_a_public_model(name: str, order: str) -> None:
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)

    found = dims_of(model, order)

    # The last norm of a DenseNet, before its pooling, has no convolution of as many channels.
    assert found.pop("features.norm5", None) is None
    assert set(found.values()) == {3 if name == "r3d_18" else 2}
