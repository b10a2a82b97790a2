import zipfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

from frozenbn_cli.batch_norms.batch_norm import Eps, find_batch_norms
from frozenbn_cli.batch_norms.record import METADATA_KEY, ConversionRecord
from frozenbn_cli.checkpoints import Checkpoint, open_checkpoint
from frozenbn_cli.errors import VerificationError
from frozenbn_cli.verification import library_files
from frozenbn_cli.verification.claims import Claim
from frozenbn_cli.verification.contents import verify_contents
from frozenbn_cli.verification.layers import verify_layers
from frozenbn_cli.verification.written import WrittenFile, open_written
from tests.builders.files import State, save, small_state


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Checkpoint]:
    with open_checkpoint(save(tmp_path / "source.pt", small_state())) as checkpoint:
        yield checkpoint


def written(tmp_path: Path, state: State, *, eps: float | None = 1e-5) -> WrittenFile:
    layers = {name: Eps(eps, "given") for name in ("bn1", "bn2")} if eps is not None else {}
    record = ConversionRecord("0", {}, layers)
    save_file(state, tmp_path / "written.safetensors", {METADATA_KEY: record.to_text()})
    return open_written(tmp_path / "written.safetensors", "safetensors")


def contents(tmp_path: Path, source: Checkpoint, state: State) -> Claim:
    return verify_contents(written(tmp_path, state), source.entries, lambda _: None)


def layers(tmp_path: Path, source: Checkpoint, state: State, eps: float | None = 1e-5) -> Claim:
    found = {layer.name: layer for layer in find_batch_norms(source.state_dict())}
    return verify_layers(written(tmp_path, state, eps=eps), found)


def test_equal_contents(tmp_path: Path, source: Checkpoint) -> None:
    claim = contents(tmp_path, source, small_state())

    assert (claim.status, claim.checked) == ("equal", len(small_state()))


def flipped_bit(state: State) -> None:
    state["conv2.weight"].view(torch.int32)[3, 1] ^= 1


def lost_entry(state: State) -> None:
    del state["fc.weight"]


def added_entry(state: State) -> None:
    state["extra"] = torch.zeros(1)


def other_dtype(state: State) -> None:
    state["fc.weight"] = state["fc.weight"].double()


def other_shape(state: State) -> None:
    state["fc.weight"] = state["fc.weight"].reshape(-1)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (flipped_bit, "conv2.weight: 1 of 24 elements differs, by up to "),
        (lost_entry, "fc.weight: missing"),
        (added_entry, "extra: added"),
        (other_dtype, "fc.weight: float64 instead of float32"),
        (other_shape, "fc.weight: shape [12] instead of [2, 6]"),
    ],
)
def test_different_contents_are_named(tmp_path: Path, source: Checkpoint, fault, said) -> None:
    state = small_state()
    fault(state)

    claim = contents(tmp_path, source, state)

    assert claim.status == "different"
    assert claim.detail.startswith(said)


def test_negative_zero_is_not_zero(tmp_path: Path) -> None:
    with open_checkpoint(save(tmp_path / "a.pt", {"a": torch.tensor([0.0])})) as source:
        claim = contents(tmp_path, source, {"a": torch.tensor([-0.0])})

    assert claim.status == "different"


def test_nan_equals_the_same_nan(tmp_path: Path) -> None:
    state = {"a": torch.tensor([float("nan")])}
    with open_checkpoint(save(tmp_path / "a.pt", state)) as source:
        assert contents(tmp_path, source, state).status == "equal"


def test_equal_layers(tmp_path: Path, source: Checkpoint) -> None:
    claim = layers(tmp_path, source, small_state())

    assert (claim.status, claim.checked) == ("equal", 2)


def swapped_statistics(state: State) -> None:
    state["bn2.running_mean"], state["bn2.running_var"] = (
        state["bn2.running_var"],
        state["bn2.running_mean"].abs(),
    )


def one_ulp_of_a_weight(state: State) -> None:
    state["bn2.weight"].view(torch.int32)[5] += 1


@pytest.mark.parametrize("fault", [swapped_statistics, one_ulp_of_a_weight])
def test_a_different_layer_is_named(tmp_path: Path, source: Checkpoint, fault) -> None:
    state = small_state()
    fault(state)

    claim = layers(tmp_path, source, state)

    assert [item.place for item in claim.differences] == ["bn2"]
    assert claim.status == "different"
    assert claim.detail.startswith("bn2: outputs differ, ")


def test_another_eps_is_a_difference(tmp_path: Path, source: Checkpoint) -> None:
    assert layers(tmp_path, source, small_state(), eps=1e-3).status == "different"
    assert layers(tmp_path, source, small_state(), eps=1.01e-5).status == "different"


def test_a_layer_whose_eps_is_not_stated_is_a_difference(
    tmp_path: Path, source: Checkpoint
) -> None:
    assert "does not state its eps" in layers(tmp_path, source, small_state(), eps=None).detail


def test_no_layers_are_not_called_equal(tmp_path: Path, source: Checkpoint) -> None:
    claim = verify_layers(written(tmp_path, small_state()), {})

    assert claim.status == "not verified"


def test_a_layer_that_cannot_be_run_is_not_verified(
    tmp_path: Path, source: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_kernel(*_: object) -> None:
        raise RuntimeError("not implemented for 'Float8_e5m2'\nat somewhere")

    monkeypatch.setattr(torch.nn.BatchNorm2d, "forward", no_kernel)

    claim = layers(tmp_path, source, small_state())

    assert claim.status == "not verified"
    assert claim.detail == "bn1 cannot be run here: not implemented for 'Float8_e5m2'"


@pytest.mark.parametrize("output_format", ["safetensors", "torch"])
def test_what_the_library_cannot_read_back_is_refused(tmp_path: Path, output_format) -> None:
    broken = tmp_path / "broken"
    pickled = b"cos\nsystem\n(tR."
    header = b'{"a":{"dtype":"Q7","shape":[],"data_offsets":[0,0]}}'
    if output_format == "safetensors":
        broken.write_bytes(len(header).to_bytes(8, "little") + header)
    else:
        with zipfile.ZipFile(broken, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/version", "3\n")

    with pytest.raises(VerificationError, match="cannot be read back"):
        open_written(broken, output_format)


@pytest.mark.parametrize(
    ("name", "is_transposed", "mapped"),
    [("a.safetensors", False, 4), ("a.pt", False, 4), ("a.pt", True, 1)],
)
def test_a_large_entry_is_mapped_anew_for_each_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_transposed: bool, mapped: int
) -> None:
    weight = torch.randn(900, 1000)
    changed = weight.clone()
    changed[-1, -1] += 1
    monkeypatch.setattr(library_files, "_WINDOW_BYTES", 1 << 20)

    def claim_and_reads(matrix: torch.Tensor) -> tuple[Claim, int]:
        file = open_written(
            save(tmp_path / name, {"a": matrix.t() if is_transposed else matrix}),
            "torch" if name == "a.pt" else "safetensors",
        )
        reads = mock.Mock(wraps=file.tensor)
        monkeypatch.setattr(file, "tensor", reads)
        with open_checkpoint(source) as checkpoint:
            claim = verify_contents(file, checkpoint.entries, lambda _: None)
        return claim, reads.call_count

    source = save(tmp_path / "source.pt", {"a": weight.t() if is_transposed else weight})
    equal, reads = claim_and_reads(weight)
    different, _ = claim_and_reads(changed)

    assert (equal.status, reads) == ("equal", mapped)
    assert different.status == "different"
    assert different.differences[0].measure
    assert different.differences[0].measure.differing == 1


@pytest.mark.parametrize("output_format", ["safetensors", "torch"])
def test_a_large_file_is_opened_anew_so_that_its_pages_do_not_pile_up(
    tmp_path: Path, source: Checkpoint, monkeypatch: pytest.MonkeyPatch, output_format
) -> None:
    path = tmp_path / ("a.safetensors" if output_format == "safetensors" else "a.pt")
    save(path, small_state())
    file = open_written(path, output_format)
    first = file._window.file  # type: ignore[attr-defined]
    monkeypatch.setattr(library_files, "_WINDOW_BYTES", 100)

    claim = verify_contents(file, source.entries, lambda _: None)

    assert claim.status == "equal"
    assert file._window.file is not first  # type: ignore[attr-defined]
