"""Archives that crash, hang, allocate or talk are converted, and their model is not verified."""

import errno
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from frozenbn_cli.conversion.convert import ConvertOptions, convert_file
from frozenbn_cli.errors import OutputError
from frozenbn_cli.foreign_code.apart import CAN_RUN
from frozenbn_cli.loading import load_frozen
from frozenbn_cli.pickles.values import Call
from frozenbn_cli.verification.claims import Claim, Difference, Measure
from frozenbn_cli.verification.files import verify_files
from frozenbn_cli.verification.terms import VerifyOptions
from frozenbn_cli.verification.told_claims import claim_of, told
from tests.builders.archives import script
from tests.builders.files import save, small_state
from tests.builders.models import perturb
from tests.conftest import archive_records, name, tensor_call, zip_bytes

pytestmark = pytest.mark.skipif(not CAN_RUN, reason="code of files runs in this process here")


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)


class Endless(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        while bool((y.abs() >= 0).any()):
            y = y + 0
        return y


class Crashing(Base):
    def forward(self, x: Tensor) -> Tensor:
        beyond = torch.tensor([0, 1 << 40])
        indices = torch._convert_indices_from_csr_to_coo(beyond, torch.tensor([0]))
        return self.bn(self.conv(x)) + indices.sum()


class Allocating(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        held = [y]
        while bool((y.abs() >= 0).any()):
            held.append(torch.empty([1 << 30]))
        return y + len(held)


class EndlessToLoad(Base):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Hooked()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.bn(self.conv(x)))


class Hooked(nn.Module):
    count: int

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.count

    @torch.jit.export
    def __getstate__(self) -> tuple[int, bool]:
        return self.count, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[int, bool]) -> None:
        self.count = state[0]
        while self.count >= 0:
            self.count = (self.count + 1) % 7
        self.training = state[1]


class Talking(Base):
    def forward(self, x: Tensor) -> Tensor:
        print("PASSED\x1b[2J")
        return self.bn(self.conv(x))


def hostile(kind: type[nn.Module], folder: Path) -> Path:
    return script(perturb(kind().eval()), folder / "model.pt")


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Crashing, "it ended the process that ran it (SIGSEGV)"),
        (Allocating, "can't allocate memory"),
    ],
)
def test_what_an_archive_does_is_said_and_nothing_else_happens(
    kind: type[nn.Module], reason: str, tmp_path: Path
) -> None:
    assert reason in why_not_verified(hostile(kind, tmp_path), timeout=100)


@pytest.mark.usefixtures("process_of_its_own")  # It ends with a job that takes too long.
@pytest.mark.parametrize("kind", [Endless, EndlessToLoad])
def test_an_archive_that_goes_on_for_ever_is_given_up(
    kind: type[nn.Module], tmp_path: Path
) -> None:
    assert why_not_verified(hostile(kind, tmp_path), timeout=0.5) == (
        "it was not done after 0.5 seconds; --timeout allows more"
    )


def why_not_verified(path: Path, *, timeout: float) -> str:
    """Convert an archive, and return what is said of its model; the file is there, and no other."""
    result = convert_file(path, options=ConvertOptions(timeout=timeout))

    claims = {claim.name: claim for claim in result.claims}
    assert (claims["contents"].status, claims["layers"].status) == ("equal", "equal")
    assert claims["model"].status == "not verified"
    assert {found.name for found in path.parent.iterdir()} == {path.name, result.output_path.name}
    return claims["model"].detail


def test_what_an_archive_prints_is_marked_as_its_own(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = convert_file(hostile(Talking, tmp_path))

    shown = capfd.readouterr()
    assert [claim.status for claim in result.claims] == ["equal"] * 3
    assert shown.out == ""
    assert set(shown.err.splitlines()) == {"the model printed: PASSED\\x1b[2J"}


def test_an_archive_is_loaded_from_a_private_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hostile(Plain, tmp_path)
    output = convert_file(path, options=ConvertOptions(verify=False)).output_path
    folders = tmp_path / "temporary"
    folders.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folders))
    loaded: list[Path] = []

    def watched(path: Path) -> object:
        loaded.append(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.jit.load(path)

    monkeypatch.setattr("frozenbn_cli.torch_jit.load", watched)
    monkeypatch.setattr("frozenbn_cli.foreign_code.apart.CAN_RUN", False)

    result = verify_files(path, output, options=VerifyOptions())

    assert result.claims[2].status == "equal"
    assert loaded
    assert all(each.is_relative_to(folders) for each in loaded)
    assert list(folders.iterdir()) == []


class Plain(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


def test_a_claim_survives_being_told() -> None:
    measure = Measure(
        elements=4, differing=2, absolute=float("inf"), index=(0, 1), before=1.5, after=2 + 3j,
        relative=0.5, relative_index=(), ulps=None, mean=0.25, percentile_99=0.5,
    )  # fmt: skip
    differences = (Difference("place", "problem", measure, True), Difference("other", "is"))
    claim = Claim("model", "different", "detail", 4, differences, "begins", "advice")

    assert claim_of("model", told(claim)) == claim


@pytest.mark.parametrize(
    "change", [{"status": "passed"}, {"detail": 7}, {"checked": "x"}, {"differences": 1}]
)
def test_a_claim_that_is_none_is_no_claim(change: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError)):
        claim_of("model", {**told(Claim("model", "equal", "detail")), **change})


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_no_library_reads_a_file_of_others(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = save(tmp_path / f"a.{suffix}", small_state())
    to = "torch" if suffix == "pt" else "safetensors"
    output = convert_file(original, options=ConvertOptions(to=to)).output_path

    def never(*_: object, **__: object) -> None:
        raise AssertionError

    for library in ("torch.load", "safetensors.safe_open", "safetensors.torch.load_file"):
        monkeypatch.setattr(library, never)
    monkeypatch.setattr("frozenbn_cli.verification.library_files.safe_open", never)

    assert [claim.status for claim in verify_files(original, output).claims] == [
        "equal", "equal", "not verified",
    ]  # fmt: skip
    small = {
        "conv1": nn.Conv2d(3, 4, 3, bias=False),
        "bn1": nn.BatchNorm2d(4),
        "conv2": nn.Conv2d(4, 6, 1, bias=False),
        "bn2": nn.BatchNorm2d(6),
        "fc": nn.Linear(6, 2, bias=False),
    }
    model = load_frozen(nn.ModuleDict(small), output)
    assert model.state_dict()["fc.weight"].equal(small_state()["fc.weight"])


@pytest.mark.parametrize(
    "hostile_value",
    [Call(name("torch.Size"), ("foo",)), Call(name("_codecs.encode"), ("x", "unknown"))],
)
def test_what_torch_load_would_stumble_on_is_no_bug_of_ours(
    hostile_value: Call, tmp_path: Path
) -> None:
    original = save(tmp_path / "a.pt", small_state())
    beside = {"bn1.running_mean": tensor_call(), "hostile": hostile_value}
    (tmp_path / "b.pt").write_bytes(zip_bytes(archive_records(beside)))

    result = verify_files(original, tmp_path / "b.pt")

    assert result.verdict == "failed"


def test_a_full_temporary_folder_is_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = save(tmp_path / "a.pt", nn.Sequential(nn.BatchNorm2d(2)).state_dict())
    options = ConvertOptions(to="torchscript", model=one_layer, force_unhealthy=True)
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))

    with pytest.raises(OutputError, match="the temporary folder is full"):
        convert_file(original, tmp_path / "b.pt", options=options)

    assert list(tmp_path.iterdir()) == [original]


def test_a_private_copy_that_finds_no_room_is_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = hostile(Plain, tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("frozenbn_cli.verification.private_copies._copy", full)

    with pytest.raises(OutputError, match="the temporary folder cannot be written to"):
        convert_file(path)

    assert list(tmp_path.iterdir()) == [path]


def one_layer() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(2))
