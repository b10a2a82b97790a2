"""Any two files against each other: every fault planted, found and named."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from frozenbn_cli import (
    ConvertOptions,
    VerificationResult,
    VerifyOptions,
    convert_bn_to_frozen,
    convert_file,
)
from frozenbn_cli import verify_files as verify_any
from frozenbn_cli.batch_norms.record import METADATA_KEY
from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.errors import UsageError
from frozenbn_cli.nn import FrozenBatchNorm2d
from frozenbn_cli.selection import Selection
from frozenbn_cli.verification.claims import Claim
from tests.builders.archives import load, rewrite_records, script, trace
from tests.builders.files import State, save, small_state
from tests.builders.models import perturb, small_cnn

IMAGE = torch.rand(1, 3, 16, 16)


def model(eps: float = 1e-3) -> nn.Sequential:
    """Return two layers, 1 and 4, of an eps that is not PyTorch's default."""
    torch.manual_seed(0)
    network = small_cnn(lambda channels: nn.BatchNorm2d(channels, eps))
    perturb(network)
    return network.eval()


def verify(
    original: Path, converted: Path, build: Callable[[], nn.Module] | None = model, **options: Any
) -> VerificationResult:
    return verify_any(original, converted, options=VerifyOptions(model=build, **options))


def statuses(result: VerificationResult) -> dict[str, str]:
    return {claim.name: claim.status for claim in result.claims}


def claim(result: VerificationResult, name: str) -> Claim:
    return {item.name: item for item in result.claims}[name]


ALL_EQUAL = {"contents": "equal", "layers": "equal", "model": "equal"}


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return save(tmp_path / "original.pt", model().state_dict())


@pytest.fixture
def converted(original: Path) -> Path:
    return convert_file(original, options=ConvertOptions(eps=1e-3)).output_path


class TestEqual:
    def test_a_conversion(self, original: Path, converted: Path) -> None:
        result = verify(original, converted)

        assert result.verdict == "passed"
        assert statuses(result) == ALL_EQUAL
        assert result.frozen.keys() == {"1", "4"}
        assert claim(result, "model").detail.startswith("outputs on 1x3x64x64 of float32")

    def test_conjugates_are_compared_by_value_not_by_memory(self, tmp_path: Path) -> None:
        state = small_state()
        number = torch.tensor([3 + 4j, 1 - 2j])
        stored = {"plain": number, "lazy": number.conj(), "made": number.conj().resolve_conj()}
        paths = {
            name: save(tmp_path / f"{name}.pt", {**state, "number": value})
            for name, value in stored.items()
        }

        equal = {
            (before, after)
            for before, after in itertools.product(paths, repeat=2)
            if claim(verify(paths[before], paths[after], None), "contents").status == "equal"
        }

        alike = {"lazy", "made"}
        assert equal == {("plain", "plain"), *itertools.product(alike, repeat=2)}

    def test_what_cannot_be_checked_is_not_called_equal(
        self, original: Path, converted: Path
    ) -> None:
        result = verify(original, converted, None)

        assert result.verdict == "passed"
        assert statuses(result) == {**ALL_EQUAL, "model": "not verified"}
        assert "--model names one" in claim(result, "model").detail

    @pytest.mark.parametrize("to", ["torch", "torchscript", "safetensors"])
    def test_every_format_that_is_written(self, tmp_path: Path, original: Path, to: Any) -> None:
        options = ConvertOptions(model=model, to=to)
        output = convert_file(original, tmp_path / "out", options=options).output_path

        assert statuses(verify(original, output)) == ALL_EQUAL

    @pytest.mark.parametrize("name", ["a.pt", "a.legacy", "a.safetensors"])
    def test_every_format_that_is_read(self, tmp_path: Path, name: str) -> None:
        original = save(tmp_path / name, model().state_dict())
        output = convert_file(
            original, tmp_path / "o.safetensors", options=ConvertOptions(eps=1e-3)
        )

        assert statuses(verify(original, output.output_path)) == ALL_EQUAL

    @pytest.mark.parametrize("how", ["scripted", "traced"])
    def test_archives(self, tmp_path: Path, how: str) -> None:
        path = tmp_path / "a.pt"
        original = script(model(), path) if how == "scripted" else trace(model(), path, IMAGE)
        output = convert_file(original).output_path

        assert statuses(verify(original, output, None)) == ALL_EQUAL

    def test_an_archive_against_a_state_dict(self, tmp_path: Path) -> None:
        original = script(model(), tmp_path / "a.pt")
        output = convert_file(original, options=ConvertOptions(to="safetensors")).output_path

        assert statuses(verify(original, output)) == ALL_EQUAL
        untold = verify(original, output, None)
        assert statuses(untold) == {**ALL_EQUAL, "model": "not verified"}

    def test_a_training_checkpoint_by_its_key(self, tmp_path: Path) -> None:
        states = {"model": small_cnn().state_dict(), "ema": model().state_dict(), "epoch": 3}
        original = save(tmp_path / "a.ckpt", states)
        output = convert_file(original, options=ConvertOptions(key="ema", eps=1e-3)).output_path

        assert statuses(verify(original, output, key="ema")) == ALL_EQUAL
        assert statuses(verify(original, output, key="model"))["contents"] == "different"

    def test_names_with_a_wrapper_s_prefix(self, tmp_path: Path) -> None:
        state = {f"module.{name}": value for name, value in model().state_dict().items()}
        original = save(tmp_path / "a.pt", state)
        bare = convert_file(original, options=ConvertOptions(eps=1e-3)).output_path
        options = ConvertOptions(eps=1e-3, keep_prefix=True)
        kept = convert_file(original, tmp_path / "b.safetensors", options=options).output_path

        assert statuses(verify(original, bare)) == ALL_EQUAL
        assert statuses(verify(original, kept)) == ALL_EQUAL

    def test_a_selection_is_not_a_difference(self, tmp_path: Path, original: Path) -> None:
        options = ConvertOptions(eps=1e-3, selection=Selection.of(exclude="4"))
        output = convert_file(original, options=options).output_path

        assert statuses(verify(original, output, selection=Selection.of(exclude="4"))) == ALL_EQUAL
        assert statuses(verify(original, output)) == ALL_EQUAL  # As its record says.
        every = Selection.of(include="*")
        assert statuses(verify(original, output, selection=every))["layers"] == "different"

    def test_pickled_modules_if_trusted(self, tmp_path: Path) -> None:
        original, frozen = tmp_path / "a.pt", tmp_path / "b.pt"
        torch.save(model(), original)
        torch.save(convert_bn_to_frozen(model()), frozen)

        untrusted = verify(original, frozen, None)
        trusted = verify(original, frozen, None, trust=True)

        assert statuses(untrusted) == {**ALL_EQUAL, "model": "not verified"}
        assert claim(untrusted, "model").detail.startswith("needs --trust")
        assert statuses(trusted) == ALL_EQUAL


def faulty(path: Path, change: Callable[[State], None], **eps: float) -> Path:
    """Write a converted file anew with a fault."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    state = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(state)
    record = json.loads(metadata[METADATA_KEY])
    live = {name for name in record["layers"] if f"{name}.num_batches_tracked" in state}
    layers = {name: layer for name, layer in record["layers"].items() if name not in live}
    for name, value in eps.items():
        layers[name.removeprefix("layer")]["eps"] = value
    metadata[METADATA_KEY] = json.dumps({**record, "layers": layers})
    output = path.with_name("faulty.safetensors")
    save_file(state, output, metadata)
    return output


def flip_a_bit(state: State) -> None:
    state["3.weight"].view(torch.int32)[0, 0, 0, 1] ^= 1 << 20


def lose_an_entry(state: State) -> None:
    del state["8.bias"]


def change_a_dtype(state: State) -> None:
    state["8.weight"] = state["8.weight"].double()


def swap_statistics(state: State) -> None:
    state["4.running_mean"], state["4.running_var"] = (
        state["4.running_var"],
        state["4.running_mean"].abs(),
    )


def leave_a_layer_live(state: State) -> None:
    state["4.num_batches_tracked"] = torch.tensor(7)


def nothing(state: State) -> None:
    pass


class TestDifferent:
    @pytest.mark.parametrize(
        ("fault", "eps", "different", "said"),
        [
            (flip_a_bit, {}, {"contents", "model"}, "3.weight: 1 of 216 elements differs"),
            (lose_an_entry, {}, {"contents", "model"}, "8.bias: missing"),
            (change_a_dtype, {}, {"contents", "model"}, "8.weight: float64 instead of float32"),
            (swap_statistics, {}, {"contents", "layers", "model"}, "4.running_mean"),
            (leave_a_layer_live, {}, {"layers"}, "4: a BatchNorm2d that is live"),
            (nothing, {"layer4": 1e-5}, {"layers", "model"}, "eps 1e-05 instead of 0.001"),
        ],
    )
    def test_each_fault_is_found_and_named(
        self,
        original: Path,
        converted: Path,
        fault: Callable[[State], None],
        eps: dict[str, float],
        different: set[str],
        said: str,
    ) -> None:
        result = verify(original, faulty(converted, fault, **eps))

        found = {name for name, status in statuses(result).items() if status == "different"}
        assert found == different
        assert result.verdict == "failed"
        assert any(said in item.detail for item in result.claims)

    def test_the_flipped_bit_is_measured(self, original: Path, converted: Path) -> None:
        contents = claim(verify(original, faulty(converted, flip_a_bit)), "contents")

        (difference,) = contents.differences
        measure = difference.measure
        assert difference.place == "3.weight"
        assert measure is not None
        assert measure.index == measure.relative_index == (0, 0, 0, 1)
        assert (measure.differing, measure.elements, measure.ulps) == (1, 216, 1 << 20)
        assert measure.percentile_99 == 0
        assert measure.mean == pytest.approx(measure.absolute / 216)
        assert contents.smallest_atol == measure.absolute

    def test_the_smallest_tolerance_passes_and_a_smaller_one_does_not(
        self, original: Path, converted: Path
    ) -> None:
        faulty_path = faulty(converted, flip_a_bit)
        contents = claim(verify(original, faulty_path), "contents")
        atol, rtol = contents.smallest_atol, contents.smallest_rtol
        assert atol is not None
        assert rtol is not None

        def status(**tolerance: float) -> str:
            return statuses(verify(original, faulty_path, None, **tolerance))["contents"]

        assert status(atol=atol) == status(rtol=rtol * (1 + 1e-9)) == "equal"
        assert status(atol=atol * 0.99) == status(rtol=rtol * 0.99) == "different"

    def test_says_where_along_the_layers_it_begins(self, original: Path, converted: Path) -> None:
        def begins(path: Path) -> str:
            return claim(verify(original, path), "model").begins

        assert begins(faulty(converted, flip_a_bit)).startswith(
            "begins before 4 (layer 2 of 2 in running order): its input: "
        )
        assert begins(faulty(converted, nothing, layer4=1e-5)).startswith(
            "begins in 4 (layer 2 of 2 in running order), whose input is equal: its output: "
        )

    def test_all_differences_are_listed_in_the_model_s_order(
        self, original: Path, converted: Path
    ) -> None:
        def change(state: State) -> None:
            for name in ("8.weight", "0.weight", "3.bias"):
                state[name] += 1

        contents = claim(verify(original, faulty(converted, change), None), "contents")

        places = [item.place for item in contents.differences]
        assert places == ["0.weight", "3.bias", "8.weight"]
        assert contents.detail.startswith("3 of 14 entries differ, the first is 0.weight: ")

    def test_an_excluded_layer_that_is_frozen(self, original: Path, converted: Path) -> None:
        result = verify(original, converted, selection=Selection.of(exclude="4"))

        assert "frozen in the converted file, but excluded by '4'" in claim(result, "layers").detail

    def test_a_file_against_itself(self, original: Path) -> None:
        layers = claim(verify(original, original), "layers")

        assert layers.status == "different"
        assert layers.detail.startswith("no layer of the original is frozen in the converted file")

    def test_another_eps_that_is_given(self, original: Path, converted: Path) -> None:
        assert statuses(verify(original, converted, None, eps=1e-3))["layers"] == "equal"
        result = verify(original, converted, None, eps=1e-5)

        assert "eps 0.001 instead of 1e-05" in claim(result, "layers").detail

    def test_another_record_of_an_archive(self, tmp_path: Path) -> None:
        original = script(model(), tmp_path / "a.pt")
        output = convert_file(original).output_path

        def spoil(name: str, content: bytes) -> bytes:
            return content.replace(b"return ", b"return  ") if name.endswith(".py") else content

        rewrite_records(output, spoil)

        contents = claim(verify(original, output, None), "contents")
        assert contents.status == "different"
        assert "differs" in contents.detail


class TestLayersThatShouldNotBeFrozen:
    def pair(self, tmp_path: Path, *, whole: bool) -> tuple[Path, Path]:
        live = perturb(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)))
        frozen = nn.Sequential(live[0], FrozenBatchNorm2d(4))
        frozen[1].load_state_dict(live[1].state_dict())
        paths = tmp_path / "a.pt", tmp_path / "b.pt"
        for path, network in zip(paths, (live, frozen), strict=True):
            torch.save(network if whole else network.state_dict(), path)
        return paths

    @pytest.mark.parametrize("whole", [False, True])
    def test_a_layer_of_other_dimensions(self, tmp_path: Path, whole: bool) -> None:
        layers = claim(verify(*self.pair(tmp_path, whole=whole), None), "layers")

        assert layers.status == "different"
        assert layers.detail.startswith("1: frozen in the converted file, but BatchNorm1d")

    def test_a_subclass(self, tmp_path: Path, original: Path, converted: Path) -> None:
        class Own(nn.BatchNorm2d):
            def forward(self, input: torch.Tensor) -> torch.Tensor:
                return 2 * super().forward(input)

        def with_own() -> nn.Module:
            network = model()
            network[4] = Own(6, eps=1e-3)
            return network

        layers = claim(verify(original, converted, with_own), "layers")

        assert layers.status == "different"
        assert "4: frozen in the converted file, but subclass" in layers.detail


class TestFrozenOriginals:
    def test_live_layers_in_the_converted_file(self, tmp_path: Path) -> None:
        torch.save(convert_bn_to_frozen(model()), tmp_path / "a.pt")
        torch.save(model(), tmp_path / "b.pt")

        layers = claim(verify(tmp_path / "a.pt", tmp_path / "b.pt", None), "layers")

        assert "1: frozen in the original, live in the converted file" in layers.detail

    def test_a_file_that_does_not_say(self, converted: Path) -> None:
        bare = converted.with_name("bare.safetensors")
        save_file(load_file(converted), bare)

        layers = claim(verify(converted, bare, None), "layers")

        assert layers.status == "not verified"
        assert layers.detail == (
            "the converted file does not say whether 2 layers are frozen, which the original "
            "froze: 1, 4"
        )


class TestArchives:
    """What an archive holds beside its entries is compared, or said not to be."""

    def archive(self, path: Path, factor: float, network: nn.Module) -> Path:
        class Rarely(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.net = network
                self.factor = factor

            def forward(self, x: Tensor) -> Tensor:
                y = self.net(x)
                return y + torch.where(x.sum() > 1e9, y * self.factor, y * 0)

        return script(Rarely(), path)

    def test_a_constant_that_no_input_shows(self, tmp_path: Path) -> None:
        original = self.archive(tmp_path / "a.pt", 1.0, model())
        other = self.archive(tmp_path / "b.pt", 2.0, convert_bn_to_frozen(model()))

        result = verify(original, other, None)

        assert claim(result, "model").status == "equal"
        assert claim(result, "contents").status == "not verified"
        assert "code and constants cannot be compared" in claim(result, "contents").detail

    def test_a_file_against_itself_is_all_the_same(self, tmp_path: Path) -> None:
        original = script(model(), tmp_path / "a.pt")

        assert claim(verify(original, original, None), "contents").status == "equal"

    def test_conversions_one_after_the_other(self, tmp_path: Path) -> None:
        first = script(model(), tmp_path / "a.pt")
        options = ConvertOptions(selection=Selection.of(exclude="4"))
        second = convert_file(first, tmp_path / "b.pt", options=options).output_path
        third = convert_file(second, tmp_path / "c.pt").output_path

        assert statuses(verify(second, third, None)) == ALL_EQUAL

    def test_a_record_that_its_classes_contradict(self, tmp_path: Path) -> None:
        original = script(model(), tmp_path / "a.pt")
        with open_checkpoint(convert_file(original).output_path) as checkpoint:
            record = checkpoint.metadata[METADATA_KEY]
        lying = tmp_path / "b.pt"
        load(original).save(lying, _extra_files={f"{METADATA_KEY}.json": record})

        assert claim(verify(original, lying, None), "layers").status == "different"

    def test_a_parameter_too_many(self, tmp_path: Path, original: Path) -> None:
        network = convert_bn_to_frozen(model())
        network.register_parameter("extra", nn.Parameter(torch.ones(1)))
        network.register_buffer("table", torch.ones(1))
        other = script(network, tmp_path / "b.pt")

        contents = claim(verify(original, other, None), "contents")

        assert contents.status == "different"
        assert [item.place for item in contents.differences] == ["extra"]


def test_what_is_no_tensor_is_not_compared(tmp_path: Path) -> None:
    original = save(tmp_path / "a.pt", {**model().state_dict(), "temperature": 0.5})
    output = convert_file(original, options=ConvertOptions(eps=1e-3)).output_path

    contents = claim(verify(original, output, None), "contents")

    assert contents.status == "equal"
    assert contents.detail.endswith("; not compared, since left out: temperature")


def test_an_eps_that_was_assumed_is_said_to_be(original: Path) -> None:
    output = convert_file(original).output_path

    assert (
        "eps 1e-05 (assumed) instead of 0.001" in claim(verify(original, output), "layers").detail
    )


class TestUnknownEps:
    """A converted file that somebody else wrote, without a record."""

    def test_layers_are_not_verified(self, original: Path, converted: Path) -> None:
        bare = converted.with_name("bare.safetensors")
        save_file(load_file(converted), bare)

        layers = claim(verify(original, bare), "layers")

        assert layers.status == "not verified"
        assert "does not state the eps of 2 of 2 layers" in layers.detail

    def test_other_statistics_are_different_all_the_same(
        self, original: Path, converted: Path
    ) -> None:
        state = load_file(converted)
        state["1.running_var"] = state["1.running_var"] + 1
        bare = converted.with_name("bare.safetensors")
        save_file(state, bare)

        assert statuses(verify(original, bare))["layers"] == "different"


class TestTolerances:
    def test_another_dtype_throughout(self, original: Path, converted: Path) -> None:
        def halve(state: State) -> None:
            state.update({name: tensor.half() for name, tensor in state.items()})

        half = faulty(converted, halve)

        exact, loose = verify(original, half), verify(original, half, atol=1e-2, rtol=1e-2)

        assert set(statuses(exact).values()) == {"different"}
        assert statuses(loose) == ALL_EQUAL
        for item in loose.claims:
            assert "within atol 0.01, rtol 0.01" in item.detail
            assert "float16 instead of float32" in item.detail
            assert all(difference.tolerated for difference in item.differences)

    @pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
    def test_what_is_none_is_refused(self, original: Path, converted: Path, value: float) -> None:
        with pytest.raises(UsageError, match="a finite number"):
            verify(original, converted, atol=value)


class TestModel:
    def test_another_model_is_refused_with_all_that_does_not_fit(
        self, original: Path, converted: Path
    ) -> None:
        def other() -> nn.Module:
            network = model()
            network[8] = nn.Linear(6, 3)
            network.append(nn.Linear(3, 1))
            return network

        with pytest.raises(UsageError) as caught:
            verify(original, converted, other)

        assert "2 missing in the file: 9.weight, 9.bias" in str(caught.value)
        assert "2 of another shape: 8.weight ([2, 6] instead of [3, 6])" in str(caught.value)

    def test_an_eps_that_the_model_contradicts(self, tmp_path: Path) -> None:
        path = tmp_path / "a.pt"
        torch.save(model(), path)
        output = convert_file(path).output_path

        with pytest.raises(UsageError, match=r"eps 0\.001, as the file says, found eps 1e-05"):
            verify(path, output, lambda: model(1e-5))

    def test_random_layers_do_not_matter(self, tmp_path: Path) -> None:
        def with_dropout() -> nn.Module:
            return nn.Sequential(model(), nn.Dropout(0.5))

        original = save(tmp_path / "a.pt", with_dropout().state_dict())
        output = convert_file(original, options=ConvertOptions(model=with_dropout)).output_path

        assert statuses(verify(original, output, with_dropout)) == ALL_EQUAL

    def test_a_model_whose_outputs_vary_is_not_verified(
        self, original: Path, converted: Path
    ) -> None:
        class Varying(nn.Sequential):
            calls = 0

            def forward(self, x: Tensor) -> Tensor:
                Varying.calls += 1
                return super().forward(x) + Varying.calls

        result = verify(original, converted, lambda: Varying(*model()))

        assert claim(result, "model").status == "not verified"
        assert "the input itself differs" in claim(result, "model").detail

    @pytest.mark.parametrize(("runs", "shown"), [(1, "on 1x3x64x64"), (3, "on 3 inputs of 1x3x")])
    def test_runs_on_several_inputs(
        self, original: Path, converted: Path, runs: int, shown: str
    ) -> None:
        result = verify(original, converted, runs=runs, seed=5)

        assert statuses(result) == ALL_EQUAL
        assert shown in claim(result, "model").detail

    def test_each_run_has_its_own_input(self, original: Path, converted: Path) -> None:
        seen: list[float] = []

        class Watched(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                seen.append(float(x.sum()))
                return super().forward(x)

        verify(original, converted, lambda: Watched(*model()), runs=2, seed=3)

        # Of the original, and of the converted in eval and with its frozen layers training; then
        # once with all of it training.
        assert len(seen) == 7
        assert len(set(seen)) == 2
        assert seen[:2] == seen[2:4] == seen[4:6]

    def test_a_buffer_that_a_run_changes_is_a_difference(
        self, original: Path, converted: Path
    ) -> None:
        class Counting(nn.Sequential):
            def __init__(self, *layers: nn.Module) -> None:
                super().__init__(*layers)
                self.register_buffer("runs", torch.zeros(()), persistent=False)

            def forward(self, x: Tensor) -> Tensor:
                if self[1].training:
                    self.runs += 1
                return super().forward(x)

        model_claim = claim(verify(original, converted, lambda: Counting(*model())), "model")

        assert model_claim.status == "different"
        assert "runs: is changed by a run" in model_claim.detail

    def test_outputs_without_numbers_are_told_by_the_layers(
        self, original: Path, converted: Path
    ) -> None:
        class Empty(nn.Sequential):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x)[:0]

        build = lambda: Empty(*model())
        equal = claim(verify(original, converted, build), "model")
        different = claim(verify(original, faulty(converted, flip_a_bit), build), "model")

        assert (equal.status, different.status) == ("equal", "different")
        assert "those of 2 of 2 frozen layers are equal" in equal.detail
        assert different.detail.startswith("begins before 4")

    def test_objects_in_outputs_are_taken_apart(self, original: Path, converted: Path) -> None:
        class Boxes:
            def __init__(self, scores: Tensor) -> None:
                self.scores = scores

        class Detecting(nn.Sequential):
            def forward(self, x: Tensor) -> Any:
                return {"boxes": Boxes(super().forward(x)), "shape": x.shape, "name": "boxes"}

        build = lambda: Detecting(*model())
        equal = claim(verify(original, converted, build), "model")
        different = claim(verify(original, faulty(converted, flip_a_bit), build), "model")

        assert equal.status == "equal"
        assert [item.place for item in different.differences] == ["output['boxes'].scores"]
