"""Layers are run where PyTorch is: here, or in the process that runs the model of an archive."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from frozenbn_cli.batch_norms.batch_norm import Eps, find_batch_norms
from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.foreign_code import apart
from frozenbn_cli.verification import layers as layers_module
from frozenbn_cli.verification.claims import Claim
from frozenbn_cli.verification.layers import verify_layers
from frozenbn_cli.verification.written import open_part
from tests.builders.files import State, save, small_state

SAMPLES = Path(__file__).parents[2] / "samples"
CONVERTS_AND_VERIFIES = """
import sys
from frozenbn_cli.cli import run

for path in sys.argv[1:]:
    assert run(["convert", path, "-o", "out.pt2" if path.endswith("2") else "out.pt"]) == 0
    assert run(["verify", path, "out.pt2" if path.endswith("2") else "out.pt"]) == 0
assert "torch" not in sys.modules
"""
needs_a_process = pytest.mark.skipif(not apart.CAN_RUN, reason="nothing runs apart here")


@needs_a_process
def test_an_archive_is_proven_by_one_process_that_imports_torch(tmp_path: Path) -> None:
    names = ("digits_backbone.torchscript.pt", "digits_backbone.pt2")
    command = [sys.executable, "-c", CONVERTS_AND_VERIFIES, *(str(SAMPLES / n) for n in names)]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("PASSED: contents, layers and model equal") == 4


def claim_on(path: Path, state: State) -> Claim:
    stated = {name: Eps(1e-5, "given") for name in ("bn1", "bn2")}
    with (
        open_checkpoint(save(path / "before.pt", small_state())) as before,
        open_checkpoint(save(path / "after.pt", state)) as after,
    ):
        layers = {layer.name: layer for layer in find_batch_norms(before.state_dict())}
        return verify_layers(open_part(after, after.state_dict()), layers, stated=stated)


def other_mean(state: State) -> None:
    state["bn2.running_mean"][1] += 1


def missing_entry(state: State) -> None:
    del state["bn2.running_var"]


def nothing(_: State) -> None:
    pass


@needs_a_process
@pytest.mark.parametrize("change", [nothing, other_mean, missing_entry])
def test_what_another_process_finds_is_what_is_found_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change
) -> None:
    state = small_state()
    change(state)
    here = claim_on(tmp_path, state)
    apart.prepare()
    monkeypatch.setattr(layers_module, "sys", SimpleNamespace(modules={}))
    monkeypatch.setattr(layers_module, "import_torch_for", lambda _: pytest.fail("run here"))

    assert claim_on(tmp_path, state) == here
    assert here.status == ("equal" if change is nothing else "different")


def test_layers_are_run_here_where_the_other_process_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise apart.JobFailed

    monkeypatch.setattr(apart, "is_prepared", lambda: True)
    monkeypatch.setattr(apart, "run_apart", fail)
    monkeypatch.setattr(layers_module, "sys", SimpleNamespace(modules={}))

    assert claim_on(tmp_path, small_state()).status == "equal"
