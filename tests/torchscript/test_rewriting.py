"""TorchScript archives are converted as they lie in the file, whatever is in them."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from frozenbn_cli import load_frozen
from frozenbn_cli.batch_norms.batch_norm import Eps
from frozenbn_cli.containers.rewriting import Rewriting
from frozenbn_cli.errors import (
    DamagedFileError,
    FrozenBNError,
    NothingToFreezeError,
    UnhealthyStatisticsError,
    UnsupportedFileError,
    UsageError,
    VerificationError,
)
from frozenbn_cli.inspection import inspect_file
from frozenbn_cli.outputs import OutputFormat
from frozenbn_cli.selection import Selection
from frozenbn_cli.torchscript.rewriting import rewrite
from tests.builders.archives import (
    assert_freezes,
    claims,
    code,
    convert,
    load,
    make,
    records,
    rewrite_records,
    run,
    script,
    submodule,
    torchscript_allowed,
    trace,
    types,
)
from tests.builders.models import assert_same_bits, build, perturb
from tests.builders.script_models import (
    KEYWORDS,
    AddsNoise,
    AsksAgain,
    BehindInterface,
    Borrows,
    Chain,
    Containers,
    Counting,
    CountingOne,
    CountsTurns,
    DecidesByWeight,
    Detector,
    Dimensions,
    DropsToo,
    Fixed,
    Forgets,
    Hooked,
    LargeNumbers,
    Mentions,
    NeverRun,
    NormAndRelu,
    NormTwice,
    OddOutputs,
    Pooled,
    ScaledElsewhere,
    SetsItsFlag,
    Several,
    SharedBlocks,
    Sized,
    Suppressing,
    TakesText,
    TwoInputs,
    UsesStatistics,
    Views,
    Writing,
    WritingWhenLoaded,
    keywords,
    phrases,
)

HOWS = ["scripted", "traced"]
IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BOTH = pytest.mark.parametrize("how", HOWS)


CASES: dict[str, tuple[Any, set[str]]] = {
    "a plain layer": (lambda: Chain(nn.BatchNorm2d(4)), {"rest.0"}),
    "another eps": (lambda: Chain(nn.BatchNorm2d(4, 0.25, 0.01)), {"rest.0"}),
    "no affine": (lambda: Chain(nn.BatchNorm2d(4, affine=False)), {"rest.0"}),
    "a cumulative average": (lambda: Chain(nn.BatchNorm2d(4, momentum=None)), {"rest.0"}),
    "several names": (Several, {"twice", "first_name", "second_name", "tied_a", "tied_b"}),
    "names further in": (SharedBlocks, {"blocks.0.0", "block.0", "inner.0", "outer"}),
    "containers": (
        Containers,
        {"listed.0", "listed.1", "named.b n", "named.a", "nested.0.0", "nested.2"},
    ),
    "several dimensions": (Dimensions, {"two"}),
    "a user's layer": (lambda: Chain(NormAndRelu(4, eps=1e-3)), {"rest.0"}),
    "timm's layer": (
        lambda: Chain(timm.layers.BatchNormAct2d(4, act_layer=nn.SiLU, eps=1e-3)),
        {"rest.0"},
    ),
    "a weight in two modules": (ScaledElsewhere, {"bn"}),
    "large numbers": (LargeNumbers, {"bn"}),
    "views of one storage": (Views, {"bn"}),
    "dropout and nested outputs": (Detector, {"bn"}),
    "a layer that never runs": (NeverRun, {"bn", "unused"}),
    "names that are keywords": (keywords, set(KEYWORDS)),
    "names with keywords in them": (phrases, {"named.from scratch", "named.a-lambda"}),
    "loops that go by what they assign": (lambda: Chain(CountsTurns(4)), {"rest.0"}),
    "branches that come to nothing": (lambda: Chain(AsksAgain(4)), {"rest.0"}),
}


class TestCases:
    @BOTH
    @pytest.mark.parametrize("case", CASES)
    def test_freezes(self, tmp_path: Path, how: str, case: str) -> None:
        builder, frozen = CASES[case]
        assert_freezes(make(how, builder(), tmp_path / "a.pt", IMAGE), IMAGE, frozen=frozen)

    @BOTH
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_freezes_in_another_dtype(self, tmp_path: Path, how: str, dtype: torch.dtype) -> None:
        image = IMAGE.to(dtype)
        path = make(how, Chain(nn.BatchNorm2d(4), nn.ReLU()).to(dtype), tmp_path / "a.pt", image)

        assert_freezes(path, image, frozen={"rest.0"})

    def test_freezes_a_synchronised_layer(self, tmp_path: Path) -> None:
        path = make("traced", Chain(nn.SyncBatchNorm(4)), tmp_path / "a.pt", IMAGE)

        output = assert_freezes(path, IMAGE, frozen={"rest.0"})

        assert types(output)["rest.0"].endswith(".FrozenBatchNormNd")

    @BOTH
    def test_names_composites_after_their_class(self, tmp_path: Path, how: str) -> None:
        layers = nn.BatchNorm2d(4), NormAndRelu(4), timm.layers.BatchNormAct2d(4)
        path = make(how, Chain(*layers), tmp_path / "a.pt", IMAGE)

        output = assert_freezes(path, IMAGE)

        found = [types(output)[f"rest.{index}"].rpartition(".")[2] for index in range(3)]
        assert found == ["FrozenBatchNorm2d", "FrozenNormAndRelu", "FrozenBatchNormAct2d"]

    @BOTH
    def test_freezes_an_archive_from_a_gpu_without_one(self, tmp_path: Path, how: str) -> None:
        path = make(how, Chain(nn.BatchNorm2d(4)), tmp_path / "a.pt", IMAGE)

        def to_gpu(name: str, content: bytes) -> bytes:
            if name != "data.pkl":
                return content
            return content.replace(b"X\3\0\0\0cpu", b"X\6\0\0\0cuda:0")

        rewrite_records(path, to_gpu)
        result, output = convert(path)

        assert set(claims(result).values()) == {"equal"}
        assert b"cuda:0" in records(output)["data.pkl"]
        with torchscript_allowed():
            before, after = (torch.jit.load(name, map_location="cpu") for name in (path, output))
        assert_same_bits(run(after, (IMAGE,)), run(before, (IMAGE,)))

    def test_keeps_extra_files_and_constants(self, tmp_path: Path) -> None:
        model = perturb(Fixed(nn.BatchNorm2d(4)).eval())
        path = tmp_path / "a.pt"
        with torchscript_allowed():
            traced = torch.jit.trace(model, IMAGE)
            torch.jit.save(traced, path, _extra_files={"labels.txt": b"cat\ndog", "x/y": b"\0"})
        assert any(name.startswith("constants/") for name in records(path))

        output = assert_freezes(path, IMAGE, frozen={"rest.0"})

        assert records(output)["extra/labels.txt"] == b"cat\ndog"
        assert records(output)["extra/x/y"] == b"\0"

    def test_freezes_what_was_loaded_and_saved_again(self, tmp_path: Path) -> None:
        path = make("scripted", Several(), tmp_path / "a.pt", IMAGE)
        again = tmp_path / "again.pt"
        with torchscript_allowed():
            torch.jit.save(load(path), again)

        assert_freezes(again, IMAGE)

    def test_freezes_layers_behind_an_interface(self, tmp_path: Path) -> None:
        path = script(perturb(BehindInterface().eval()), tmp_path / "a.pt")

        assert_freezes(path, IMAGE, frozen={"chosen", "other"})

    def test_leaves_text_alone_that_reads_like_a_type(self, tmp_path: Path) -> None:
        path = make("scripted", Mentions(), tmp_path / "a.pt")

        output = assert_freezes(path, IMAGE, frozen={"bn"})

        assert load(output).label == "__torch__.torch.nn.modules.batchnorm.BatchNorm2d"
        assert "no __torch__.torch.nn.modules.batchnorm.BatchNorm2d" in code(output)

    @BOTH
    def test_freezes_the_root_itself(self, tmp_path: Path, how: str) -> None:
        path = make(how, nn.BatchNorm2d(3), tmp_path / "a.pt", IMAGE)

        assert_freezes(path, IMAGE, frozen={""}, input_shapes=((2, 3, 8, 8),))

    @pytest.mark.parametrize("name", ["chosen", "other"])
    def test_freezes_one_layer_beside_an_interface(self, tmp_path: Path, name: str) -> None:
        path = script(perturb(BehindInterface().eval()), tmp_path / "a.pt")

        output = assert_freezes(path, IMAGE, frozen={name}, selection=Selection(include=(name,)))

        left = ({"chosen", "other"} - {name}).pop()
        assert types(output)[left] == types(path)[left]

    def test_a_training_archive_keeps_its_flags(self, tmp_path: Path) -> None:
        model = perturb(Chain(nn.BatchNorm2d(4), nn.Dropout(), nn.BatchNorm2d(4).eval()))
        path = script(model, tmp_path / "a.pt")

        output = assert_freezes(path, IMAGE, frozen={"rest.0", "rest.2"})

        flags = [submodule(load(output), f"rest.{index}").training for index in range(3)]
        assert flags == [True, True, False]

    def test_parameters_that_were_fixed_stay_fixed(self, tmp_path: Path) -> None:
        model = Chain(nn.BatchNorm2d(4))
        model.conv.weight.requires_grad_(False)

        assert_freezes(make("scripted", model, tmp_path / "a.pt"), IMAGE)


@BOTH
def test_knows_the_eps_of_a_layer_under_each_of_its_names(tmp_path: Path, how: str) -> None:
    path = make(how, SharedBlocks(), tmp_path / "a.pt", IMAGE)

    layers = {plan.layer.name: plan.layer for plan in inspect_file(path).state_dicts[0].plan.layers}

    assert {name: layer.eps for name, layer in layers.items()} == {
        "blocks.0.0": Eps(1e-5, "read"),
        "block.0": Eps(1e-5, "read"),
        "inner.0": Eps(1e-3, "read"),
        "outer": Eps(1e-3, "read"),
    }
    assert {layer.momentum for layer in layers.values()} == {0.1}


@BOTH
@pytest.mark.parametrize("to", ["safetensors", "torch"])
def test_writes_a_state_dict_with_the_eps_of_each_layer(
    tmp_path: Path, how: str, to: OutputFormat
) -> None:
    path = make(how, SharedBlocks(), tmp_path / "a.pt", IMAGE)

    result, output = convert(path, to=to)

    assert claims(result) == {"contents": "equal", "layers": "equal", "model": "not verified"}
    model = SharedBlocks()
    model.outer.eps = 0.5
    with pytest.warns(UserWarning, match="eps 0.5 of the model is replaced by 0.001"):
        loaded = load_frozen(model, output).eval()
    assert (loaded.block[0].eps, loaded.outer.eps) == (1e-5, 1e-3)
    assert_same_bits(run(loaded, (IMAGE,)), run(load(path), (IMAGE,)))


@BOTH
def test_frozen_layers_are_known_to_be_2d(tmp_path: Path, how: str) -> None:
    path = make(how, Chain(nn.BatchNorm2d(4)), tmp_path / "a.pt", IMAGE)

    (frozen,) = inspect_file(assert_freezes(path, IMAGE)).state_dicts[0].plan.layers

    assert (frozen.layer.spatial_dims, frozen.layer.dims_source) == (2, None)


class TestWhatCodeReads:
    def test_a_count_that_a_parent_reads_stays(self, tmp_path: Path) -> None:
        path = make("scripted", Counting(), tmp_path / "a.pt")

        output = assert_freezes(path, IMAGE, frozen={"bn"}, keeps_counts=True)

        assert "bn.num_batches_tracked" in load(output).state_dict()

    def test_only_the_counts_that_are_read_stay(self, tmp_path: Path) -> None:
        _, output = convert(make("scripted", CountingOne(), tmp_path / "a.pt"))

        counts = [name for name in load(output).state_dict() if "tracked" in name]
        assert counts == ["block.1.num_batches_tracked"]

    def test_what_a_layer_does_beside_normalising_stays(self, tmp_path: Path) -> None:
        path = make("scripted", Chain(NormTwice(4, eps=0.5)), tmp_path / "a.pt")

        output = assert_freezes(path, IMAGE, frozen={"rest.0"})

        assert types(output)["rest.0"].endswith(".FrozenNormTwice")

    @pytest.mark.parametrize(
        ("layer", "reason"),
        [
            (lambda: DropsToo(4), "uses the training flag for more than normalising"),
            (lambda: AddsNoise(4), "for more than normalising (rand_like in forward)"),
            (lambda: DecidesByWeight(4), "decides by more than the training flag"),
            (lambda: Borrows(4), "statistics that are not its own"),
            (lambda: Forgets(4), "does not call batch_norm with its own statistics"),
            (lambda: SetsItsFlag(4), "its code sets the training flag"),
        ],
    )
    def test_what_cannot_be_folded_is_left_alone(
        self, tmp_path: Path, layer: Any, reason: str
    ) -> None:
        path = make("scripted", Chain(layer(), nn.BatchNorm2d(4)), tmp_path / "a.pt")

        result, output = convert(path)

        odd, plain = result.plan.layers
        assert (plain.action, odd.action) == ("freeze", "leave")
        assert reason in (odd.reason or "")
        assert types(output)["rest.0"] == types(path)["rest.0"]

    def test_layers_that_other_code_can_change_are_left_alone(self, tmp_path: Path) -> None:
        path = make("scripted", UsesStatistics(), tmp_path / "a.pt")

        output = assert_freezes(path, IMAGE, frozen={"by_its_flag", "switched_off"})

        layers = inspect_file(path).state_dicts[0].plan.layers
        assert {plan.layer.name: plan.reason for plan in layers if plan.reason} == {
            "by_another_flag": "its running_mean serves batch_norm in UsesStatistics.forward by "
            "another flag than the layer's own",
            "switched": "other code sets its training flag (UsesStatistics.forward)",
        }
        trained = load(output).train()
        before = {name: value.clone() for name, value in trained.named_buffers()}
        run(trained, (IMAGE,))
        assert_same_bits(
            {name: value for name, value in trained.named_buffers() if "_its_" in name},
            {name: value for name, value in before.items() if "_its_" in name},
        )

    def test_layers_with_forward_hooks_are_left_alone(self, tmp_path: Path) -> None:
        path = make("scripted", Hooked(), tmp_path / "a.pt")

        assert_freezes(path, IMAGE, frozen={"plain", "first.0", "second.0"})

        layers = {plan.layer.name: plan for plan in inspect_file(path).state_dicts[0].plan.layers}
        assert layers["hooked"].reason == "it has forward hooks, whose code is not its own"

    def test_a_layer_of_other_dimensions_is_left_alone_whatever_its_name(
        self, tmp_path: Path
    ) -> None:
        path = make("scripted", Pooled(), tmp_path / "a.pt")

        assert_freezes(path, IMAGE, frozen={"bn"})

        layer = inspect_file(path).state_dicts[0].plan.layers[1]
        assert (layer.reason, layer.layer.dims_source) == ("BatchNorm1d", None)


class TestPartialFreezing:
    """Layers of one type part ways."""

    @pytest.mark.slow
    @BOTH
    def test_clones_types_up_the_tree(self, tmp_path: Path, how: str) -> None:
        model = build(torchvision.models.resnet18, num_classes=5)
        path = make(how, model, tmp_path / "a.pt", torch.zeros(1, 3, 32, 32))
        selection = Selection(include=("layer1.0.bn1", "layer3.*"), exclude=("*.downsample.*",))
        frozen = {"layer1.0.bn1", *(f"layer3.{i}.bn{j}" for i in (0, 1) for j in (1, 2))}

        output = assert_freezes(path, torch.zeros(1, 3, 32, 32), frozen=frozen, selection=selection)

        before, after = types(path), types(output)
        live = {name for name, kind in before.items() if kind.endswith(".BatchNorm2d")} - frozen
        assert live
        assert {name: after[name] for name in live} == {name: before[name] for name in live}

    def test_the_rest_is_frozen_later(self, tmp_path: Path) -> None:
        path = make("scripted", Containers(), tmp_path / "a.pt")
        image = IMAGE
        first = assert_freezes(path, image, selection=Selection(include=("nested.*", "*.0")))
        first = first.rename(tmp_path / "b.pt")

        second = assert_freezes(first, image, frozen={"listed.1", "named.b n", "named.a"})

        eps = inspect_file(second).state_dicts[0].plan.layers
        assert all(plan.layer.frozen_already for plan in eps)
        assert sum(name.endswith("FrozenBatchNorm2d") for name in types(second).values()) == 6
        found = json.loads(records(second)["extra/frozenbn.conversion.json"])
        assert set(found["layers"]) == {plan.layer.name for plan in eps}

    @pytest.mark.parametrize(
        "selection",
        [
            Selection(include=("first_name",)),
            Selection(exclude=("second_name",)),
            Selection(exclude=("tied_a",)),
        ],
    )
    @BOTH
    def test_refuses_to_part_layers_that_share_tensors(
        self, tmp_path: Path, how: str, selection: Selection
    ) -> None:
        path = make(how, Several(), tmp_path / "a.pt", IMAGE)

        with pytest.raises(UsageError, match=r"share tensors. Select both or neither"):
            convert(path, selection=selection)

        assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]

    @BOTH
    def test_freezes_layers_that_share_tensors_together(self, tmp_path: Path, how: str) -> None:
        path = make(how, Several(), tmp_path / "a.pt", IMAGE)

        assert_freezes(
            path,
            IMAGE,
            frozen={"first_name", "second_name"},
            selection=Selection(include=("*_name",)),
        )

    def test_refuses_to_clone_types_with_forward_hooks(self, tmp_path: Path) -> None:
        path = make("scripted", Hooked(), tmp_path / "a.pt")

        with pytest.raises(UnsupportedFileError, match="only some modules of the type"):
            convert(path, selection=Selection(include=("first.0",)))

    def test_leaves_a_layer_alone_that_shares_with_one_that_must_stay(self, tmp_path: Path) -> None:
        model = Dimensions()
        model.three.weight, model.three.bias = model.two.weight, model.two.bias
        path = make("scripted", model, tmp_path / "a.pt")

        with pytest.raises(NothingToFreezeError) as caught:
            convert(path)

        layers = {plan.layer.name: plan for plan in caught.value.result.plan.layers}
        assert layers["two"].reason == "shares tensors with three, which is left alone"


class TestRefusals:
    def refused(self, path: Path, kind: type[FrozenBNError], code: int, **options: Any) -> str:
        before = sorted(path.parent.iterdir())
        with pytest.raises(kind) as caught:
            convert(path, **options)
        assert caught.value.exit_code == code
        assert sorted(path.parent.iterdir()) == before
        return str(caught.value)

    def test_an_archive_traced_in_training_mode(self, tmp_path: Path) -> None:
        model = perturb(Chain(nn.BatchNorm2d(4), nn.BatchNorm2d(4).eval()))
        path = trace(model, tmp_path / "a.pt", IMAGE)

        message = self.refused(path, UnhealthyStatisticsError, 1)

        assert "1 of 2 BatchNorm layers cannot be frozen. Freeze the others" in message
        for options in ({"force_unhealthy": True}, {"selection": Selection(exclude=("rest.0",))}):
            result, output = convert(path, **options)
            assert [plan.action for plan in result.plan.layers] == ["leave", "freeze"]
            assert set(claims(result).values()) == {"equal"}
            assert types(output)["rest.0"] == types(path)["rest.0"]
            output.unlink()

    def test_a_folded_archive(self, tmp_path: Path) -> None:
        model = perturb(Chain(nn.BatchNorm2d(4)).eval())
        with torchscript_allowed():
            torch.jit.save(torch.jit.freeze(torch.jit.script(model)), tmp_path / "a.pt")

        message = self.refused(tmp_path / "a.pt", NothingToFreezeError, 1)

        assert "torch.jit.freeze has folded its layers into the code" in message

    def test_an_archive_without_batch_norm(self, tmp_path: Path) -> None:
        path = make("scripted", Chain(nn.ReLU()), tmp_path / "a.pt")

        assert "no BatchNorm in it" in self.refused(path, NothingToFreezeError, 1)

    def test_an_archive_for_mobile(self, tmp_path: Path) -> None:
        model = perturb(Chain(nn.BatchNorm2d(4)).eval())
        # What other tests ran was optimised into what mobile does not know.
        with torchscript_allowed(), warnings.catch_warnings(), torch.jit.optimized_execution(False):
            warnings.filterwarnings("ignore", "Lite Interpreter")
            torch.jit.script(model)._save_for_lite_interpreter(str(tmp_path / "a.ptl"))

        message = self.refused(tmp_path / "a.ptl", UnsupportedFileError, 3)

        assert "bytecode cannot be edited; convert the original" in message

    def test_an_archive_from_before_pytorch_1_4(self, tmp_path: Path) -> None:
        path = make("scripted", Chain(nn.BatchNorm2d(4)), tmp_path / "a.pt")

        def old(name: str, content: bytes) -> bytes | None:
            return None if name == "constants.pkl" else content

        rewrite_records(path, old)
        _add_record(path, "a/model.json", b"{}")

        assert "from before PyTorch 1.4" in self.refused(path, UnsupportedFileError, 3)

    def test_a_big_endian_archive(self, tmp_path: Path) -> None:
        path = make("scripted", Chain(nn.BatchNorm2d(4)), tmp_path / "a.pt")
        rewrite_records(path, lambda name, content: b"big" if name == "byteorder" else content)

        assert "big-endian" in self.refused(path, UnsupportedFileError, 3)

    def test_a_state_dict_cannot_become_torchscript(self, tmp_path: Path) -> None:
        torch.save(Chain(nn.BatchNorm2d(4)).state_dict(), tmp_path / "a.pt")

        assert "to='torchscript'" in self.refused(
            tmp_path / "a.pt", UsageError, 2, to="torchscript"
        )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda name, text: None if is_layer_code(name) else text, "the code of"),
            (lambda name, text: b"" if is_layer_code(name) else text, "the code of"),
            (
                lambda name, text: b"class (" if is_layer_code(name) else text,
                "no code of TorchScript",
            ),
            (lambda name, text: b"\xff" if is_layer_code(name) else text, "no code of TorchScript"),
            (
                lambda name, text: text + b"\r" if is_layer_code(name) else text,
                "control characters",
            ),
            (
                lambda name, text: text.replace(b"running_mean : Tensor", b"running_meen : Tensor"),
                "has no attribute 'running_mean'",
            ),
            (
                lambda name, text: text.replace(b"X\x06\0\0\0weight", b"X\x06\0\0\0wright"),
                "has no attribute 'wright'",
            ),
            (lambda name, text: b"\x80\x02K\1." if name == "data.pkl" else text, "a module"),
            (lambda name, text: b"\x80\x02]." if name == "data.pkl" else text, "a module"),
        ],
    )
    def test_a_damaged_archive(self, tmp_path: Path, change: Any, message: str) -> None:
        path = make("scripted", Chain(nn.BatchNorm2d(4)), tmp_path / "a.pt")

        rewrite_records(path, change)

        assert message in self.refused(path, DamagedFileError, 3)

    def test_truncation_anywhere(self, tmp_path: Path) -> None:
        path = make("scripted", Chain(nn.BatchNorm2d(4)), tmp_path / "a.pt")
        whole = path.read_bytes()

        for size in range(0, len(whole), 97):
            path.write_bytes(whole[:size])
            with pytest.raises(FrozenBNError) as caught:
                convert(path)
            assert caught.value.exit_code == 3


def is_layer_code(name: str) -> bool:
    """Whether a record is the code of a layer, whose type may be mangled."""
    return name.startswith("code/__torch__/torch/nn/modules/batchnorm") and name.endswith(".py")


def _add_record(path: Path, name: str, content: bytes) -> None:
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, content)


class TestVerification:
    def path(self, folder: Path, model: nn.Module | None = None) -> Path:
        return make("scripted", model or Chain(nn.BatchNorm2d(4)), folder / "a.pt")

    def model_claim(self, path: Path, **options: Any) -> tuple[str, str]:
        result, output = convert(path, **options)
        assert output.exists()
        assert claims(result)["contents"] == claims(result)["layers"] == "equal"
        claim = result.claims[2]
        return claim.status, claim.detail

    def test_says_what_it_was_run_on(self, tmp_path: Path) -> None:
        status, detail = self.model_claim(self.path(tmp_path))

        assert status == "equal"
        assert detail.startswith("outputs on 1x3x64x64 of float32, in eval and with")

    def test_tries_several_sizes(self, tmp_path: Path) -> None:
        _, detail = self.model_claim(self.path(tmp_path, Sized(28)))

        assert "1x3x28x28" in detail

    def test_runs_on_the_shape_that_is_given(self, tmp_path: Path) -> None:
        _, detail = self.model_claim(self.path(tmp_path, Sized(20)), input_shapes=((1, 3, 20, 20),))

        assert "1x3x20x20" in detail

    def test_runs_on_several_shapes(self, tmp_path: Path) -> None:
        path = self.path(tmp_path, TwoInputs())

        assert self.model_claim(path)[0] == "not verified"
        path.with_name(f"{path.stem}_frozen").unlink()
        status, detail = self.model_claim(path, input_shapes=((1, 3, 9, 9), (1, 4, 7, 7)))

        assert status == "equal"
        assert "1x3x9x9, 1x4x7x7" in detail

    @pytest.mark.parametrize(
        ("model", "shapes", "reason"),
        [
            (lambda: Sized(20), (), "it does not run on 1x3x64x64: builtins.RuntimeError: only 20"),
            (lambda: Sized(20), ((1, 3, 9, 9),), "it does not run on 1x3x9x9"),
            (TwoInputs, (), "takes 2 inputs of unknown shape; give --input-shape"),
            (TwoInputs, ((1, 3, 9, 9),), "takes 2 inputs, and 1 shape"),
            (TakesText, (), "its forward takes a str"),
            (lambda: nn.BatchNorm2d(4), (), "takes 1 input of unknown shape; give --input-shape"),
        ],
    )
    def test_says_why_it_could_not_be_run(
        self, tmp_path: Path, model: Any, shapes: Any, reason: str
    ) -> None:
        status, detail = self.model_claim(self.path(tmp_path, model()), input_shapes=shapes)

        assert status == "not verified"
        assert reason in detail

    def test_says_that_an_operator_is_not_here(self, tmp_path: Path) -> None:
        path = self.path(tmp_path)

        def calls_another(name: str, content: bytes) -> bytes:
            return content.replace(b"torch.conv2d(", b"ops.acme.conv2d(")

        rewrite_records(path, calls_another)

        untrusted = self.model_claim(path)
        path.with_name(f"{path.stem}_frozen").unlink()
        trusted = self.model_claim(path, trust=True)

        reason = "its code has ops.acme.conv2d; --trust runs it all the same"
        assert untrusted == ("not verified", reason)
        assert trusted[0] == "not verified"
        assert "PyTorch cannot load the input here: Unknown builtin op: acme::conv2d" in trusted[1]

    @pytest.mark.slow
    def test_runs_torchvisions_operators_where_it_is_installed(self, tmp_path: Path) -> None:
        path = self.path(tmp_path, Suppressing())

        command = [sys.executable, "-m", "frozenbn_cli", "convert", str(path), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)

        found = {claim["name"]: claim for claim in json.loads(done.stdout)["claims"]}
        assert found["model"]["status"] == "equal", found

    def test_code_that_writes_files_is_run_only_if_trusted(self, tmp_path: Path) -> None:
        marker = tmp_path / "written"
        path = self.path(tmp_path, Writing(str(marker)))

        status, detail = self.model_claim(path)

        assert status == "not verified"
        assert "its code has torch.save; --trust runs it all the same" in detail
        assert not marker.exists()
        path.with_name(f"{path.stem}_frozen").unlink()
        assert self.model_claim(path, trust=True)[0] == "equal"
        assert marker.exists()

    @pytest.mark.parametrize(
        "call",
        [
            'getattr(torch, "save")(x0, path)',
            'getattr(torch, "\\163ave")(x0, path)',
            "t = torch; t.save(x0, path)",
            "s = torch.save; s(x0, path)",
            "ops.aten.save(x0, path)",
            "o = ops; o.aten.save(x0, path)",
            "o = ops.aten; o.save(x0, path)",
            'getattr(getattr(ops, "aten"), "save")(x0, path)',
        ],
    )
    def test_code_that_writes_files_is_found_however_it_says_so(
        self, tmp_path: Path, call: str
    ) -> None:
        marker = tmp_path / "written"
        path = self.path(tmp_path, Writing(str(marker)))

        def disguised(name: str, content: bytes) -> bytes:
            lines = "\n    ".join(call.split("; "))
            return content.replace(b"torch.save(x0, path)", lines.encode())

        rewrite_records(path, disguised)
        load(path)(IMAGE)
        assert marker.exists()
        marker.unlink()

        assert self.model_claim(path)[0] == "not verified"
        assert not marker.exists()

    @pytest.mark.parametrize("text", ["o = __torch__.torch.classes.acme", "o = __torch__"])
    def test_code_that_hides_a_class_is_found(self, tmp_path: Path, text: str) -> None:
        path = self.path(tmp_path, Writing(str(tmp_path / "written")))
        rewrite_records(
            path, lambda _, content: content.replace(b"torch.save(x0, path)", text.encode())
        )

        assert f"its code has {text[4:]};" in self.model_claim(path)[1]

    def test_compares_outputs_of_every_layout(self, tmp_path: Path) -> None:
        status, detail = self.model_claim(self.path(tmp_path, OddOutputs()))

        assert (status, detail.partition(",")[0]) == ("equal", "outputs on 1x3x64x64 of float32")

    def test_code_that_runs_when_it_is_loaded_is_found_too(self, tmp_path: Path) -> None:
        marker = tmp_path / "written"
        path = self.path(tmp_path, Chain(nn.BatchNorm2d(4), WritingWhenLoaded(str(marker))))
        marker.unlink(missing_ok=True)

        status, _ = self.model_claim(path)

        assert status == "not verified"
        assert not marker.exists()

    def test_a_changed_output_is_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = self.path(tmp_path)

        def spoilt(*arguments: Any) -> Rewriting:
            rewriting = rewrite(*arguments)
            replaced = {
                name: text.replace(b"return _3", b"return torch.mul(_3, 2)")
                for name, text in rewriting.replaced.items()
            }
            assert replaced != rewriting.replaced
            return replace(rewriting, replaced=replaced)

        monkeypatch.setattr("frozenbn_cli.torchscript.rewriting.rewrite", spoilt)
        with pytest.raises(VerificationError, match=r"model: output: .* differ") as caught:
            convert(path)

        assert caught.value.exit_code == 1
        assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]
