"""A file whose layers are those of a public architecture: what every command makes of it."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import timm
import torch
import torchvision
from torch import nn

from frozenbn_cli import ConvertOptions, convert_file, load_frozen, verify_files
from frozenbn_cli.architectures import (
    Architecture,
    Candidate,
    LayerKind,
    Match,
    RecognisedLayer,
)
from frozenbn_cli.batch_norms.batch_norm import Eps, find_batch_norms
from frozenbn_cli.batch_norms.findings import Finding
from frozenbn_cli.batch_norms.plan import Plan, make_plan
from frozenbn_cli.batch_norms.record import ConversionRecord
from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.cli import run
from frozenbn_cli.inspection import inspect_file
from frozenbn_cli.selection import Selection
from tests.builders.files import State, batch_norm, layers_like, nested, save

SCHEMA = json.loads(
    (Path(__file__).parents[1] / "frozenbn_cli/reports/schema.json").read_text(encoding="utf-8")
)
MOBILENET = "torchvision mobilenet_v3_small (0.29.1)"


def mobilenet() -> nn.Module:
    with torch.device("meta"):
        return torchvision.models.mobilenet_v3_small()


def efficientnet(name: str = "efficientnet_b0") -> nn.Module:
    with torch.device("meta"):
        model: nn.Module = timm.create_model(name)
        return model


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """Return the layers of torchvision's mobilenet_v3_small, whose eps is 0.001."""
    return save(tmp_path / "plain.pth", layers_like(mobilenet()))


@pytest.fixture
def ambiguous(tmp_path: Path) -> Path:
    """Return the layers of efficientnet_b0, and of tf_efficientnet_b0."""
    return save(tmp_path / "ambiguous.pth", layers_like(efficientnet()))


def plan_of(path: Path, **options: object) -> Plan:
    (part,) = inspect_file(path, **options).state_dicts  # type: ignore[arg-type]
    return part.plan


def eps_of(plan: Plan) -> set[Eps]:
    return {item.layer.eps for item in plan.layers}


def findings_of(plan: Plan, code: str) -> list[Finding]:
    return [finding for item in plan.layers for finding in item.findings if finding.code == code]


def record_of(path: Path) -> ConversionRecord:
    with open_checkpoint(path) as checkpoint:
        record = ConversionRecord.from_metadata(checkpoint.metadata)
    assert record
    return record


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run(list(map(str, arguments))) == 0
    return capsys.readouterr().out


# What is known of a layer, and where from


def test_the_architecture_gives_eps_momentum_and_dimensions(plain: Path) -> None:
    plan = plan_of(plain)
    layer = plan.layers[0].layer

    assert eps_of(plan) == {Eps(1e-3, "recognised")}
    assert (layer.momentum, layer.momentum_source) == (0.01, "recognised")
    assert (layer.spatial_dims, layer.dims_source) == (2, MOBILENET)
    assert len(plan.matches) == 1


def test_the_file_alone_counts_where_that_is_asked_for(plain: Path) -> None:
    plan = plan_of(plain, may_recognise=False)

    assert eps_of(plan) == {Eps(1e-5, "assumed")}
    assert {item.layer.momentum for item in plan.layers} == {None}
    assert not plan.matches


def test_what_the_file_says_counts_for_more(tmp_path: Path) -> None:
    model = torchvision.models.mobilenet_v3_small(norm_layer=nn.BatchNorm2d)
    plan = plan_of(save(tmp_path / "module.pth", model))

    assert eps_of(plan) == {Eps(1e-5, "read")}


def test_a_given_eps_counts_for_more_with_a_note(plain: Path) -> None:
    plan = plan_of(plain, eps=1e-5)
    (note, *_) = findings_of(plan, "eps_contradicts")

    assert eps_of(plan) == {Eps(1e-5, "given")}
    assert note.severity == "note"
    assert note.message == f"eps is given 1e-05; it is 0.001 in {MOBILENET}"
    assert not findings_of(plan_of(plain, eps=1e-3), "eps_contradicts")


def test_a_wrapped_and_a_partial_model_are_recognised(tmp_path: Path) -> None:
    layers = layers_like(mobilenet())
    state = {f"module.backbone.{name}": tensor for name, tensor in layers.items()}
    state |= nested(**{"module.head.bn": batch_norm(5)})
    plan = plan_of(save(tmp_path / "detector.pth", state))

    assert eps_of(plan) == {Eps(1e-3, "recognised"), Eps(1e-5, "assumed")}
    assert [(match.prefix, len(match.layers)) for match in plan.matches] == [("backbone.", 34)]


def test_a_few_batches_are_judged_by_the_momentum_of_the_architecture(tmp_path: Path) -> None:
    state = layers_like(mobilenet())
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(50)
        if name.endswith("running_var"):  # Of the 1 that each began with, 0.61 is left.
            tensor.add_(1)
    path = save(tmp_path / "young.pth", state)
    (found, *_) = findings_of(plan_of(path), "hardly_formed")

    assert found.message.endswith("61% of their initial value is left (momentum recognised 0.01)")
    assert not findings_of(plan_of(path, may_recognise=False), "hardly_formed")


def test_a_1d_head_of_an_architecture_is_left_alone(tmp_path: Path) -> None:
    plan = plan_of(save(tmp_path / "repvit.pth", layers_like(efficientnet("repvit_m1"))))
    dims = [item.layer.spatial_dims for item in plan.layers]

    assert set(dims) == {1, 2}
    assert [item.action for item in plan.layers] == [
        "freeze" if count == 2 else "leave" for count in dims
    ]


@pytest.mark.parametrize("classes", [["InplaceAbn"], ["BatchNorm2d", "InplaceAbn"]])
def test_a_class_that_is_no_batch_norm_is_left_alone_or_named(
    tmp_path: Path, classes: list[str]
) -> None:
    kinds = tuple(LayerKind(1e-5, 0.1, name) for name in classes)
    candidates = tuple(
        Candidate((Architecture("zoo", "1.0", kind.class_name.lower()),), (kind,)) for kind in kinds
    )
    known = RecognisedLayer(Match("", ("bn",), candidates), kinds)
    with open_checkpoint(save(tmp_path / "a.pth", nested(bn=batch_norm(4)))) as checkpoint:
        (layer,) = find_batch_norms(checkpoint.state_dict())
        (found,) = make_plan([replace(layer, recognised=known)], Selection()).layers
    (note,) = (item for item in found.findings if item.code == "class_ambiguous")

    assert note.message == "InplaceAbn in zoo inplaceabn (1.0), which is no BatchNorm"
    assert (found.action, found.reason) == (
        ("leave", "InplaceAbn in zoo inplaceabn (1.0), no BatchNorm")
        if len(classes) == 1
        else ("freeze", None)
    )


# Several architectures


def test_architectures_that_differ_in_eps_leave_it_assumed_and_warn(ambiguous: Path) -> None:
    plan = plan_of(ambiguous)
    found = findings_of(plan, "eps_ambiguous")

    assert eps_of(plan) == {Eps(1e-5, "assumed")}
    assert len(found) == len(plan.layers) == 49
    assert {item.severity for item in found} == {"warning"}
    assert "1e-05 in timm efficientnet_b0 (1.0.31) and " in found[0].message
    assert "0.001 in timm tf_efficientnet_b0 (1.0.31) and " in found[0].message
    assert not findings_of(plan, "eps_matters")


def test_the_warning_measures_what_is_at_stake(tmp_path: Path) -> None:
    state: State = layers_like(efficientnet())
    state["bn1.running_var"][3] = 0.0
    plan = plan_of(save(tmp_path / "small.pth", state))
    (found,) = (item for item in findings_of(plan, "eps_ambiguous") if item.factor)

    assert found.factor == pytest.approx(10)


def test_a_given_eps_settles_it(ambiguous: Path) -> None:
    plan = plan_of(ambiguous, eps=1e-3)

    assert eps_of(plan) == {Eps(1e-3, "given")}
    assert not findings_of(plan, "eps_ambiguous")
    assert not findings_of(plan, "eps_contradicts")


def test_an_eps_of_zero_and_variances_of_zero_are_measured(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = torchvision.models.detection.fasterrcnn_resnet50_fpn(
            weights=None, weights_backbone=None
        )
    state = layers_like(model)
    state["backbone.body.bn1.running_var"][0] = 0.0
    found = findings_of(plan_of(save(tmp_path / "detector.pth", state)), "eps_ambiguous")

    assert max(item.factor or 0 for item in found) == float("inf")
    assert " with FrozenBatchNorm2d" in found[0].message


# Reports


def test_inspect_says_what_it_is(plain: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "inspect", plain)

    assert "34 BatchNorm layers (34 2d) · exactly as in torchvision mobilenet_v3_small" in text
    assert f"recognised: 34 layers exactly as in {MOBILENET}; code that changed eps would" in text
    assert "0.001 recognised" in text
    assert "recognised" not in shown(capsys, "inspect", plain, "--no-recognise")


def test_inspect_names_the_part_and_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = layers_like(mobilenet())
    state = {f"body.{name}": tensor for name, tensor in layers.items()}
    path = save(tmp_path / "a.pth", state | nested(top=batch_norm(5)))
    text = shown(capsys, "inspect", path)

    assert "body.* as in torchvision mobilenet_v3_small" in text
    assert "1 other layer: assumed" in text


def test_documents_name_the_architectures(
    plain: Path, ambiguous: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(shown(capsys, "inspect", plain, ambiguous, "--json"))
    one, other = (file["state_dicts"][0] for file in document["files"])

    jsonschema.validate(document, SCHEMA)
    assert one["layers"][0]["eps_source"] == "recognised"
    assert one["layers"][0]["momentum_source"] == "recognised"
    (match,) = one["recognised"]
    assert (match["prefix"], match["layers"]) == ("", 34)
    assert match["candidates"] == [
        {
            "architectures": [
                {"library": "torchvision", "version": "0.29.1", "name": "mobilenet_v3_small"}
            ],
            "eps": [0.001],
        }
    ]
    assert [item["eps"] for item in other["recognised"][0]["candidates"]] == [[1e-5], [1e-3]]


# Conversion, and what comes after


def test_convert_freezes_with_it_and_records_it(
    plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = json.loads(shown(capsys, "convert", plain, "--json"))
    record = record_of(plain.with_suffix(".frozen.safetensors"))

    jsonschema.validate(document, SCHEMA)
    assert document["recognised"][0]["layers"] == 34
    assert set(record.layers.values()) == {Eps(1e-3, "recognised")}
    assert record.recognised == {"": (MOBILENET,)}
    assert record.options
    assert record.options["recognise"] is True


def test_convert_goes_by_the_file_alone_where_asked(
    plain: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown(capsys, "convert", plain, "--no-recognise")
    record = record_of(plain.with_suffix(".frozen.safetensors"))

    assert set(record.layers.values()) == {Eps(1e-5, "assumed")}
    assert not record.recognised


@pytest.mark.parametrize("may_recognise", [True, False])
def test_verify_finds_it_equal(plain: Path, may_recognise: bool) -> None:
    options = ConvertOptions(may_recognise=may_recognise, verify=False)
    result = verify_files(plain, convert_file(plain, options=options).output_path)

    assert [claim.status for claim in result.claims] == ["equal", "equal", "not verified"]


def test_a_model_with_another_eps_keeps_it_with_a_warning(tmp_path: Path) -> None:
    model = torchvision.models.mobilenet_v3_small()
    path = save(tmp_path / "a.pth", model.state_dict())
    written = convert_file(path, options=ConvertOptions(force_unhealthy=True)).output_path
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_frozen(torchvision.models.mobilenet_v3_small(), written)
    other = torchvision.models.mobilenet_v3_small(norm_layer=nn.BatchNorm2d)
    with pytest.warns(UserWarning, match=r"eps 1e-05 of the model is kept.*recognised"):
        kept = load_frozen(other, written)

    assert loaded.get_submodule("features.0.1").eps == 1e-3
    assert kept.get_submodule("features.0.1").eps == 1e-5
