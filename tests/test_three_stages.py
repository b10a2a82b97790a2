"""The recipe runs as its README says, and its measurements measure what they claim."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from samples.backbone import Backbone
from samples.fine_tuning import (
    Drift,
    Norm,
    Settings,
    fine_tune,
    inverted,
    measure,
    rotated_and_noisy,
    running_statistics,
    saved_activation_bytes,
    shifted,
    statistics_drift,
)
from samples.make_samples import SAMPLE_PATH, Digits, read_digits

SCRIPT = SAMPLE_PATH.with_name("three_stages.py")
NAMES = [norm.value for norm in Norm]
SMALL = ("--images", 32, "--epochs", 1)
FEW = Settings(images=8, epochs=1, readings=2)


@pytest.fixture(scope="module")
def digits() -> Digits:
    return read_digits()


@pytest.fixture
def trained() -> Backbone:
    model = Backbone()
    model.load_state_dict(torch.load(SAMPLE_PATH, weights_only=True))
    return model.eval()


def run(*arguments: object, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(SCRIPT.parent.parent),
        "PYTHONIOENCODING": "utf-8",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


def rows(printed: str, name: str) -> list[list[str]]:
    """Return the cells of the rows of a table that begin with ``name``, without the name."""
    return [
        re.split(r"\s{2,}", line.removeprefix(name).strip())
        for line in printed.splitlines()
        if line.startswith(f"{name}  ")
    ]


@pytest.mark.slow
def test_a_run_prints_the_tables_and_draws_the_figure(tmp_path: Path):
    shown = run(
        SCRIPT, "--quick", *SMALL, "--seeds", 1, "--figure", tmp_path / "a.png", folder=tmp_path
    )

    assert (shown.returncode, shown.stderr) == (0, f"drawn: {tmp_path / 'a.png'}\n")
    assert "\n32 images, batches of 2, all layers, 1 epoch" in shown.stdout
    assert "mean ± standard deviation" not in shown.stdout
    assert "with 1 seed, differences of a few points are chance" in shown.stdout
    assert rows(shown.stdout, "before fine-tuning")[0] == ["43.3"]
    train, by_hand, frozen = (rows(shown.stdout, name)[0] for name in NAMES)
    assert [len(cells) for cells in (train, by_hand, frozen)] == [5, 5, 5]
    # Accuracy, drift of means and of variances, saved bytes, time.
    assert frozen[1:3] == by_hand[1:3] == ["0", "1"]
    assert float(train[1]) > 0
    assert float(train[2]) > 1
    assert int(frozen[3]) < int(by_hand[3]) <= int(train[3])
    assert "layers    ✓ equal" in shown.stdout
    assert "statistics were never formed" in shown.stdout
    assert "frozenbn convert would refuse" in shown.stdout
    assert "calibrated · 23 of 23 BatchNorm layers formed anew" in shown.stdout
    kept, anew = (
        rows(shown.stdout, f"frozen, {name}")[0] for name in ("optimizer kept", "new optimizer")
    )
    assert kept[0] != anew[0]
    pale, calibrated = (
        float(rows(shown.stdout, name)[0][0])
        for name in ("statistics of full contrast", "calibrated on 64 pale digits")
    )
    assert calibrated > pale + 30
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.slow
def test_frozen_statistics_are_the_same_on_two_processes(tmp_path: Path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)

    shown = run(*launcher, SCRIPT, "--ddp", *SMALL, folder=tmp_path)

    assert shown.returncode == 0, shown.stderr
    # Broadcast in each step, unequal statistics, how far apart, accuracy on each rank.
    broadcast, alone = rows(shown.stdout, Norm.TRAIN.value)
    assert (broadcast[1], alone[1]) == ("46 of 46", "46 of 46")
    assert float(broadcast[0]) > float(alone[0]) == 0
    (frozen,) = rows(shown.stdout, Norm.FROZEN.value)
    assert frozen[:3] == ["0", "0 of 46", "0"]
    assert frozen[3] == frozen[4]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Return what the script says when it ends at once."""

    def refused(*arguments: str) -> str:
        monkeypatch.syspath_prepend(SCRIPT.parent)
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().err + (end.value.code if isinstance(end.value.code, str) else "")

    return refused


def test_several_processes_need_torchrun(refused):
    assert "torchrun --nproc-per-node 2" in refused("--ddp")


def test_a_quick_run_on_several_processes_would_be_the_same(refused):
    assert "--quick would change nothing" in refused("--ddp", "--quick")


def test_a_figure_without_matplotlib_is_refused_before_anything_runs(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    assert "the figure needs matplotlib: pip install '.[samples]'" in refused("--figure", "a.png")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing/a.png", "there is no folder missing"),
        ("a.txt", "expected .png or .svg or .pdf, found a.txt"),
    ],
)
def test_a_figure_that_could_not_be_written_is_refused_before_anything_runs(path, reason, refused):
    assert reason in refused("--figure", path)


def test_digits_without_scikit_learn_are_asked_for(refused, monkeypatch):
    for name in [name for name in sys.modules if name in ("make_samples", "fine_tuning")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)

    assert "the recipe needs scikit-learn: pip install '.[samples]'" in refused()


def test_only_batch_norm_in_training_moves_its_statistics(trained: Backbone, digits: Digits):
    before = running_statistics(trained)

    measured = measure(trained, digits, rotated_and_noisy, FEW, seeds=range(2))

    drifts = {
        norm: {reading.drift for run in runs for reading in run.readings[1:]}
        for norm, runs in measured.outcomes.items()
    }
    assert drifts[Norm.EVAL] == drifts[Norm.FROZEN] == {Drift(means=0, variances=1)}
    assert all(drift.means > 0 and drift.variances > 1 for drift in drifts[Norm.TRAIN])
    assert statistics_drift(before, running_statistics(trained)) == Drift(0, 1)
    assert {len(seconds) for seconds in measured.step_seconds.values()} == {FEW.steps}


@pytest.mark.parametrize("norm", Norm)
def test_a_seed_gives_the_same_fine_tuning_again(norm: Norm, trained: Backbone, digits: Digits):
    domain = shifted(digits, rotated_and_noisy, images=8, seed=1)

    first, second = (fine_tune(trained, norm, domain, FEW, seed=1) for _ in range(2))

    assert first == second
    assert [reading.step for reading in first.readings] == [0, 2, 4]


def test_upper_layers_alone_are_trained(trained: Backbone, digits: Digits):
    domain = shifted(digits, rotated_and_noisy, images=2, seed=0)
    whole, upper = (
        fine_tune(
            trained,
            Norm.FROZEN,
            domain,
            Settings(images=2, epochs=1, upper_only=upper_only),
            seed=0,
        )
        for upper_only in (False, True)
    )

    assert upper.saved_bytes < whole.saved_bytes


def test_drift_is_counted_in_standard_deviations_and_factors():
    before = {"a.running_mean": torch.zeros(2), "a.running_var": torch.full((2,), 4.0)}
    after = {"a.running_mean": torch.tensor([0.0, 2.0]), "a.running_var": torch.tensor([8.0, 2.0])}

    drift = statistics_drift(before, after)

    assert (drift.means, drift.variances) == pytest.approx((0.5, 2.0), rel=1e-4)


def test_saved_activations_are_counted_once_and_without_weights():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(2, 1, 1, bias=False))

    # The input (16 floats), and what ReLU gives and the second convolution takes (32 floats).
    assert saved_activation_bytes(model, torch.ones(1, 1, 4, 4)) == 4 * (16 + 32)


def test_a_domain_draws_its_images_by_seed_and_tests_on_the_same(digits: Digits):
    first, second = (shifted(digits, rotated_and_noisy, images=9, seed=seed) for seed in (0, 1))

    assert first.train_images.shape == (9, 1, 8, 8)
    assert not first.train_images.equal(second.train_images)
    assert first.test_images.equal(second.test_images)
    assert shifted(digits, inverted, images=1, seed=0).test_images.equal(1 - digits.test_images)
