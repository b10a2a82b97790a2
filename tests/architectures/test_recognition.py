"""The rule, on an index of a few made-up architectures."""

import random

import pytest

from frozenbn_cli.architectures import Architecture, Candidate, LayerKind, recognise
from frozenbn_cli.architectures.index import Index
from frozenbn_cli.architectures.recognition import RecognisedLayer
from tests.architectures.build_index import index_of

SMALL = {"bn1": 8, "layer1.bn1": 8, "layer1.bn2": 8, "layer2.bn1": 16}
LARGE = {"stem.bn": 8} | {f"stages.{stage}.bn{n}": 8 << stage for stage in range(4) for n in (1, 2)}


def line(
    name: str, layers: dict[str, int], eps: float | dict[str, float] = 1e-3
) -> dict[str, object]:
    """Return an architecture as `collect.py` writes it down."""
    each = eps if isinstance(eps, dict) else dict.fromkeys(layers, eps)
    facts = {layer: [count, each[layer], 0.1, "BatchNorm2d"] for layer, count in layers.items()}
    return {"library": "zoo", "version": "1.0", "name": name, "variants": [facts]}


def found(layers: dict[str, int], *lines: dict[str, object]) -> dict[str, RecognisedLayer]:
    index = index_of(lines or [line("small", SMALL), line("large", LARGE)])
    return recognise(layers, lambda: index)


def under(prefix: str, layers: dict[str, int]) -> dict[str, int]:
    return {prefix + name: channels for name, channels in layers.items()}


def names(layers: dict[str, RecognisedLayer]) -> set[tuple[str, str]]:
    return {
        (item.match.prefix, one.name)
        for item in layers.values()
        for candidate in item.match.candidates
        for one in candidate.architectures
    }


def test_layers_that_are_exactly_those_of_an_architecture_are_recognised() -> None:
    layers = found(dict(reversed(SMALL.items())))

    assert layers.keys() == SMALL.keys()
    assert names(layers) == {("", "small")}
    assert layers["bn1"].kinds == (LayerKind(1e-3, 0.1, "BatchNorm2d"),)
    assert (layers["bn1"].eps, layers["bn1"].momentum, layers["bn1"].spatial_dims) == (1e-3, 0.1, 2)


@pytest.mark.parametrize(
    "other",
    [
        {name: count for name, count in SMALL.items() if name != "layer1.bn2"},
        SMALL | {"neck.bn": 8},
        SMALL | {"bn1": 9},
        {name.replace("layer1", "block1"): count for name, count in SMALL.items()},
    ],
    ids=["one less", "one more", "other channels", "other names"],
)
def test_anything_else_is_not(other: dict[str, int]) -> None:
    assert not found(other)


def test_a_part_of_a_model_is_recognised_under_its_prefix() -> None:
    layers = found(under("module.backbone.", LARGE) | {"module.head.bn": 3})

    assert layers.keys() == under("module.backbone.", LARGE).keys()
    assert names(layers) == {("module.backbone.", "large")}


def test_a_part_of_few_layers_is_not() -> None:
    assert not found(under("backbone.", SMALL) | {"head.bn": 3})


def test_two_parts_are_each_recognised() -> None:
    layers = found(under("student.", LARGE) | under("teacher.", LARGE))

    assert names(layers) == {("student.", "large"), ("teacher.", "large")}


def test_the_outermost_counts() -> None:
    whole = under("body.", LARGE) | {"top.bn": 4}
    layers = found(whole, line("large", LARGE, 1e-3), line("detector", whole, 0.0))

    assert names(layers) == {("", "detector")}
    assert layers["body.stem.bn"].eps == 0


def test_names_that_features_only_flattens_are_read() -> None:
    flat = {name.replace("stages.", "stages_", 1): count for name, count in LARGE.items()}

    assert names(found(flat)) == {("", "large")}
    assert names(found(under("encoder.", flat))) == {("encoder.", "large")}


def test_children_in_a_sequential_are_recognised_with_the_eps_of_each() -> None:
    eps = {name: 1e-3 if name == "stem.bn" else 1e-5 for name in LARGE}
    children = list(dict.fromkeys(name.partition(".")[0] for name in LARGE))
    renamed = {
        f"{children.index(name.partition('.')[0])}.{name.partition('.')[2]}": name for name in LARGE
    }
    layers = found({new: LARGE[old] for new, old in renamed.items()}, line("large", LARGE, eps))

    assert {new: item.eps for new, item in layers.items()} == {
        new: eps[old] for new, old in renamed.items()
    }


def test_layers_that_a_sequential_makes_alike_decide_nothing() -> None:
    alike = {f"{part}.{n}.bn": 8 for part in ("left", "right") for n in range(4)}
    eps = {name: 1e-3 if name.startswith("left") else 1e-5 for name in alike}
    renamed = {name.replace("left", "0").replace("right", "1"): 8 for name in alike}

    assert found(alike, line("pair", alike, eps))
    assert not found(renamed, line("pair", alike, eps))


def test_candidates_that_differ_decide_what_they_agree_on() -> None:
    other = dict.fromkeys(SMALL, 1e-3) | {"layer2.bn1": 1e-5}
    layers = found(SMALL, line("one", SMALL, 1e-3), line("other", SMALL, other))

    assert layers["bn1"].eps == 1e-3
    assert layers["layer2.bn1"].eps is None
    assert layers["layer2.bn1"].momentum == 0.1
    assert layers["layer2.bn1"].by_eps == {1e-3: "zoo one (1.0)", 1e-5: "zoo other (1.0)"}


def test_random_networks_are_not_recognised() -> None:
    draw = random.Random(0)
    for _ in range(200):
        layers = {
            f"{draw.choice(['', 'features.', 'layer1.', 'stages.0.'])}{n}.bn{draw.randint(1, 3)}": (
                draw.choice([16, 32, 64, 128])
            )
            for n in range(draw.randint(1, 60))
        }
        assert not recognise(layers)


def test_few_layers_do_not_open_the_index() -> None:
    def index() -> Index:
        raise AssertionError("opened")

    assert not recognise(dict.fromkeys("abc", 8), index)


def test_the_same_layers_of_several_architectures_are_one_candidate() -> None:
    newer = line("small", SMALL) | {"version": "1.10"}
    old = line("older", SMALL) | {"version": "1.9"}
    match = found(SMALL, old, newer, line("small_d", SMALL) | {"version": "1.10"})["bn1"].match

    assert match.candidates == (
        Candidate(
            (Architecture("zoo", "1.10", "small"), Architecture("zoo", "1.10", "small_d")),
            (LayerKind(1e-3, 0.1, "BatchNorm2d"),) * 4,
        ),
    )
    assert str(match.candidates[0]) == "zoo small (1.10) and 1 more"


def test_a_class_that_is_no_batch_norm_is_named() -> None:
    other = line("old", SMALL, 1e-5)
    (variant,) = other["variants"]  # type: ignore[misc]
    other["variants"] = [{name: [*facts[:3], "InplaceAbn"] for name, facts in variant.items()}]  # type: ignore[has-type]
    layer = found(SMALL, line("new", SMALL, 1e-5), other)["bn1"]

    assert layer.eps == 1e-5
    assert layer.spatial_dims is None
    assert layer.not_batch_norm == ("InplaceAbn in zoo old (1.0)",)


def test_an_old_version_with_another_eps_makes_it_ambiguous() -> None:
    old = line("small", SMALL, 1e-5) | {"version": "0.9"}
    layers = found(SMALL, line("small", SMALL), old)

    assert layers["bn1"].eps is None
    assert list(layers["bn1"].by_eps) == [1e-3, 1e-5]
