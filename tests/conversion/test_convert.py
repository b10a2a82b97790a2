import hashlib
import json
from dataclasses import replace
from datetime import datetime, timezone
from importlib import metadata as metadata_of
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import frozenbn_cli
from frozenbn_cli.batch_norms.record import METADATA_KEY
from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.containers.safetensors_file import SafetensorsWriter
from frozenbn_cli.conversion.convert import ConversionResult, ConvertOptions, convert_file
from frozenbn_cli.errors import (
    DamagedFileError,
    InputError,
    NothingToFreezeError,
    OutputError,
    UnhealthyStatisticsError,
    UnsupportedFileError,
    UsageError,
    VerificationError,
)
from frozenbn_cli.outputs import OutputFormat
from frozenbn_cli.selection import Selection
from frozenbn_cli.verification import output
from frozenbn_cli.verification.claims import Claim
from tests.builders.files import State, batch_norm, nested, save, small_state

FORMATS = ["model.pt", "model.legacy", "model.safetensors"]
DATE = datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
COUNTS = {"bn1.num_batches_tracked", "bn2.num_batches_tracked"}


def metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def conversion_record(path: Path) -> dict[str, Any]:
    with open_checkpoint(path) as checkpoint:
        return json.loads(checkpoint.metadata[METADATA_KEY])


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "partial" in path.name)


def assert_same_entries(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(
            found[name].reshape(-1).view(torch.uint8),
            tensor.contiguous().reshape(-1).view(torch.uint8),
        ), name


@pytest.mark.parametrize("name", FORMATS)
def test_keeps_every_entry_but_the_counts_bit_for_bit(tmp_path: Path, name: str) -> None:
    state = small_state()
    source = save(tmp_path / name, state)
    before = source.read_bytes()

    result = convert_file(source, tmp_path / "out.safetensors")

    expected = {name: tensor for name, tensor in state.items() if name not in COUNTS}
    assert_same_entries(load_file(tmp_path / "out.safetensors"), expected)
    assert {edit.entry for edit in result.plan.edits} == COUNTS
    assert source.read_bytes() == before
    assert not leftovers(tmp_path)


def test_writes_beside_the_input_by_default(tmp_path: Path) -> None:
    source = save(tmp_path / "model.v2.pth.tar", small_state())

    result = convert_file(source)

    assert result.output_path == tmp_path / "model.v2.frozen.safetensors"
    assert result.output_path.stat().st_size == result.output_bytes


def test_verifies_contents_and_layers_and_says_why_not_the_model(tmp_path: Path) -> None:
    result = convert_file(save(tmp_path / "a.pt", small_state()))

    assert {claim.name: claim.status for claim in result.claims} == {
        "contents": "equal",
        "layers": "equal",
        "model": "not verified",
    }
    assert "no model" in result.claims[2].detail
    assert result.outcome == "converted"


def test_metadata_records_the_conversion(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pt", small_state())

    result = convert_file(source, options=ConvertOptions(eps=0.1 + 0.2, date=DATE))

    output = tmp_path / "a.frozen.safetensors"
    assert metadata(output)["format"] == "pt"
    assert conversion_record(output) == {
        "schema_version": 1,
        "frozenbn": frozenbn_cli.__version__,
        "source": {
            "file": "a.pt",
            "sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
            "size_bytes": source.stat().st_size,
        },
        "layers": {
            "bn1": {"eps": 0.1 + 0.2, "eps_source": "given"},
            "bn2": {"eps": 0.1 + 0.2, "eps_source": "given"},
        },
        "verified": ["contents", "layers"],
        "options": {
            "to": "safetensors",
            "key": None,
            "keep_prefix": False,
            "eps": 0.1 + 0.2,
            "include": [],
            "exclude": [],
            "recognise": True,
            "force_unhealthy": False,
            "model": None,
        },
        "date": "2030-01-02T03:04:05Z",
        "torch": metadata_of.version("torch"),
        "claims": [
            {"name": claim.name, "status": claim.status, "detail": claim.detail}
            for claim in result.claims
        ],
    }


def test_one_date_and_one_version_give_the_same_bytes(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pt", small_state())
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"

    convert_file(source, first, options=ConvertOptions(date=DATE))
    convert_file(source, second, options=ConvertOptions(date=DATE))

    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("to", ["safetensors", "torch"])
def test_hashes_the_output_on_request(tmp_path: Path, to: OutputFormat) -> None:
    source = save(tmp_path / "a.pt", small_state())

    result = convert_file(source, tmp_path / "out", options=ConvertOptions(to=to, hash_output=True))

    assert result.output_sha256 == hashlib.sha256((tmp_path / "out").read_bytes()).hexdigest()
    assert convert_file(source).output_sha256 is None


def test_metadata_says_when_eps_is_assumed_and_nothing_was_verified(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pt", small_state())

    result = convert_file(source, options=ConvertOptions(verify=False))

    record = conversion_record(result.output_path)
    assert record["layers"]["bn1"] == {"eps": 1e-5, "eps_source": "assumed"}
    assert record["verified"] == []
    assert {claim.status for claim in result.claims} == {"not verified"}


def test_keeps_the_metadata_of_a_safetensors_input(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(small_state(), tmp_path / "a.safetensors", metadata={"author": "me"})

    result = convert_file(tmp_path / "a.safetensors")

    assert metadata(result.output_path)["author"] == "me"


def test_a_second_conversion_finds_nothing_to_do(tmp_path: Path) -> None:
    first = convert_file(save(tmp_path / "a.pt", small_state()))

    with pytest.raises(NothingToFreezeError) as caught:
        convert_file(first.output_path, tmp_path / "again.safetensors")

    assert {plan.reason for plan in caught.value.result.plan.layers} == {"frozen already"}
    assert not (tmp_path / "again.safetensors").exists()


@pytest.mark.parametrize("to", ["safetensors", "torch"])
def test_layers_that_were_frozen_before_stay_on_record(tmp_path: Path, to: Any) -> None:
    source = save(tmp_path / "a.pt", small_state())
    how = ConvertOptions(to=to, eps=1e-3, selection=Selection.of(include="bn1"))
    first = convert_file(source, options=how)

    second = convert_file(first.output_path, tmp_path / "b", options=ConvertOptions(eps=1e-4))

    assert [plan.layer.name for plan in second.plan.frozen] == ["bn2"]
    assert conversion_record(second.output_path)["layers"] == {
        "bn1": {"eps": 1e-3, "eps_source": "given"},
        "bn2": {"eps": 1e-4, "eps_source": "given"},
    }


def test_freezes_the_selected_layers_only(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pt", small_state())

    result = convert_file(source, options=ConvertOptions(selection=Selection.of(exclude="bn2")))

    assert "bn2.num_batches_tracked" in load_file(result.output_path)
    assert list(conversion_record(result.output_path)["layers"]) == ["bn1"]


def test_a_pattern_without_effect_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pt", small_state())

    with pytest.raises(UsageError, match=r"matches no BatchNorm layer. Is it 'bn2' or 'bn1'"):
        convert_file(source, options=ConvertOptions(selection=Selection.of(include="bn9")))


def test_layers_of_other_dimensions_are_left_alone(tmp_path: Path) -> None:
    state = small_state() | nested(head={"weight": torch.randn(5, 6)}, last=batch_norm(5))

    result = convert_file(save(tmp_path / "a.pt", state))

    (left,) = result.plan.left
    assert (left.layer.name, left.reason) == ("last", "BatchNorm1d, inferred from head.weight")
    assert "last.num_batches_tracked" in load_file(result.output_path)


def test_a_dry_run_plans_and_writes_nothing(tmp_path: Path) -> None:
    source = save(tmp_path / "a.pt", small_state())

    result = convert_file(source, options=ConvertOptions(dry_run=True))

    assert result.outcome == "planned"
    assert len(result.plan.frozen) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_says_what_is_no_tensor_and_was_not_written(tmp_path: Path) -> None:
    state: dict[str, Any] = {**small_state(), "bn1._extra_state": {"version": 3}}

    result = convert_file(save(tmp_path / "a.pt", state))

    assert list(result.left_out) == ["bn1._extra_state"]
    assert "bn1._extra_state" not in load_file(result.output_path)


def test_writes_tied_views_and_narrow_dtypes_with_their_values(tmp_path: Path) -> None:
    shared = torch.randn(6, 4)
    state = small_state() | {
        "tied": shared,
        "tied_again": shared,
        "transposed": shared.t(),
        "row": shared[2],
        "eighth": torch.randn(5).to(torch.float8_e4m3fn),
        "flag": torch.tensor(True),
        "empty": torch.zeros(0, 3),
        "conjugate": torch.randn(3, dtype=torch.complex64).conj(),
    }

    result = convert_file(save(tmp_path / "a.pt", state))

    expected = {name: entry for name, entry in state.items() if name not in COUNTS}
    expected["conjugate"] = expected["conjugate"].resolve_conj()
    assert_same_entries(load_file(result.output_path), expected)


def test_a_dtype_that_safetensors_lacks_is_refused(tmp_path: Path) -> None:
    state = small_state() | {"wide": torch.zeros(2, dtype=torch.complex128)}

    with pytest.raises(UnsupportedFileError, match=r"a\.pt, entry 'wide'.*complex128"):
        convert_file(save(tmp_path / "a.pt", state))
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    state = small_state() | {"lone \ud800 surrogate": torch.zeros(1)}

    with pytest.raises(UnsupportedFileError, match="no valid text"):
        convert_file(save(tmp_path / "a.legacy", state))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_converts_models_of_every_floating_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in small_state().items()}

    result = convert_file(save(tmp_path / "a.pt", state))

    assert result.claims[1].status == "equal"
    assert load_file(result.output_path)["bn1.weight"].dtype == dtype


class TestStops:
    def broken(self, tmp_path: Path) -> Path:
        state = small_state()
        state["bn1.running_var"][1] = -1
        return save(tmp_path / "a.pt", state)

    def test_broken_statistics(self, tmp_path: Path) -> None:
        with pytest.raises(
            UnhealthyStatisticsError, match="statistics in 1 of 2 BatchNorm layers"
        ) as caught:
            convert_file(self.broken(tmp_path))

        assert caught.value.exit_code == 1
        assert [plan.layer.name for plan in caught.value.result.plan.broken] == ["bn1"]
        assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]

    def test_unless_they_are_excluded(self, tmp_path: Path) -> None:
        options = ConvertOptions(selection=Selection.of(exclude="bn1"))

        assert convert_file(self.broken(tmp_path), options=options).outcome == "converted"

    def test_unless_forced(self, tmp_path: Path) -> None:
        result = convert_file(self.broken(tmp_path), options=ConvertOptions(force_unhealthy=True))

        assert len(result.plan.frozen) == 2
        assert result.claims[1].status == "equal"

    def test_layers_that_are_none_are_left_alone_when_forced(self, tmp_path: Path) -> None:
        state = small_state()
        del state["bn1.running_var"]

        result = convert_file(
            save(tmp_path / "a.pt", state), options=ConvertOptions(force_unhealthy=True)
        )

        assert [plan.reason for plan in result.plan.left] == [
            "cannot be frozen: running_mean without running_var"
        ]

    def test_fresh_statistics(self, tmp_path: Path) -> None:
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))

        with pytest.raises(UnhealthyStatisticsError):
            convert_file(save(tmp_path / "a.pt", model.state_dict()))

    def test_a_file_without_batch_norm(self, tmp_path: Path) -> None:
        with pytest.raises(NothingToFreezeError, match="no BatchNorm in it"):
            convert_file(save(tmp_path / "a.pt", {"fc.weight": torch.zeros(2, 2)}))

    def test_an_output_that_exists(self, tmp_path: Path) -> None:
        target = tmp_path / "out.safetensors"
        target.write_text("precious")
        source = save(tmp_path / "a.pt", small_state())

        with pytest.raises(UsageError, match="exists already"):
            convert_file(source, target)

        assert target.read_text() == "precious"
        assert convert_file(source, target, options=ConvertOptions(force=True)).output_bytes

    @pytest.mark.parametrize("dry_run", [False, True])
    def test_an_output_whose_name_is_too_long(self, tmp_path: Path, dry_run: bool) -> None:
        source, target = save(tmp_path / "a.pt", small_state()), tmp_path / ("x" * 300 + ".pt")

        with pytest.raises(OutputError, match="cannot be written"):
            convert_file(source, target, options=ConvertOptions(dry_run=dry_run))

    @pytest.mark.parametrize("link", [False, True])
    def test_an_output_that_is_the_input(self, tmp_path: Path, link: bool) -> None:
        source = save(tmp_path / "a.pt", small_state())
        target = tmp_path / "link.pt"
        target.symlink_to(source) if link else (target := source)

        with pytest.raises(UsageError, match="is the input"):
            convert_file(source, target, options=ConvertOptions(force=True))

    def test_an_output_that_is_a_shard_of_the_input(self, tmp_path: Path) -> None:
        shard = save(tmp_path / "m.safetensors", small_state())
        index = {"weight_map": dict.fromkeys(small_state(), shard.name)}
        (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))

        with pytest.raises(UsageError, match="is the input"):
            convert_file(tmp_path, shard, options=ConvertOptions(force=True))

    def test_options_that_make_no_sense(self) -> None:
        for options in ({"to": "onnx"}, {"eps": -1.0}, {"eps": float("nan")}):
            with pytest.raises(UsageError):
                ConvertOptions(**options)  # type: ignore[arg-type]

    def test_a_dry_run_whose_output_exists(self, tmp_path: Path) -> None:
        source = save(tmp_path / "a.pt", small_state())
        (tmp_path / "a.frozen.safetensors").touch()

        assert convert_file(source, options=ConvertOptions(dry_run=True)).is_taken
        allowed = ConvertOptions(dry_run=True, force=True)
        assert not convert_file(source, options=allowed).is_taken

    def test_a_name_that_safetensors_reserves(self, tmp_path: Path) -> None:
        state = small_state() | {"__metadata__": torch.ones(1)}

        with pytest.raises(UnsupportedFileError, match="keeps the entry name"):
            convert_file(save(tmp_path / "a.pt", state))

    def test_an_output_without_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="folder does not exist"):
            convert_file(save(tmp_path / "a.pt", small_state()), tmp_path / "no" / "out")

    def test_a_record_whose_checksum_does_not_match(self, tmp_path: Path) -> None:
        source = save(tmp_path / "a.pt", small_state())
        content = bytearray(source.read_bytes())
        place = content.index(small_state()["conv1.weight"].numpy().tobytes()[:16])
        content[place] ^= 1
        source.write_bytes(content)

        with pytest.raises(DamagedFileError, match=r"a\.pt, record .*checksum"):
            convert_file(source)
        assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


class TestLeavesNothingBehind:
    def test_when_the_disk_is_full(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        source = save(tmp_path / "a.pt", small_state())

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(SafetensorsWriter, "write", full)

        with pytest.raises(OutputError, match="No space left"):
            convert_file(source)
        assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]

    @pytest.mark.parametrize("stage", ["writing", "comparing", "running the layers"])
    def test_when_it_is_interrupted(self, tmp_path: Path, stage: str) -> None:
        source = save(tmp_path / "a.pt", small_state())

        def interrupt(now: str, done: int, total: int) -> None:
            if now == stage:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            convert_file(source, progress=interrupt)
        assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]

    @pytest.mark.parametrize("claim", ["contents", "layers"])
    def test_when_the_verification_fails(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, claim: Any
    ) -> None:
        source = save(tmp_path / "a.pt", small_state())
        different = Claim(claim, "different", "bn1: outputs differ")
        monkeypatch.setattr(output, f"verify_{claim}", lambda *_, **__: different)

        with pytest.raises(VerificationError, match="bn1: outputs differ") as caught:
            convert_file(source)

        assert caught.value.result.outcome == "different"
        assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]

    def test_when_the_writer_is_wrong(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = SafetensorsWriter.write

        def flipping(self: Any, chunk: bytes) -> None:
            write(self, bytes([chunk[0] ^ 1]) + chunk[1:])

        monkeypatch.setattr(SafetensorsWriter, "write", flipping)

        with pytest.raises(VerificationError, match="contents"):
            convert_file(save(tmp_path / "a.pt", small_state()))

    def test_when_the_final_header_is_wrong(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        finish = SafetensorsWriter.finish

        def forgetting(self: Any, metadata: dict[str, str]) -> None:
            finish(
                self,
                {**metadata, METADATA_KEY: metadata[METADATA_KEY].replace('layers"]', 'model"]')}
                if METADATA_KEY in metadata
                else metadata,
            )

        monkeypatch.setattr(SafetensorsWriter, "finish", forgetting)

        with pytest.raises(VerificationError, match="record"):
            convert_file(save(tmp_path / "a.pt", small_state()))
        assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_tells_how_far_it_has_come(tmp_path: Path) -> None:
    seen: dict[str, tuple[int, int]] = {}

    def note(stage: str, done: int, total: int) -> None:
        seen[stage] = (done, total)

    convert_file(save(tmp_path / "a.pt", small_state()), progress=note)

    assert list(seen) == [
        "writing", "syncing", "hashing the input", "comparing", "running the layers",
    ]  # fmt: skip
    assert all(done == total for done, total in seen.values())


def test_result_times_its_stages(tmp_path: Path) -> None:
    result: ConversionResult = convert_file(save(tmp_path / "a.pt", small_state()))

    assert set(result.seconds) == {"plan", "write", "verify"}
    assert replace(result, seconds={}).seconds == {}


@pytest.mark.parametrize("change", ["bytes", "size"])
def test_refuses_an_input_that_changes_while_it_is_read(change: str, tmp_path: Path) -> None:
    path = save(tmp_path / "model.safetensors", small_state())

    def write_to_it(stage: str, done: int, total: int) -> None:
        with path.open("r+b") as file:
            file.seek(-1 if change == "bytes" else 0, 2)
            file.write(b"x")

    with pytest.raises(InputError, match="was changed while it was read"):
        convert_file(path, tmp_path / "out.safetensors", progress=write_to_it)

    assert list(tmp_path.iterdir()) == [path]
