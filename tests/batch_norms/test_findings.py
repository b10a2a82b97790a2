import math
from pathlib import Path

import pytest
import torch
from torch import nn

from frozenbn_cli.batch_norms.batch_norm import find_batch_norms
from frozenbn_cli.batch_norms.findings import ADVICE, LABELS, STRUCTURAL, Finding, examine
from frozenbn_cli.batch_norms.plan import plan_state_dict
from frozenbn_cli.checkpoints import open_checkpoint
from frozenbn_cli.inspection import inspect_file
from frozenbn_cli.selection import Selection
from tests.builders.files import State, batch_norm, nested, save


def findings(tmp_path: Path, entries: State, eps: float | None = 1e-5) -> dict[str, Finding]:
    with open_checkpoint(save(tmp_path / "a.pt", entries)) as checkpoint:
        (layer,) = find_batch_norms(checkpoint.state_dict(), eps=eps)
        return {finding.code: finding for finding in examine(layer)}


def changed(role: str, index: int, value: float) -> State:
    entries = batch_norm(4)
    entries[role][index] = value
    return entries


def without(*roles: str) -> State:
    return {role: tensor for role, tensor in batch_norm(4).items() if role not in roles}


def test_finds_nothing_in_a_healthy_layer(tmp_path: Path) -> None:
    assert not findings(tmp_path, batch_norm(4))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("role", ["weight", "bias", "running_mean", "running_var"])
def test_finds_numbers_that_are_not_finite(tmp_path: Path, role: str, value: float) -> None:
    found = findings(tmp_path, changed(role, 2, value))

    assert found["not_finite"].severity == "error"
    assert found["not_finite"].channels == 1
    assert role in found["not_finite"].message


def test_large_finite_numbers_are_finite(tmp_path: Path) -> None:
    entries = {role: tensor.double() for role, tensor in without("num_batches_tracked").items()}
    entries["bias"][:] = 1.7e308

    assert "not_finite" not in findings(tmp_path, entries)


@pytest.mark.parametrize("values", [(math.nan, -1.0, -2.0), (-1.0, math.nan, -2.0)])
def test_finds_negative_variance_beside_nan(tmp_path: Path, values: tuple[float, ...]) -> None:
    entries = batch_norm(4)
    entries["running_var"][:3] = torch.tensor(values)

    found = findings(tmp_path, entries)

    assert (found["not_finite"].channels, found["negative_variance"].channels) == (1, 2)


def test_finds_negative_variance(tmp_path: Path) -> None:
    found = findings(tmp_path, changed("running_var", 1, -1e-6))

    assert (found["negative_variance"].severity, found["negative_variance"].channels) == (
        "error",
        1,
    )
    assert "negative_variance" not in findings(tmp_path, changed("running_var", 1, 0.0))


@pytest.mark.parametrize("missing", ["running_mean", "running_var", "weight", "bias"])
def test_finds_an_entry_without_its_counterpart(tmp_path: Path, missing: str) -> None:
    found = findings(tmp_path, without(missing))

    assert found["incomplete"].severity == "error"
    assert found["incomplete"].message.endswith(f"without {missing}")


def test_a_layer_without_affine_is_complete(tmp_path: Path) -> None:
    assert not findings(tmp_path, without("weight", "bias"))


def test_finds_lengths_that_differ(tmp_path: Path) -> None:
    entries = batch_norm(4) | {"bias": torch.zeros(5)}

    assert findings(tmp_path, entries)["lengths_differ"].severity == "error"


def test_finds_statistics_that_are_no_floating_point(tmp_path: Path) -> None:
    entries = batch_norm(4) | {"running_var": torch.ones(4, dtype=torch.int8)}

    assert findings(tmp_path, entries)["not_floating"].severity == "error"


def test_finds_statistics_that_were_never_formed(tmp_path: Path) -> None:
    fresh = torch.nn.BatchNorm2d(4).state_dict()

    assert findings(tmp_path, fresh)["never_formed"].severity == "error"
    moved = {**fresh, "running_mean": torch.tensor([0, 0, 0, 1e-7])}
    assert "never_formed" not in findings(tmp_path, moved)


def test_a_count_of_zero_proves_nothing(tmp_path: Path) -> None:
    assert not findings(tmp_path, batch_norm(4, tracked=0))


def test_finds_statistics_of_few_batches_and_says_what_is_left(tmp_path: Path) -> None:
    found = findings(tmp_path, batch_norm(4, tracked=10))["hardly_formed"]

    assert found.severity == "warning"
    assert "10 batches: 35% of their initial value" in found.message
    assert "hardly_formed" not in findings(tmp_path, batch_norm(4, tracked=50))
    assert "hardly_formed" not in findings(tmp_path, batch_norm(4, tracked=None))


def test_eps_matters_only_where_it_is_assumed_and_variances_are_small(tmp_path: Path) -> None:
    small = changed("running_var", 0, 0.0)

    assumed = findings(tmp_path, small, eps=None)

    assert assumed["eps_matters"].severity == "warning"
    assert assumed["eps_matters"].channels == 1
    assert assumed["eps_matters"].factor == pytest.approx(10)
    assert assumed["variance_below_eps"].channels == 1
    assert "eps_matters" not in findings(tmp_path, small, eps=1e-3)
    assert "eps_matters" not in findings(tmp_path, batch_norm(4), eps=None)


def test_notes_channels_below_eps_dead_ones_and_large_scales(tmp_path: Path) -> None:
    entries = batch_norm(4)
    entries["running_var"][:] = torch.tensor([1e-6, 1.0, 1e-3, 1.0])
    entries["weight"][:] = torch.tensor([1.0, 0.0, 100.0, 1.0])

    found = findings(tmp_path, entries)

    assert {code: finding.channels for code, finding in found.items()} == {
        "variance_below_eps": 1,
        "dead_channels": 1,
        "large_scale": 1,
    }
    assert {finding.severity for finding in found.values()} == {"note"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_reads_statistics_of_every_floating_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    entries = {role: tensor.to(dtype) for role, tensor in changed("running_var", 1, -1).items()}

    assert findings(tmp_path, entries)["negative_variance"].channels == 1


def test_every_code_has_a_label_and_grave_ones_an_advice() -> None:
    assert LABELS.keys() >= ADVICE.keys() >= STRUCTURAL


def test_layers_of_other_dimensions_stay_live(tmp_path: Path) -> None:
    state = nested(fc={"weight": torch.ones(4, 3)}, flat=batch_norm(4)) | nested(
        conv={"weight": torch.ones(5, 3, 1, 1)}, bn=batch_norm(5)
    )
    with open_checkpoint(save(tmp_path / "a.pt", state)) as checkpoint:
        plan = plan_state_dict(checkpoint.state_dict(), {}, eps=1e-5, selection=Selection())

    codes = {item.layer.name: [finding.code for finding in item.findings] for item in plan.layers}
    assert codes == {"flat": ["stays_live"], "bn": []}


def test_a_layer_without_statistics_is_noted(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(4, track_running_stats=False))
    with open_checkpoint(save(tmp_path / "a.pt", model)) as checkpoint:
        (layer,) = find_batch_norms(checkpoint.state_dict())

    assert [finding.code for finding in examine(layer)] == ["no_statistics"]


def test_dimensions_that_are_assumed_are_noted(tmp_path: Path) -> None:
    with open_checkpoint(save(tmp_path / "a.pt", batch_norm(4))) as checkpoint:
        plan = plan_state_dict(checkpoint.state_dict(), {}, eps=1e-5, selection=Selection())

    assert [finding.code for finding in plan.layers[0].findings] == ["dims_assumed"]
    assert plan.layers[0].action == "freeze"


def test_a_cumulative_average_holds_nothing_of_its_beginning(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4, momentum=None))
    model.train()(torch.randn(8, 3, 5, 5))
    with open_checkpoint(save(tmp_path / "a.pt", model)) as checkpoint:
        (layer,) = find_batch_norms(checkpoint.state_dict())
        codes = [finding.code for finding in examine(layer)]

    assert layer.batches_tracked == 1
    assert "hardly_formed" not in codes


@pytest.mark.parametrize(("variance", "is_said"), [(0.5, True), (0.1, False)])
def test_a_known_momentum_makes_no_running_average_of_what_cannot_be_one(
    variance: float, is_said: bool, tmp_path: Path
) -> None:
    """PyTorch's `update_bn` counts batches too, and gives the layer its momentum back."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    model[1].running_var.fill_(variance)
    model[1].num_batches_tracked.fill_(10)  # 0.9 ** 10 is 0.35.
    with open_checkpoint(save(tmp_path / "a.pt", model)) as checkpoint:
        (layer,) = find_batch_norms(checkpoint.state_dict())
        codes = [finding.code for finding in examine(layer)]

    assert layer.momentum == 0.1
    assert ("hardly_formed" in codes) == is_said


def test_an_instance_norm_is_no_batch_norm(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.InstanceNorm2d(4, track_running_stats=True))
    with open_checkpoint(save(tmp_path / "a.pt", model)) as checkpoint:
        plan = plan_state_dict(checkpoint.state_dict(), {}, eps=1e-5, selection=Selection())

    assert plan.layers[0].reason == "torch.nn.modules.instancenorm.InstanceNorm2d, no BatchNorm"
    assert not plan.layers[0].findings


@pytest.mark.parametrize(
    ("role", "values", "code", "worst"),
    [
        ("running_mean", [0.0, math.nan, 1.0, math.inf], "not_finite", 1),
        ("running_var", [1.0, -1.0, -3.0, -2.0], "negative_variance", 2),
        ("running_var", [1.0, 1e-6, 1.0, 1e-7], "variance_below_eps", 3),
        ("weight", [1.0, 0.0, 1.0, 0.0], "dead_channels", 1),
        ("weight", [1.0, 5e3, -9e3, 1.0], "large_scale", 2),
    ],
)
def test_names_the_worst_channel(
    tmp_path: Path, role: str, values: list[float], code: str, worst: int
) -> None:
    entries = batch_norm(4)
    entries["running_var"][:] = 1.0
    entries[role][:] = torch.tensor(values)

    assert findings(tmp_path, entries)[code].worst_channel == worst


def test_names_the_channel_for_which_eps_matters_most(tmp_path: Path) -> None:
    entries = batch_norm(4)
    entries["running_var"][:] = torch.tensor([1e-3, 1.0, 1e-6, 1e-4])

    found = findings(tmp_path, entries, eps=None)["eps_matters"]

    assert (found.channels, found.worst_channel) == (3, 2)


def test_momentum_zero_says_nothing_of_how_statistics_were_formed(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, momentum=0.0))
    model[1].load_state_dict(batch_norm(4, tracked=3))

    (part,) = inspect_file(save(tmp_path / "a.pt", model)).state_dicts

    assert not part.plan.layers[0].findings


def test_a_variance_below_what_a_running_average_leaves_is_of_another_average(
    tmp_path: Path,
) -> None:
    entries = batch_norm(4, tracked=10) | {"running_var": torch.full((4,), 0.3)}

    assert "hardly_formed" not in findings(tmp_path, entries)
    found = findings(tmp_path, batch_norm(4, tracked=10))["hardly_formed"]
    assert found.message.endswith("(momentum assumed 0.1)")


@pytest.mark.parametrize("tracked", [None, 0])
def test_statistics_that_were_folded_into_the_affine_are_a_note(
    tmp_path: Path, tracked: int | None
) -> None:
    folded = batch_norm(4, tracked=tracked) | {
        "running_mean": torch.zeros(4),
        "running_var": torch.ones(4),
    }

    assert {name: item.severity for name, item in findings(tmp_path, folded).items()} == {
        "folded": "note"
    }
    for untrained in ({"bias": torch.zeros(4)}, {"weight": torch.ones(4)}):
        assert "never_formed" in findings(tmp_path, folded | untrained)


def test_an_eps_that_matters_little_in_each_layer_may_matter_in_all(tmp_path: Path) -> None:
    small = {"running_var": torch.full((4,), 0.006)}
    state = nested(**{f"bn{place}": batch_norm(4) | small for place in range(20)})

    few = dict(list(state.items())[:20])
    found = [
        [finding for plan in part.plan.layers for finding in plan.findings]
        for file in (state, few)
        for part in inspect_file(save(tmp_path / "a.pt", file)).state_dicts
    ]

    warnings = [[item for item in of_file if item.code == "eps_matters"] for of_file in found]
    assert [len(of_file) for of_file in warnings] == [20, 0]
    assert warnings[0][0].factor == pytest.approx(4.6, abs=0.5)
