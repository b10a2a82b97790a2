"""`frozenbn convert --to checkpoint` and `--target-eps` on the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from frozenbn_cli import cli
from tests.builders.files import save, small_state
from tests.training.test_resuming import GROUPS, OPTIMIZERS, new_run, train

BUILDERS = """
import torch
from tests.training.test_resuming import Network


def adamw(model):
    return torch.optim.AdamW(model.parameters())
"""


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any, str]:
    code = cli.run(["convert", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model, own = new_run(OPTIMIZERS["adamw"], GROUPS["one"])
    train(model, own, range(2))
    torch.save({"model": model.state_dict(), "optimizer": own.state_dict()}, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def test_says_what_became_of_the_optimizer(
    capsys: pytest.CaptureFixture[str], checkpoint: Path
) -> None:
    code, document, err = run(capsys, checkpoint, "--to", "checkpoint", "--no-verify")

    assert (code, err, document["output"]["format"]) == (0, "", "checkpoint")
    assert Path(document["output"]["path"]) == checkpoint.with_name("last.frozen.ckpt")
    assert document["input"]["beside"] == {}
    assert document["optimizers"] == [
        {
            "key": "optimizer",
            "model": "model",
            "groups": [{"before": 13, "after": 7}],
            "dropped": [2, 3, 5, 6, 9, 10],
            "parameters": [
                f"{name}.{role}"
                for name in ("stem.1", "body.1", "body.4")
                for role in ("weight", "bias")
            ],
            "known_by": "the order of the entries, proved by shapes that fit in no other way",
        }
    ]


def test_takes_the_optimizer_that_a_function_builds(
    capsys: pytest.CaptureFixture[str], checkpoint: Path
) -> None:
    builders = checkpoint.with_name("builders.py")
    builders.write_text(BUILDERS)
    how = ("--to", "checkpoint", "--no-verify", "--force")
    given = ("--optimizer", f"{builders}:adamw")

    code, document, _ = run(capsys, checkpoint, *how, "--model", f"{builders}:Network", *given)
    alone = run(capsys, checkpoint, *how, *given)
    elsewhere = run(capsys, checkpoint, "--force", *given)
    wrong = run(capsys, checkpoint, *how, "--model", f"{builders}:Network", *given[:1], "a:b")

    assert code == 0
    assert document["optimizers"][0]["known_by"] == "the optimizer that --optimizer builds"
    assert (alone[0], elsewhere[0], wrong[0]) == (2, 2, 2)
    assert "no --model" in alone[2]
    assert "only --to checkpoint writes an optimizer" in elsewhere[2]
    assert "--optimizer a:b" in wrong[2]
    renamed = run(capsys, checkpoint, *how, "--add-prefix", "net.")
    assert (renamed[0], "keeps its names" in renamed[2]) == (2, True)


def test_a_target_eps_and_what_it_cannot_give(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    state = small_state()
    state["bn1.running_var"][0] = 1e-4
    path = save(tmp_path / "a.pt", state)
    options = (path, "--eps", "1e-5", "--force")

    code, document, _ = run(capsys, *options, "--target-eps", 0, "--no-verify")
    refused = run(capsys, *options, "--target-eps", "1e-3")
    unwanted = run(capsys, *options, "--atol", 1)

    assert (code, document["target_eps"]["rewritten"]) == (0, ["bn1", "bn2"])
    assert {edit["kind"] for edit in document["edits"]} == {"drop", "rewrite"}
    assert (refused[0], refused[1]["outcome"]) == (1, "inexact")
    assert "bn1 (1 channel: 0)" in refused[2]
    assert unwanted[0] == 2
