"""Training checkpoints that become training checkpoints: what changes, and what does not."""

import copy
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from frozenbn_cli import (
    ConvertOptions,
    FrozenBatchNorm2d,
    Selection,
    convert_bn_to_frozen,
    convert_file,
    convert_frozen_to_bn,
    load_frozen,
    verify_files,
)
from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.conversion import training as converting
from frozenbn_cli.errors import (
    NothingToFreezeError,
    UnsupportedFileError,
    UsageError,
    VerificationError,
)
from frozenbn_cli.nn import FrozenBatchNormNd
from frozenbn_cli.verification.terms import VerifyOptions
from tests.builders.archives import rewrite_records
from tests.builders.files import save, small_state
from tests.builders.models import assert_same_bits, perturb, small_cnn
from tests.training.test_resuming import GROUPS, OPTIMIZERS, Network, new_run, train

AFFINE = [2, 3, 5, 6, 9, 10]


def trained(optimizer: str = "adamw", groups: str = "one") -> tuple[Network, Any]:
    model, own = new_run(OPTIMIZERS[optimizer], GROUPS[groups])
    train(model, own, range(2))
    return model, own


def convert(
    path: Path, checkpoint: Any, *, legacy: bool = False, **options: Any
) -> tuple[Any, Any]:
    """Save a checkpoint, convert it, and return what was loaded of the result, and the result."""
    torch.save(checkpoint, path, _use_new_zipfile_serialization=not legacy)
    how = ConvertOptions(to="checkpoint", **options)
    result = convert_file(path, path.with_suffix(".frozen.pt"), options=how)
    assert [claim.status for claim in result.claims[:2]] == ["equal", "equal"]
    return torch.load(result.output_path, weights_only=False), result


def without_counts(state: Any) -> Any:
    return {name: value for name, value in state.items() if "num_batches" not in name}


def test_every_model_is_frozen_alike_and_all_else_stays(tmp_path: Path) -> None:
    model, own = trained()
    average = OrderedDict((name, value.clone()) for name, value in model.state_dict().items())
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 5}
    checkpoint = {
        "state_dict": {f"module.{name}": value for name, value in model.state_dict().items()},
        "ema": average,
        "optimizer": own.state_dict(),
        "scaler": scaler,
        "epoch": 7,
        "best": float("nan"),
        "history": [1, (2.0, "three"), {"four": torch.arange(4)}],
    }

    loaded, result = convert(tmp_path / "last.ckpt", checkpoint)

    assert list(loaded) == list(checkpoint)
    assert_same_bits(loaded["state_dict"], without_counts(checkpoint["state_dict"]))
    assert_same_bits(dict(loaded["ema"]), without_counts(average))
    assert list(loaded["state_dict"]) == list(without_counts(checkpoint["state_dict"]))
    assert (loaded["scaler"], loaded["epoch"]) == (scaler, 7)
    assert_same_bits(loaded["history"][2]["four"], torch.arange(4))
    assert list(result.others) == ["ema"]
    assert result.optimizers[0].group_sizes == ((13, 7),)
    assert result.output_path.name == "last.frozen.pt"


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_records_that_do_not_change_are_copied(tmp_path: Path, legacy: bool) -> None:
    model, own = trained()
    checkpoint = {"model": model.state_dict(), "optimizer": own.state_dict()}

    _, result = convert(tmp_path / "a.pt", checkpoint, legacy=legacy)

    assert result.container == ("PyTorch legacy" if legacy else "PyTorch ZIP")
    if legacy:
        with open_checkpoint(result.output_path) as written:
            assert written.container == "PyTorch legacy"
        return
    with zipfile.ZipFile(tmp_path / "a.pt") as before, zipfile.ZipFile(result.output_path) as after:
        names = set(after.namelist()) - {"a/data.pkl", "a/frozenbn.conversion.json"}
        assert names < set(before.namelist())
        assert all(before.read(name) == after.read(name) for name in names)
        # Three counts, and three tensors of each of the six parameters that are gone.
        dropped = set(before.namelist()) - set(after.namelist())
        assert len(dropped) == 3 + 6 * 3


def test_key_restricts_what_is_frozen(tmp_path: Path) -> None:
    model, own = trained()
    average = {name: value.clone() for name, value in model.state_dict().items()}
    checkpoint = {"model": model.state_dict(), "ema": average, "optimizer": own.state_dict()}

    loaded, result = convert(tmp_path / "a.pt", checkpoint, key="ema")
    alone, other = convert(tmp_path / "b.pt", checkpoint, key="model")

    assert "stem.1.num_batches_tracked" in loaded["model"]
    assert "stem.1.num_batches_tracked" not in loaded["ema"]
    assert_same_bits(loaded["optimizer"]["state"], own.state_dict()["state"])
    assert not result.optimizers
    assert "stem.1.num_batches_tracked" in alone["ema"]
    assert sorted(other.optimizers[0].places) == AFFINE


def test_models_that_are_frozen_one_after_the_other_are_all_recorded(tmp_path: Path) -> None:
    model, own = trained()
    average = {name: value.clone() for name, value in model.state_dict().items()}
    checkpoint = {"model": model.state_dict(), "ema": average, "optimizer": own.state_dict()}
    half, _ = convert(tmp_path / "a.pt", checkpoint, key="ema")
    half_path = tmp_path / "a.frozen.pt"

    options = ConvertOptions(to="checkpoint", key="model")
    result = convert_file(half_path, tmp_path / "b.pt", options=options)

    assert sorted(result.optimizers[0].places) == AFFINE
    with pytest.raises(NothingToFreezeError):
        convert_file(tmp_path / "b.pt", options=ConvertOptions(to="checkpoint", force=True))
    assert_same_bits(torch.load(tmp_path / "b.pt")["ema"], half["ema"])


def test_lightning_with_two_optimizers(tmp_path: Path) -> None:
    model, first = trained("adamw", "decay")
    critic = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 1))
    second = torch.optim.SGD(critic.parameters(), lr=0.1, momentum=0.9)
    critic(torch.randn(2, 16)).sum().backward()
    second.step()
    state = {f"net.{name}": value for name, value in model.state_dict().items()}
    state |= {f"critic.{name}": value for name, value in critic.state_dict().items()}
    checkpoint = {
        "pytorch-lightning_version": "2.4.0",
        "state_dict": state,
        "optimizer_states": [first.state_dict(), second.state_dict()],
        "lr_schedulers": [],
        "hyper_parameters": {"lr": 0.1},
    }

    loaded, result = convert(tmp_path / "epoch=1.ckpt", checkpoint)

    sizes = [each.group_sizes for each in result.optimizers]
    assert sizes == [((9, 3), (4, 4)), ((4, 4),)]
    assert_same_bits(loaded["optimizer_states"][1]["state"], second.state_dict()["state"])
    assert loaded["optimizer_states"][0]["param_groups"][0]["params"] == [0, 1, 2]


def test_pickled_modules_keep_their_classes(tmp_path: Path) -> None:
    """As ultralytics writes them: an average in half precision, and three groups."""
    model = Network()
    norms = {
        id(p) for m in model.modules() if isinstance(m, nn.BatchNorm2d) for p in m.parameters()
    }
    named = list(model.named_parameters())
    biases = [p for name, p in named if name.endswith("bias")]
    weights = [p for name, p in named if not name.endswith("bias") and id(p) not in norms]
    scales = [p for name, p in named if not name.endswith("bias") and id(p) in norms]
    own = torch.optim.SGD(biases, lr=0.01, momentum=0.9, nesterov=True)
    own.add_param_group({"params": weights, "weight_decay": 5e-4})
    own.add_param_group({"params": scales, "weight_decay": 0.0})
    train(model, own, range(2))
    average = copy.deepcopy(model).half().requires_grad_(requires_grad=False)

    checkpoint = {"model": None, "ema": average, "updates": 2, "optimizer": own.state_dict()}
    loaded, result = convert(tmp_path / "last.pt", checkpoint)

    frozen = loaded["ema"]
    assert type(frozen) is Network
    assert isinstance(frozen.stem[1], FrozenBatchNorm2d)
    assert result.optimizers[0].group_sizes == ((6, 3), (4, 4), (3, 0))
    images = torch.randn(2, 3, 12, 12)
    assert_same_bits(frozen.float().train()(images), average.float().eval()(images))
    assert_same_bits(convert_frozen_to_bn(frozen).stem[1].num_batches_tracked, torch.tensor(2))


def test_a_pickled_module_is_what_freezing_it_live_gives(tmp_path: Path) -> None:
    model = perturb(small_cnn())
    model.add_module("twice", model[1])
    model.add_module("sync", perturb(nn.SyncBatchNorm(4)))

    loaded, _ = convert(tmp_path / "module.pt", model)

    live = convert_bn_to_frozen(copy.deepcopy(model))
    assert loaded.twice is loaded[1]
    assert type(loaded.sync) is FrozenBatchNormNd
    assert_same_bits(loaded.state_dict(), live.state_dict())
    assert vars(loaded[1]).keys() == vars(live[1]).keys()
    assert loaded[1].origin == live[1].origin
    assert not list(loaded[1].parameters())


def test_names_of_parameters_in_the_file_are_used(tmp_path: Path) -> None:
    model, _ = trained()
    own = torch.optim.AdamW([(name, p) for name, p in model.named_parameters()][::-1])
    train(model, own, range(1))

    loaded, result = convert(
        tmp_path / "a.pt", {"model": model.state_dict(), "optimizer": own.state_dict()}
    )

    (group,) = loaded["optimizer"]["param_groups"]
    assert group["params"] == list(range(7))
    assert group["param_names"][0] == "head.bias"
    assert not any("stem.1" in name for name in group["param_names"])
    shapes = [tuple(loaded["optimizer"]["state"][n]["exp_avg"].shape) for n in range(7)]
    entries = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes == [entries[name] for name in group["param_names"]]
    assert "names of the parameters" in result.optimizers[0].proof


def test_what_has_no_moments_needs_the_model_where_groups_are_parted(tmp_path: Path) -> None:
    model, own = trained("sgd", "decay")
    checkpoint = {"model": model.state_dict(), "optimizer": own.state_dict()}

    with pytest.raises(UsageError, match=r"no moments.*9, 4 parameters apart. Name the model"):
        convert(tmp_path / "a.pt", checkpoint)

    _, result = convert(tmp_path / "b.pt", checkpoint, model=Network)
    assert result.optimizers[0].group_sizes == ((9, 3), (4, 4))


def test_what_is_not_proved_is_refused_until_the_optimizer_is_given(tmp_path: Path) -> None:
    """Every other parameter in one group: shapes alone fit in other ways too."""

    def alternating(model: nn.Module) -> torch.optim.Optimizer:
        parameters = list(model.parameters())
        groups = [{"params": parameters[1::2]}, {"params": parameters[::2], "lr": 0.1}]
        return torch.optim.SGD(groups, lr=0.01, momentum=0.9)

    model = Network()
    own = alternating(model)
    train(model, own, range(1))
    checkpoint = {"model": model.state_dict(), "optimizer": own.state_dict()}

    with pytest.raises(UsageError, match=r"in several ways. Name the model with model"):
        convert(tmp_path / "a.pt", checkpoint)
    with pytest.raises(UsageError, match=r"in several ways. Give the optimizer as it was built"):
        convert(tmp_path / "b.pt", checkpoint, model=Network)

    loaded, _ = convert(tmp_path / "c.pt", checkpoint, model=Network, optimizer=alternating)
    frozen = load_frozen(Network(), tmp_path / "c.frozen.pt", key="model")
    again = alternating(convert_bn_to_frozen(frozen))
    again.load_state_dict(loaded["optimizer"])
    kept = {
        name: own.state[parameter]["momentum_buffer"]
        for name, parameter in model.named_parameters()
        if name in dict(frozen.named_parameters())
    }
    found = {id(p): again.state[p]["momentum_buffer"] for p in again.state}
    shapes = sorted(tuple(value.shape) for value in kept.values())
    assert sorted(tuple(value.shape) for value in found.values()) == shapes


def test_parameters_that_never_had_a_gradient(tmp_path: Path) -> None:
    """A frozen stem: its parameters are in the optimizer, and have no moments."""
    model = Network()
    model.stem.requires_grad_(requires_grad=False)
    own = torch.optim.AdamW(model.parameters())
    train(model, own, range(1))
    checkpoint = {"model": model.state_dict(), "optimizer": own.state_dict()}

    loaded, result = convert(tmp_path / "a.pt", checkpoint)

    assert sorted(result.optimizers[0].places) == AFFINE
    assert sorted(loaded["optimizer"]["state"]) == [2, 3, 4, 5, 6]


def test_parameters_that_were_left_out_of_the_optimizer(tmp_path: Path) -> None:
    model = Network()
    model.stem.requires_grad_(requires_grad=False)
    own = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
    train(model, own, range(1))
    checkpoint = {"model": model.state_dict(), "optimizer": own.state_dict()}

    _, result = convert(tmp_path / "a.pt", checkpoint)

    assert result.optimizers[0].group_sizes == ((9, 5),)
    assert sorted(result.optimizers[0].places) == [1, 2, 5, 6]


def test_layers_that_stay_live_keep_their_moments(tmp_path: Path) -> None:
    model, own = trained()
    checkpoint = {"model": model.state_dict(), "optimizer": own.state_dict()}

    loaded, result = convert(tmp_path / "a.pt", checkpoint, selection=Selection.of(exclude="stem"))

    assert "stem.1.num_batches_tracked" in loaded["model"]
    assert sorted(result.optimizers[0].places) == [5, 6, 9, 10]
    before, after = own.state_dict()["state"], loaded["optimizer"]["state"]
    assert_same_bits(after[2], before[2])
    assert_same_bits(after[5], before[7])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"state1": torch.zeros(8, dtype=torch.uint8), "absmax1": torch.zeros(1)}, "8-bit"),
        ({"exp_avg": torch.zeros(8), "row": torch.zeros(3, 3)}, "differ in shape"),
        ({"old_dirs": [torch.zeros(9)]}, "LBFGS"),
    ],
)
def test_optimizers_whose_state_tells_too_little_are_named(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    model, own = trained()
    state = own.state_dict()
    state["state"][1] = change

    with pytest.raises(UnsupportedFileError, match=f"optimizer 'optimizer'.*{problem}"):
        convert(tmp_path / "a.pt", {"model": model.state_dict(), "optimizer": state})


def test_flat_shards_fit_nothing(tmp_path: Path) -> None:
    model, own = trained()
    state = own.state_dict()
    state["state"] = {0: {"step": 2, "exp_avg": torch.zeros(999), "exp_avg_sq": torch.zeros(999)}}
    state["param_groups"][0]["params"] = [0]

    with pytest.raises(UsageError, match="no order fits the shapes"):
        convert(tmp_path / "a.pt", {"model": model.state_dict(), "optimizer": state})


def test_an_optimizer_that_was_pickled_itself_is_refused(tmp_path: Path) -> None:
    model, own = trained()

    with pytest.raises(UnsupportedFileError, match=r"'optimizer' holds an optimizer itself"):
        convert(tmp_path / "a.pt", {"model": model.state_dict(), "optimizer": own})


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_target_eps_is_patched_into_the_storages(tmp_path: Path, legacy: bool) -> None:
    model, own = trained()
    flat = torch.zeros(64)
    state = model.state_dict()
    state["stem.1.running_var"] = flat[8:16].copy_(state["stem.1.running_var"])
    state["unused"] = flat[16:]

    loaded, _ = convert(
        tmp_path / "a.pt",
        {"model": state, "optimizer": own.state_dict()},
        legacy=legacy,
        eps=1e-3,
        target_eps=0.0,
    )
    module, _ = convert(tmp_path / "m.pt", model, legacy=legacy, target_eps=1e-6)

    for name in ("stem.1", "body.1", "body.4"):
        before = state[f"{name}.running_var"]
        assert_same_bits(loaded["model"][f"{name}.running_var"], before + 1e-3)
    assert_same_bits(loaded["model"]["unused"], flat[16:])
    assert module.stem[1].eps == 1e-6
    images = torch.randn(2, 3, 12, 12)
    assert_same_bits(module.train()(images), model.eval()(images))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_verify_compares_all_of_both_files(tmp_path: Path, legacy: bool) -> None:
    model, own = trained("adamw", "decay")
    average = {f"module.{name}": value.clone() for name, value in model.state_dict().items()}
    checkpoint = {"model": model.state_dict(), "ema": average, "optimizer": own.state_dict()}
    _, result = convert(
        tmp_path / "a.pt", checkpoint, legacy=legacy, model=Network, target_eps=1e-6
    )

    verified = verify_files(tmp_path / "a.pt", result.output_path)
    one = verify_files(tmp_path / "a.pt", result.output_path, options=VerifyOptions(key="ema"))

    claims = {claim.name: claim for claim in verified.claims}
    assert (claims["contents"].status, claims["layers"].status) == ("equal", "equal")
    assert "7 states of optimizers" in claims["contents"].detail
    assert "ema: 3 layers" in claims["layers"].detail
    assert one.verdict == "passed"


def test_verify_finds_a_moment_that_changed(tmp_path: Path) -> None:
    model, own = trained()
    state = own.state_dict()
    state["state"][12]["exp_avg"].fill_(7.0)
    _, result = convert(tmp_path / "a.pt", {"model": model.state_dict(), "optimizer": state})
    seven = torch.full((8,), 7.0).numpy().tobytes()

    def change(_: str, content: bytes) -> bytes:
        return seven.replace(b"\xe0", b"\xe1") if content == seven else content

    rewrite_records(result.output_path, change)
    contents = verify_files(tmp_path / "a.pt", result.output_path).claims[0]

    assert contents.status == "different"
    assert "data/" in contents.detail


def test_load_frozen_takes_one_of_several(tmp_path: Path) -> None:
    model, _ = trained()
    average = {f"ema.{name}": value * 2 for name, value in model.state_dict().items()}
    _, result = convert(tmp_path / "a.pt", {"model": model.state_dict(), "ema": average})

    frozen = load_frozen(Network(), result.output_path, key="ema")

    assert_same_bits(frozen.head.weight, model.head.weight * 2)
    with pytest.raises(UsageError, match="2 state dicts"):
        load_frozen(Network(), result.output_path)


def test_one_model_under_two_keys_is_frozen_under_both(tmp_path: Path) -> None:
    state = trained()[0].state_dict()
    checkpoint = {"model": state, "best": state}

    loaded, _ = convert(tmp_path / "a.pt", checkpoint)

    assert loaded["model"] is loaded["best"]
    with pytest.raises(UsageError, match="one and the same model"):
        convert(tmp_path / "b.pt", checkpoint, key="model")


def test_what_torch_save_did_not_write_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.safetensors", small_state())

    with pytest.raises(UnsupportedFileError, match=r"expected a file that torch.save wrote"):
        convert_file(path, tmp_path / "b.pt", options=ConvertOptions(to="checkpoint"))


@pytest.mark.parametrize("change", ["moment", "option", "swap", "beside", "entry", "version"])
def test_a_result_that_is_not_right_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The claim on the contents does not trust what changed the values."""
    model, own = trained()
    checkpoint = {"model": model.state_dict(), "optimizer": own.state_dict(), "epoch": 7}
    plan = converting.plan_training

    def misled(*arguments: Any) -> Any:
        edited = plan(*arguments)
        values = edited.stored.pickle.value
        optimizer, state = values["optimizer"], values["optimizer"]["state"]
        if change == "moment":
            state[0]["exp_avg"] = state[0]["exp_avg_sq"]
        elif change == "option":
            optimizer["param_groups"][0]["lr"] = 1.0
        elif change == "swap":
            state[0], state[1] = state[1], state[0]
        elif change == "beside":
            values["epoch"] = 8
        elif change == "entry":
            values["model"].items.pop()
        else:
            values["model"].state["_metadata"].items.pop()
        return edited

    monkeypatch.setattr(converting, "plan_training", misled)
    with pytest.raises(VerificationError, match="contents"):
        convert(tmp_path / "b.pt", checkpoint)


def test_names_that_wrappers_change_stay_in_the_file(tmp_path: Path) -> None:
    model, own = trained()
    state = {
        f"_orig_mod.{name.replace('body.', 'body._orig_mod.')}": value
        for name, value in model.state_dict().items()
    }

    loaded, result = convert(tmp_path / "a.pt", {"model": state, "optimizer": own.state_dict()})

    assert list(loaded["model"]) == list(without_counts(state))
    assert [item.layer.name for item in result.plan.frozen] == ["stem.1", "body.1", "body.4"]
    assert sorted(result.optimizers[0].places) == AFFINE
    assert verify_files(tmp_path / "a.pt", result.output_path).verdict == "passed"


def test_values_that_hold_themselves_do_no_harm(tmp_path: Path) -> None:
    model, own = trained()
    around: list[Any] = [1]
    around.append(around)
    state = own.state_dict()
    state["defaults"] = around

    loaded, _ = convert(
        tmp_path / "a.pt", {"model": model.state_dict(), "optimizer": state, "self": around}
    )

    assert loaded["self"][1] is loaded["self"]
    assert loaded["optimizer"]["defaults"] is loaded["self"]
