"""The names that entries get: without wrappers, and as a user or a model wants them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from frozenbn_cli import ConvertOptions, VerifyOptions, convert_file, load_frozen
from frozenbn_cli.checkpoints.names import common_prefix, prefix_that_fits
from frozenbn_cli.errors import UsageError
from frozenbn_cli.inspection import inspect_file
from frozenbn_cli.verification.files import verify_files
from tests.builders.files import State, save, small_state


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 2, bias=False)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.bn2(self.conv2(self.bn1(self.conv1(x)))).mean((2, 3)))


class Holder(nn.Module):
    """A model whose own attribute has the name that DataParallel uses."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Small()

    def forward(self, x: Tensor) -> Any:
        return self.module(x)


def under(prefix: str, state: Mapping[str, Tensor] | None = None) -> State:
    return {prefix + name: tensor for name, tensor in (state or small_state()).items()}


def names_of(path: Path, **options: Any) -> set[str]:
    result = convert_file(
        path, path.with_name(f"{path.stem}_frozen"), options=ConvertOptions(**options)
    )
    return set(load_file(result.output_path))


EXPECTED = {name for name in small_state() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    "strays",
    [
        {"n_averaged": torch.tensor(3)},
        {"steps": torch.tensor([3]), "n_averaged": torch.tensor(3)},
    ],
)
def test_counts_of_a_wrapper_go_with_it(tmp_path: Path, strays: State) -> None:
    path = save(tmp_path / "a.pt", {**strays, **under("module.")})

    (part,) = inspect_file(path).state_dicts
    assert part.prefix == "module."
    assert dict.fromkeys(strays, "the wrapper's own") == part.left_out
    assert names_of(path) == EXPECTED


def test_what_trains_a_wrapped_model_keeps_its_names(tmp_path: Path) -> None:
    state = {**under("module."), "criterion.weight": torch.ones(2, 2)}

    assert names_of(save(tmp_path / "a.pt", state)) == {*EXPECTED, "criterion.weight"}


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ("net._orig_mod.", "net."),
        ("net.module.", "net."),
        ("module.net.module._orig_mod.", "net."),
        ("net._fsdp_wrapped_module.", "net."),
    ],
)
def test_wrappers_in_the_middle_of_names(tmp_path: Path, stored: str, expected: str) -> None:
    state = {**under(stored), "head.weight": torch.ones(2, 2)}
    if stored.startswith("module."):
        state["module.head.weight"] = state.pop("head.weight")

    found = names_of(save(tmp_path / "a.pt", state))

    assert found == {expected + name for name in EXPECTED} | {"head.weight"}


def test_a_layer_that_holds_one_module_is_no_wrapper(tmp_path: Path) -> None:
    state = under("norm.module.", nn.BatchNorm2d(4).state_dict())
    state["norm.module.running_mean"].add_(1)
    state["conv.weight"] = torch.ones(4, 3, 1, 1)

    assert "norm.module.weight" in names_of(save(tmp_path / "a.pt", state))


def test_a_model_may_have_an_attribute_of_that_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", under("module."))

    assert names_of(path, model=Holder) == {f"module.{name}" for name in EXPECTED}


def test_a_prefix_is_taken_off_if_a_model_fits_then(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", under("net.model."))

    result = convert_file(path, options=ConvertOptions(model=Small))
    verified = verify_files(path, result.output_path)

    assert result.prefix == "net.model."
    assert load_frozen(Small(), result.output_path)
    assert [claim.status for claim in result.claims] == ["equal"] * 3
    assert [claim.status for claim in verified.claims] == ["equal", "equal", "not verified"]


def test_names_that_are_to_stay_do(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", under("net."))

    with pytest.raises(UsageError, match=r"all begin with 'net\.'.*strip_prefix='net'"):
        convert_file(path, options=ConvertOptions(model=Small, keep_prefix=True))


def test_a_prefix_can_be_taken_off_and_added(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", {**under("net."), "head.weight": torch.ones(2, 2)})

    options = ConvertOptions(strip_prefix="net", add_prefix="backbone.")
    result = convert_file(path, options=options)

    assert set(load_file(result.output_path)) == {
        f"backbone.{name}" for name in (*EXPECTED, "head.weight")
    }
    assert verify_files(path, result.output_path, options=VerifyOptions()).verdict == "passed"


@pytest.mark.parametrize(
    ("prefix", "strays", "message"),
    [
        ("model", {}, "no entry begins with 'model.'. All begin with 'net.'"),
        ("net.bn1", {"weight": torch.ones(4)}, "two entries would be called 'weight'"),
    ],
)
def test_prefixes_that_do_not_work_are_refused(
    tmp_path: Path, prefix: str, strays: State, message: str
) -> None:
    path = save(tmp_path / "a.pt", {**under("net."), **strays})

    with pytest.raises(UsageError, match=message):
        convert_file(path, options=ConvertOptions(strip_prefix=prefix))


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_no_names_change_in_an_archive(tmp_path: Path) -> None:
    torch.jit.script(Small()).save(tmp_path / "a.pt")

    with pytest.raises(UsageError, match="those of an archive are in its code"):
        convert_file(tmp_path / "a.pt", options=ConvertOptions(strip_prefix="bn1"))


def test_what_a_model_lacks_is_named_by_its_beginning(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pt", small_state())

    with pytest.raises(UsageError, match=r"all begin with 'module\.'.*add_prefix='module'"):
        convert_file(path, options=ConvertOptions(model=Holder))


@pytest.mark.parametrize(
    ("names", "wanted", "expected"),
    [
        (["a.b.x", "a.b.y"], ["x", "y"], "a.b."),
        (["a.b.x", "a.b.y"], ["b.x", "b.y", "z"], "a."),
        (["x", "y"], ["x", "y"], ""),
        (["a.x", "b.y"], ["x", "y"], None),
        (["a.x", "a.num_batches_tracked"], ["x"], "a."),
        ([], ["x"], None),
    ],
)
def test_the_prefix_that_fits(names: list[str], wanted: list[str], expected: str | None) -> None:
    assert prefix_that_fits(names, wanted) == expected


def test_the_prefix_in_common() -> None:
    assert common_prefix(["a.b.c", "a.bc.d"]) == "a."
    assert common_prefix(["a"]) == ""
    assert common_prefix([]) == ""
