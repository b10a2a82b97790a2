"""Every kind of file that people have lying around: recognised by content, and converted."""

import argparse
import json
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from frozenbn_cli import ConvertOptions, convert_file
from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.checkpoints.likeness import likeness
from frozenbn_cli.errors import (
    DamagedFileError,
    InputError,
    NothingToFreezeError,
    UnsupportedFileError,
    UsageError,
)
from frozenbn_cli.inspection import inspect_file
from frozenbn_cli.selection import Selection
from tests.builders.files import State, batch_norm, nested, save, small_state
from tests.builders.models import perturb


class Block(nn.Module):
    """Two layers under one name each and one under two, a subclass and one without statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4, eps=1e-3, momentum=0.01)
        self.again = self.bn
        self.flat = nn.BatchNorm1d(4)
        self.untracked = nn.BatchNorm2d(4, track_running_stats=False)
        self.plain = nn.BatchNorm2d(4, eps=0.1 + 0.2, affine=False)
        self.own = Doubled(4)
        self.register_buffer("hidden", torch.ones(1), persistent=False)


class Doubled(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


@pytest.fixture
def block() -> Block:
    return perturb(Block())  # type: ignore[return-value]


def model() -> nn.Sequential:
    return perturb(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-4), nn.ReLU()))  # type: ignore[return-value]


def training_checkpoint(**state_dicts: Any) -> dict[str, Any]:
    network = model()
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.ones(2, 3, 4, 4)).sum().backward()
    optimizer.step()
    return {
        **state_dicts,
        "optimizer": optimizer.state_dict(),
        "epoch": 7,
        "args": argparse.Namespace(lr=0.1),
        "best": torch.tensor(0.5).numpy()[()],
    }


def layers(path: Path, **options: Any) -> dict[str, Any]:
    (part,) = inspect_file(path, **options).state_dicts
    return {plan.layer.name: plan for plan in part.plan.layers}


class TestTrainingCheckpoints:
    @pytest.mark.parametrize("suffix", ["pt", "legacy"])
    @pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "module", "net"])
    def test_the_weights_are_found_and_the_rest_is_named(
        self, tmp_path: Path, key: str, suffix: str
    ) -> None:
        path = save(tmp_path / f"a.{suffix}", training_checkpoint(**{key: small_state()}))

        found = inspect_file(path)
        result = convert_file(path)

        assert found.kind == "training checkpoint"
        assert found.state_dicts[0].key == key
        assert list(result.beside) == ["optimizer", "epoch", "args", "best"]
        assert result.beside["args"] == "an object of argparse.Namespace"
        assert found.foreign_names == {}
        written = load_file(result.output_path)
        assert written.keys() == {name for name in small_state() if "num_batches" not in name}

    def test_at_any_depth(self, tmp_path: Path) -> None:
        deep = {"a": {"b": {"ema": {"module": small_state()}}}}

        assert inspect_file(save(tmp_path / "a.pt", deep)).state_dicts[0].key == ("a.b.ema.module")

    def test_several_are_named_and_asked_for(self, tmp_path: Path) -> None:
        other = {name: tensor + 1 for name, tensor in small_state().items()}
        path = save(tmp_path / "a.pt", training_checkpoint(model=small_state(), model_ema=other))

        with pytest.raises(UsageError, match=r"'model', 'model_ema'\. Choose one with key"):
            convert_file(path)
        result = convert_file(path, options=ConvertOptions(key="model_ema"))

        assert torch.equal(load_file(result.output_path)["fc.weight"], other["fc.weight"])
        assert result.key == "model_ema"

    def test_a_state_dict_without_batch_norm_does_not_make_it_several(self, tmp_path: Path) -> None:
        head = {"fc.weight": torch.ones(2, 2)}
        path = save(tmp_path / "a.pt", {"backbone": small_state(), "head": head})

        result = convert_file(path)

        assert result.key == "backbone"
        assert result.beside == {"head": "a dict of 1"}

    def test_a_module_inside_is_read_as_one(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.pt", {"model": model(), "ema": None})

        plans = layers(path)

        assert plans["1"].layer.eps.source == "read"

    def test_what_was_left_is_named_on_the_way_to_the_weights(self, tmp_path: Path) -> None:
        deep = {"run": {"net": small_state(), "optimizer": {}, "note": "x"}, "epoch": 3}

        result = convert_file(save(tmp_path / "a.pt", deep))

        assert list(result.beside) == ["epoch", "run.optimizer", "run.note"]

    def test_in_lists_and_under_several_keys(self, tmp_path: Path) -> None:
        state = small_state()
        listed = {"models": [state, {"fc.weight": torch.ones(2, 2)}], "best": state}

        parts = inspect_file(save(tmp_path / "a.pt", listed)).state_dicts

        assert [part.key for part in parts] == ["models.0", "best"]

    def test_a_state_dict_without_batch_norm_can_be_asked_for(self, tmp_path: Path) -> None:
        head = {"fc.weight": torch.ones(2, 2)}
        path = save(tmp_path / "a.pt", {"loss": torch.ones(1), "net": small_state(), "head": head})

        assert inspect_file(path, key="head").state_dicts[0].entries == 1
        with pytest.raises(UsageError, match=r"There are 'net', 'head'\."):
            inspect_file(path, key="tail")

    def test_without_any_batch_norm_the_largest_is_shown(self, tmp_path: Path) -> None:
        plain = {"a.weight": torch.ones(2), "b.weight": torch.ones(2)}
        path = save(tmp_path / "a.pt", {"loss": torch.ones(1), "model": plain})

        assert inspect_file(path).state_dicts[0].key == "model"

    def test_a_sparse_tensor_is_no_obstacle_to_looking(self, tmp_path: Path) -> None:
        sparse = torch.eye(3).to_sparse()
        beside = save(tmp_path / "a.pt", {"net": small_state(), "extra": {"graph": sparse}})
        within = save(tmp_path / "b.pt", {**small_state(), "graph": sparse})

        convert_file(beside)
        assert dict(inspect_file(within).state_dicts[0].unsupported) == {"graph": "a sparse tensor"}

    def test_long_keys_cost_no_memory(self, tmp_path: Path) -> None:
        key = "k" * 1_000_000
        nested_keys = {key: {f"{index}": {"x": {}} for index in range(3000)}, "net": small_state()}

        tracemalloc.start()
        inspect_file(save(tmp_path / "a.pt", nested_keys))
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

        assert peak < 50_000_000

    def test_a_cycle_is_no_trap(self, tmp_path: Path) -> None:
        cyclic: dict[str, Any] = {"model": small_state()}
        cyclic["self"] = cyclic

        keys = [part.key for part in inspect_file(save(tmp_path / "a.pt", cyclic)).state_dicts]

        assert keys[0] == "model"

    def test_nothing_of_the_kind(self, tmp_path: Path) -> None:
        with pytest.raises(UnsupportedFileError, match="expected a state dict, a training"):
            inspect_file(save(tmp_path / "a.pt", {"epoch": 3}))
        with pytest.raises(UnsupportedFileError, match="found a list of 1"):
            inspect_file(save(tmp_path / "b.pt", [3]))


class TestWrapperPrefixes:
    @pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
    @pytest.mark.parametrize("suffix", ["pt", "safetensors"])
    def test_are_taken_off_and_said_so(self, tmp_path: Path, prefix: str, suffix: str) -> None:
        wrapped = {prefix + name: tensor for name, tensor in small_state().items()}

        result = convert_file(save(tmp_path / f"a.{suffix}", wrapped))

        assert result.prefix == prefix
        assert "fc.weight" in load_file(result.output_path)
        assert [plan.layer.name for plan in result.plan.frozen] == ["bn1", "bn2"]

    def test_are_kept_on_request(self, tmp_path: Path) -> None:
        wrapped = {f"module.{name}": tensor for name, tensor in small_state().items()}
        path = save(tmp_path / "a.pt", wrapped)

        result = convert_file(path, options=ConvertOptions(keep_prefix=True))

        assert result.prefix == ""
        assert "module.fc.weight" in load_file(result.output_path)

    def test_are_left_where_not_every_name_has_them(self, tmp_path: Path) -> None:
        mixed = {f"module.{name}": tensor for name, tensor in small_state().items()}
        mixed["head.weight"] = torch.ones(2, 2)

        assert convert_file(save(tmp_path / "a.pt", mixed)).prefix == ""


class TestPickledModules:
    @pytest.mark.parametrize("suffix", ["pt", "legacy"])
    @pytest.mark.filterwarnings("ignore:Couldn't retrieve source code:UserWarning")
    def test_every_fact_is_read(self, tmp_path: Path, suffix: str, block: Block) -> None:
        path = save(tmp_path / f"a.{suffix}", block)

        plans = layers(path)
        found = inspect_file(path)

        assert found.kind == f"pickled module ({__name__}.Block)"
        assert found.foreign_names == {}
        assert {name: plan.reason for name, plan in plans.items()} == {
            "bn": None,
            "again": None,
            "flat": "BatchNorm1d",
            "untracked": "no running statistics (track_running_stats=False)",
            "plain": None,
            "own": f"{__name__}.Doubled, whose forward may do something else",
        }
        bn, plain = plans["bn"].layer, plans["plain"].layer
        assert (bn.eps.value, bn.eps.source, bn.momentum) == (1e-3, "read", 0.01)
        assert bn.type_name == "torch.nn.modules.batchnorm.BatchNorm2d"
        assert plain.eps.value == 0.1 + 0.2
        assert "weight" not in plain.tensors

    @pytest.mark.parametrize("suffix", ["pt", "legacy"])
    @pytest.mark.filterwarnings("ignore:Couldn't retrieve source code:UserWarning")
    def test_entries_are_those_of_its_state_dict(
        self, tmp_path: Path, suffix: str, block: Block
    ) -> None:
        path = save(tmp_path / f"a.{suffix}", block)

        with open_checkpoint(path) as checkpoint:
            assert list(checkpoint.entries) == list(block.state_dict())
            for name, tensor in block.state_dict().items():
                assert checkpoint.entries[name].read() == tensor.numpy().tobytes(), name

    def test_eps_goes_into_the_metadata_as_read(self, tmp_path: Path) -> None:
        result = convert_file(save(tmp_path / "a.pt", model()))

        with open_checkpoint(result.output_path) as written:
            record = json.loads(written.metadata["frozenbn.conversion"])
        assert record["layers"] == {"1": {"eps": 1e-4, "eps_source": "read"}}

    def test_an_eps_given_where_all_are_read_is_refused(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.pt", model())

        with pytest.raises(UsageError, match="the file holds that of every layer"):
            convert_file(path, options=ConvertOptions(eps=1e-3))

    def test_a_class_that_does_not_exist_is_no_obstacle(self, tmp_path: Path, block: Block) -> None:
        path = save(tmp_path / "a.pt", block)
        renamed = tmp_path / "b.pt"
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(renamed, "w") as new:
            for name in old.namelist():
                new.writestr(name, old.read(name).replace(b"test_kinds", b"test_gone1"))

        assert inspect_file(renamed).kind == "pickled module (tests.checkpoints.test_gone1.Block)"

    @pytest.mark.parametrize("eps", [torch.ones(2), "1e-3", -1.0, float("nan"), 10**400])
    def test_an_eps_that_is_no_number_is_unknown(self, tmp_path: Path, eps: Any) -> None:
        odd = model()
        odd[1].eps = eps

        assert layers(save(tmp_path / "a.pt", odd))["1"].layer.eps.source == "assumed"

    def test_a_wrapped_module_loses_its_prefix(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.pt", nn.DataParallel(model()))

        (part,) = inspect_file(path).state_dicts

        assert part.prefix == "module."
        assert [plan.layer.eps.source for plan in part.plan.layers] == ["read"]

    def test_momentum_counts_in_how_far_statistics_are_formed(self, tmp_path: Path) -> None:
        slow = perturb(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.001)))
        slow[1].num_batches_tracked.fill_(500)

        (finding,) = layers(save(tmp_path / "a.pt", slow))["1"].findings

        assert finding.message.startswith("statistics of 500 batches: 61% of their initial value")
        assert finding.message.endswith("(momentum 0.001)")


class TestFrozenAlready:
    @pytest.mark.parametrize("whole", [False, True])
    def test_layers_of_torchvision(self, tmp_path: Path, whole: bool) -> None:
        frozen = perturb(torchvision.models.resnet18(norm_layer=torchvision.ops.FrozenBatchNorm2d))
        model = nn.ModuleDict({"body": frozen, "neck": nn.BatchNorm1d(4)})
        path = save(tmp_path / "a.pt", frozen if whole else model.state_dict())

        reasons = {name: plan.reason for name, plan in layers(path).items() if name != "neck"}
        assert set(reasons.values()) == {"frozen already"}
        if whole:
            with pytest.raises(NothingToFreezeError):
                convert_file(path)

    def test_version_one_alone_tells_nothing(self, tmp_path: Path) -> None:
        state = model().state_dict()
        del state["1.num_batches_tracked"]
        state._metadata["1"] = {"version": 1}
        path = save(tmp_path / "a.legacy", state)

        (plan,) = layers(path).values()
        said = ConvertOptions(selection=Selection(state="live"))
        live = convert_file(path, tmp_path / "live.safetensors", options=said)

        assert plan.action == "leave"
        assert plan.reason
        assert "--model, --live or --frozen decides" in plan.reason
        assert [item.layer.name for item in live.plan.frozen] == ["1"]
        with pytest.raises(NothingToFreezeError):
            convert_file(path, options=ConvertOptions(selection=Selection(state="frozen")))
        described = convert_file(
            path, tmp_path / "b.safetensors", options=ConvertOptions(model=model)
        )
        assert [item.layer.name for item in described.plan.frozen] == ["1"]

    def test_layers_of_timm(self, tmp_path: Path) -> None:
        timm = pytest.importorskip("timm")
        frozen = timm.layers.freeze_batch_norm_2d(perturb(timm.create_model("dla34")))

        path = save(tmp_path / "a.pt", frozen)

        assert {plan.reason for plan in layers(path).values()} == {"frozen already"}

    def test_layers_of_detectron2_by_their_version(self, tmp_path: Path) -> None:
        class FrozenBatchNorm2d(torchvision.ops.FrozenBatchNorm2d):
            _version = 3

        frozen = nn.Sequential(nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4))

        path = save(tmp_path / "a.pt", frozen.state_dict())

        assert layers(path)["1"].reason == "frozen already"

    def test_layers_of_ours(self, tmp_path: Path) -> None:
        first = convert_file(save(tmp_path / "a.pt", model()))

        plan = layers(first.output_path)["1"]

        assert plan.reason == "frozen already"
        assert (plan.layer.eps.value, plan.layer.eps.source) == (1e-4, "read")

    def test_an_old_batch_norm_without_a_count_is_not_taken_for_frozen(
        self, tmp_path: Path
    ) -> None:
        old = nested(conv={"weight": torch.ones(4, 3, 1, 1)}, bn=batch_norm(4, tracked=None))

        assert layers(save(tmp_path / "a.pt", old))["bn"].reason is None


class TestShards:
    def shards(self, folder: Path) -> State:
        state = {f"module.{name}": tensor for name, tensor in small_state().items()}
        names = list(state)
        for index, part in enumerate((names[::2], names[1::2]), 1):
            save_file({name: state[name] for name in part}, folder / f"m-{index}.safetensors")
        weight_map = {name: f"m-{1 + names.index(name) % 2}.safetensors" for name in names}
        index_path = folder / "model.safetensors.index.json"
        index_path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
        return state

    @pytest.mark.parametrize("named", ["", "model.safetensors.index.json"])
    def test_are_one_checkpoint(self, tmp_path: Path, named: str) -> None:
        folder = tmp_path / "model"
        folder.mkdir()
        state = self.shards(folder)

        found = inspect_file(folder / named)
        result = convert_file(folder / named)

        assert found.container == "safetensors in 2 shards"
        assert found.size_bytes == sum(
            path.stat().st_size for path in folder.iterdir() if path != result.output_path
        )
        written = load_file(result.output_path)
        assert torch.equal(written["fc.weight"], state["module.fc.weight"])
        assert len(written) == len(state) - 2

    def test_a_missing_shard_is_named(self, tmp_path: Path) -> None:
        self.shards(tmp_path)
        (tmp_path / "m-2.safetensors").unlink()

        with pytest.raises(InputError, match=r"shard m-2\.safetensors: cannot be read"):
            inspect_file(tmp_path)

    def test_a_missing_entry_is_named(self, tmp_path: Path) -> None:
        self.shards(tmp_path)
        save_file({"other": torch.ones(1)}, tmp_path / "m-2.safetensors")

        with pytest.raises(DamagedFileError, match=r"is not in shard m-2"):
            inspect_file(tmp_path)

    @pytest.mark.parametrize("shard", ["../m.safetensors", "m.txt", 3, "a/b.safetensors"])
    def test_an_index_that_leads_elsewhere_is_refused(self, tmp_path: Path, shard: Any) -> None:
        index = tmp_path / "a.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"a": shard}}))

        with pytest.raises(DamagedFileError, match="expected names of"):
            inspect_file(index)

    @pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": []}', '{"a":' * 5000])
    def test_other_json_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "a.json").write_text(text)

        with pytest.raises(InputError):
            inspect_file(tmp_path / "a.json")

    def test_a_folder_without_an_index_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(
            InputError, match=r"is a folder: expected one model file or index .* found none"
        ):
            inspect_file(tmp_path)


class TestToTorch:
    @pytest.mark.parametrize("name", ["a.pt", "a.legacy", "a.safetensors"])
    def test_writes_what_torch_loads_safely(self, tmp_path: Path, name: str) -> None:
        state = small_state() | {
            "half": torch.randn(3).half(),
            "eighth": torch.randn(5).to(torch.float8_e4m3fn),
            "unsigned": torch.arange(3).to(torch.uint16),
            "flag": torch.tensor(True),
            "empty": torch.zeros(0, 3),
        }

        result = convert_file(save(tmp_path / name, state), options=ConvertOptions(to="torch"))

        assert result.output_path.name.endswith(".frozen.pt")
        assert [claim.status for claim in result.claims][:2] == ["equal", "equal"]
        for mapped in (False, True):
            loaded = torch.load(result.output_path, weights_only=True, mmap=mapped)
            assert loaded.keys() == {name for name in state if "num_batches" not in name}
            for entry, tensor in loaded.items():
                assert tensor.dtype == state[entry].dtype
                assert torch.equal(
                    tensor.view(torch.uint8) if tensor.dim() else tensor,
                    state[entry].view(torch.uint8) if tensor.dim() else state[entry],
                )

    def test_entries_that_are_one_tensor_stay_one(self, tmp_path: Path) -> None:
        shared = torch.randn(4, 6)
        state = small_state() | {"a": shared, "b": shared, "turned": shared.t(), "row": shared[1]}

        result = convert_file(save(tmp_path / "a.pt", state), options=ConvertOptions(to="torch"))

        loaded = torch.load(result.output_path, weights_only=True)
        assert loaded["a"].data_ptr() == loaded["b"].data_ptr()
        assert torch.equal(loaded["turned"], shared.t())
        assert torch.equal(loaded["row"], shared[1])

    def test_holds_dtypes_that_safetensors_lacks(self, tmp_path: Path) -> None:
        state = small_state() | {"wide": torch.randn(3, dtype=torch.complex128).conj()}

        result = convert_file(save(tmp_path / "a.pt", state), options=ConvertOptions(to="torch"))

        loaded = torch.load(result.output_path, weights_only=True)
        assert torch.equal(loaded["wide"], state["wide"].resolve_conj())

    def test_a_tensor_and_its_conjugate_stay_two(self, tmp_path: Path) -> None:
        number = torch.randn(3, dtype=torch.complex64)
        state = small_state() | {"z": number, "conjugate": number.conj()}

        result = convert_file(save(tmp_path / "a.pt", state), options=ConvertOptions(to="torch"))

        loaded = torch.load(result.output_path, weights_only=True)
        assert torch.equal(loaded["z"], number)
        assert torch.equal(loaded["conjugate"], number.conj().resolve_conj())

    def test_keeps_the_versions_of_modules_but_of_frozen_ones(self, tmp_path: Path) -> None:
        source = save(tmp_path / "a.pt", model().state_dict())

        result = convert_file(source, options=ConvertOptions(to="torch"))

        loaded = torch.load(result.output_path, weights_only=True)
        assert loaded._metadata["0"] == {"version": 1}
        # detectron2 up to 0.4 subtracts eps from the variance of what has a version below 3.
        assert "1" not in loaded._metadata
        model().load_state_dict(loaded, strict=True)
        assert model().state_dict()._metadata["1"] == {"version": 2}

    def test_carries_its_record_and_is_frozen_already(self, tmp_path: Path) -> None:
        first = convert_file(save(tmp_path / "a.pt", model()), options=ConvertOptions(to="torch"))

        assert layers(first.output_path)["1"].reason == "frozen already"
        with pytest.raises(NothingToFreezeError):
            convert_file(first.output_path)

    def test_records_are_stored_and_aligned(self, tmp_path: Path) -> None:
        result = convert_file(
            save(tmp_path / "a.pt", small_state()), options=ConvertOptions(to="torch")
        )

        with zipfile.ZipFile(result.output_path) as archive:
            assert archive.testzip() is None
            assert {info.compress_type for info in archive.infolist()} == {0}
        with open_checkpoint(result.output_path) as checkpoint:
            starts = {tensor.storage.start % 64 for tensor in checkpoint.entries.values()}  # type: ignore[attr-defined]
        assert starts == {0}

    def test_the_same_input_gives_the_same_bytes(self, tmp_path: Path) -> None:
        source = save(tmp_path / "a.pt", small_state())

        first, second = (
            convert_file(source, tmp_path / name, options=ConvertOptions(to="torch"))
            for name in ("one", "two")
        )

        assert first.output_path.read_bytes() == second.output_path.read_bytes()


class TestOtherKinds:
    def test_an_exported_program_is_named(self, tmp_path: Path) -> None:
        path = tmp_path / "a.pt2"
        torch.export.save(torch.export.export(model().eval(), (torch.ones(1, 3, 4, 4),)), path)

        assert inspect_file(path).kind == "exported program (torch.export)"

    @pytest.mark.parametrize(
        ("head", "looks"),
        [
            (b"", "an empty file"),
            (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
            (b"\n<!DOCTYPE html><html>", "a web page"),
            (b"\x08\x08\x12\x07pytorch", "an ONNX model"),
            (b"\x08\x01\x12\x99\x9d", "a protocol buffer"),
            (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
            (b"\x1c\0\0\0TFL3", "a TensorFlow Lite model"),
            (b"GGUF\3", "a GGUF file"),
            (b"\x1f\x8b\x08", "a gzip file"),
            (bytes(300), "zeros"),
            (b"\0" * 257 + b"ustar", "a tar archive"),
            (b"\x01\x02\x03", "bytes 01 02 03"),
        ],
    )
    def test_anything_else_is_likened(self, tmp_path: Path, head: bytes, looks: str) -> None:
        (tmp_path / "a.pth").write_bytes(head)

        assert likeness(head).startswith(looks)
        assert all(likeness(head[:size]) for size in range(len(head)))
        with pytest.raises(UnsupportedFileError, match="expected a file that PyTorch") as caught:
            inspect_file(tmp_path / "a.pth")
        assert caught.value.exit_code == 3

    def test_a_download_that_was_cut_off_says_so(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.pt", small_state())
        path.write_bytes(path.read_bytes()[:-300])

        with pytest.raises(DamagedFileError, match="truncated, or its download did not finish"):
            inspect_file(path)


class Payload:
    """Unpickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


class TestForeignNames:
    def test_what_would_be_called_is_listed_by_name(self, tmp_path: Path) -> None:
        import os

        marker = tmp_path / "marker"
        state: dict[str, Any] = {**small_state(), "x": Payload(os.system, f"touch {marker}")}
        path = save(tmp_path / "a.pt", state)

        found = inspect_file(path)
        convert_file(path)

        assert found.foreign_names == {"posix.system": True}
        assert found.has_errors
        assert not marker.exists()

    def test_a_name_that_is_not_called_would_still_be_imported(self, tmp_path: Path) -> None:
        path = save(tmp_path / "a.pt", {**small_state(), "x": argparse.ArgumentParser})

        found = inspect_file(path)

        assert found.foreign_names == {"argparse.ArgumentParser": False}
        assert not found.has_errors

    def test_classes_of_a_module_are_its_nature_and_functions_are_not(
        self, tmp_path: Path, block: Block
    ) -> None:
        block.hook = Payload(eval, "1 + 1")  # type: ignore[assignment]

        found = inspect_file(save(tmp_path / "a.pt", block))

        assert found.foreign_names == {"__builtin__.eval": True}
