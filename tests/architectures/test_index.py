"""The index that the package carries, against the libraries that it was made of."""

import importlib
from pathlib import Path

import pytest
import torch
import torchvision

from frozenbn_cli.architectures import Architecture, recognise
from frozenbn_cli.architectures.index import INDEX_PATH, Index
from frozenbn_cli.checkpoints import open_checkpoint
from tests.architectures.build_index import kind_of
from tests.architectures.collect import Layers, layers_of, variants, without_memory
from tests.builders.marks import slow_except
from tests.conversion.test_real_weights import LITE0

SMALL = {
    "torchvision": """alexnet densenet121 efficientnet_b0 googlenet lraspp_mobilenet_v3_large
        mnasnet0_5 mobilenet_v2 mobilenet_v3_large mobilenet_v3_small r3d_18 regnet_x_400mf
        regnet_y_400mf resnet18 resnet50 shufflenet_v2_x1_0 squeezenet1_0 vgg11_bn
        ssdlite320_mobilenet_v3_large""",
    "timm": """convmixer_768_32 cspresnet50 efficientnet_lite0 fbnetc_100 ghostnet_100 hardcorenas_a
        hrnet_w18_small inception_v3 lcnet_050 levit_128s mixnet_s mnasnet_small mobilenetv2_050
        mobilenetv3_small_050 mobileone_s0 mobilevit_xxs regnetx_002 repvgg_a0 resnet10t resnet18
        resnetv2_50d rexnet_100 selecsls42b semnasnet_050 tf_efficientnet_b0 tf_mixnet_s
        tinynet_e vovnet39a xcit_nano_12_p16_224""",
}


def built(library: str, name: str) -> list[Layers]:
    """Return the layers of an architecture of an installed library."""
    version = importlib.import_module(library).__version__.partition("+")[0]
    if f"{library} {version}" not in Index.installed().libraries:
        pytest.skip(f"the index was not made of {library} {version}")
    return list(variants(library, name))


@pytest.mark.parametrize("library", slow_except("timm", SMALL))
def test_it_says_what_the_libraries_say(library: str) -> None:
    known = set(importlib.import_module("tests.architectures.collect").architectures(library))
    compared = 0
    for name in SMALL[library].split():
        if name not in known:
            continue
        for layers in built(library, name):
            if len(layers) >= 4:
                found = recognise({layer: facts[0] for layer, facts in layers.items()})
                truth = {layer: kind_of(facts) for layer, facts in layers.items()}
                assert found.keys() == truth.keys(), name
                assert all(truth[layer] in item.kinds for layer, item in found.items()), name
                compared += 1
    assert compared >= 15


def test_it_is_small_and_says_what_it_is_made_of() -> None:
    libraries = {line.split(" ")[0] for line in Index.installed().libraries}

    assert INDEX_PATH.stat().st_size < 64 * 1024
    assert libraries == {"timm", "torchvision"}
    assert len(Index.installed().architectures) > 800


def test_what_is_written_is_read(tmp_path: Path) -> None:
    Index.installed().write(tmp_path / "index")

    assert (tmp_path / "index").read_bytes() == INDEX_PATH.read_bytes()
    assert Index.read(tmp_path / "index").architectures == Index.installed().architectures


def test_mobilenet_v3_large_has_its_eps() -> None:
    (layers,) = built("torchvision", "mobilenet_v3_large")
    found = recognise({name: facts[0] for name, facts in layers.items()})

    assert {(item.eps, item.momentum) for item in found.values()} == {(1e-3, 0.01)}
    (first,) = next(iter(found.values())).match.firsts
    assert (first.library, first.name) == ("torchvision", "mobilenet_v3_large")


def test_efficientnet_b0_is_ambiguous() -> None:
    (layers,) = built("timm", "efficientnet_b0")
    found = recognise({name: facts[0] for name, facts in layers.items()})

    assert {item.eps for item in found.values()} == {None}
    assert list(found["bn1"].by_eps) == [1e-5, 1e-3]
    names = {one.name for one in found["bn1"].match.firsts}
    assert names == {"efficientnet_b0", "tf_efficientnet_b0"}


def test_a_resnet50_with_a_block_less_is_none() -> None:
    with without_memory():
        layers = layers_of(torchvision.models.resnet50())
    channels = {name: facts[0] for name, facts in layers.items()}
    short = {name: count for name, count in channels.items() if not name.startswith("layer3.5")}

    assert recognise(channels)
    assert not recognise(short)
    assert not recognise({f"backbone.{name}": count for name, count in short.items()})


def test_a_library_outside_the_index_matches_nothing() -> None:
    with without_memory():
        layers = layers_of(
            torch.nn.Sequential(*(torch.nn.BatchNorm2d(8 * count) for count in range(1, 40)))
        )
    with open_checkpoint(LITE0) as checkpoint:
        names = [name for name in checkpoint.entries if name.endswith("running_mean")]
        lite0 = {name.rpartition(".")[0]: checkpoint.entries[name].elements for name in names}

    assert not recognise({name: facts[0] for name, facts in layers.items()})
    assert len(lite0) == 49
    assert not recognise(lite0)


def test_older_names_are_those_of_the_newest_version_that_has_them() -> None:
    versions = {one.version for one in Index.installed().architectures if one.name == "resnet50"}

    assert Architecture("timm", "1.0.31", "resnet50") in Index.installed().architectures
    assert versions == {"0.29.1", "1.0.31"}
