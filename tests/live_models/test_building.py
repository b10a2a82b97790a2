"""Models that misbehave: what they do to the process, and how they answer, if they do."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frozenbn_cli import ConvertOptions, VerifyOptions, convert_file, verify_files
from frozenbn_cli.errors import UsageError
from frozenbn_cli.live_models.building import BuiltOnce, build
from frozenbn_cli.live_models.describing import fit_of
from frozenbn_cli.live_models.guarding import foreign_code
from frozenbn_cli.live_models.target import ModelTarget
from frozenbn_cli.verification.claims import Claim
from tests.builders.archives import script
from tests.builders.files import save
from tests.builders.models import perturb, small_cnn


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return perturb(small_cnn()).eval()


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = small()

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


def model_claim(tmp_path: Path, model: Callable[[], nn.Module], **options: Any) -> Claim:
    """Return the claim on a model that was converted with it."""
    path = save(tmp_path / "a.pt", model().state_dict())
    output = convert_file(
        path, tmp_path / "b.safetensors", options=ConvertOptions(model=model, verify=False)
    ).output_path
    return verify_files(path, output, options=VerifyOptions(model=model, **options)).claims[2]


class TestTheProcess:
    def test_is_where_it_was(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        class Wandering(Wrapped):
            def forward(self, x: Tensor) -> Tensor:
                os.chdir("/")
                torch.set_grad_enabled(False)
                torch.set_default_device("meta")
                return self.net(x.cpu())

        monkeypatch.chdir(tmp_path)

        assert model_claim(Path(), Wandering).status == "equal"
        assert Path.cwd() == tmp_path
        assert torch.is_grad_enabled()
        assert torch.ones(()).device.type == "cpu"

    @pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit()])
    def test_is_not_ended(self, tmp_path: Path, error: BaseException) -> None:
        class Ending(Wrapped):
            def forward(self, x: Tensor) -> Tensor:
                raise error

        claim = model_claim(tmp_path, Ending)

        assert claim.status == "not verified"
        assert type(error).__name__ in claim.detail

    def test_is_not_ended_by_building_either(self) -> None:
        with pytest.raises(UsageError, match=r"building the model failed .*SystemExit 0"):
            build(lambda: sys.exit(0))

    def test_is_interrupted_by_who_runs_it(self, tmp_path: Path) -> None:
        class Interrupted(Wrapped):
            def forward(self, x: Tensor) -> Tensor:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            model_claim(tmp_path, Interrupted)

    def test_keeps_its_output_to_the_result(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        class Talking(Wrapped):
            def __init__(self) -> None:
                print("a word")
                super().__init__()

            def state_dict(self, *arguments: Any, **keywords: Any) -> Any:
                print("a word")
                return super().state_dict(*arguments, **keywords)

            def train(self, mode: bool = True) -> Any:
                print("a word")
                return super().train(mode)

            def forward(self, x: Tensor) -> Tensor:
                os.system("echo a word")
                return self.net(x)

        path = save(tmp_path / "a.pt", Wrapped().state_dict())

        convert_file(path, options=ConvertOptions(model=Talking))
        convert_file(path, tmp_path / "c", options=ConvertOptions(model=Talking, to="torchscript"))

        printed = capfd.readouterr()
        assert printed.out == ""
        assert printed.err.count("a word") > 20

    def test_is_seeded_within_and_as_it_was_without(self) -> None:
        torch.manual_seed(3)
        with foreign_code():
            first = torch.rand(())
        with foreign_code():
            assert torch.rand(()) == first
        torch.manual_seed(3)
        assert torch.rand(()) != first


class TestModelsThatAreRefused:
    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (lambda: nn.LazyLinear(3), "weight has no shape yet. Run the model once"),
            (lambda: nn.Linear(1, 1, device="meta"), "weight is on the meta device"),
        ],
    )
    def test_before_anything_is_done_with_them(
        self, model: Callable[[], nn.Module], message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            build(model)

    def test_compiled_ones(self, tmp_path: Path) -> None:
        script(small(), tmp_path / "a.pt")

        with pytest.raises(UsageError, match=r"expected a torch\.nn\.Module, found TorchScript"):
            build(lambda: torch.jit.load(tmp_path / "a.pt"))

    def test_one_that_renames_its_layers(self, tmp_path: Path) -> None:
        def rename(_: nn.Module, state: dict[str, Any], *__: Any) -> None:
            for name in list(state):
                state[name.replace("net", "backbone")] = state.pop(name)

        class Renaming(Wrapped):
            def __init__(self) -> None:
                super().__init__()
                self._register_state_dict_hook(rename)

        with pytest.raises(UsageError, match="found one that its state_dict"):
            model_claim(tmp_path, Renaming)

    def test_one_whose_state_dict_fails(self) -> None:
        class Failing(Wrapped):
            def state_dict(self, *_: Any, **__: Any) -> Any:
                raise ZeroDivisionError("no entries")

        with pytest.raises(UsageError, match=r"state_dict\(\) .* failed .*no entries"):
            fit_of(build(Failing), {})


class TestModelsThatWork:
    def test_one_whose_train_returns_nothing(self, tmp_path: Path) -> None:
        class Silent(Wrapped):
            def train(self, mode: bool = True) -> None:
                super().train(mode)

        assert model_claim(tmp_path, Silent).status == "equal"

    def test_one_with_extra_state(self, tmp_path: Path) -> None:
        class Extra(Wrapped):
            def get_extra_state(self) -> dict[str, int]:
                return {"version": 3}

            def set_extra_state(self, state: dict[str, int]) -> None:
                assert state == {"version": 3}

        assert model_claim(tmp_path, Extra).status == "equal"

    @pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile])
    def test_one_that_is_wrapped(self, tmp_path: Path, wrap: Callable[[Any], Any]) -> None:
        path = save(tmp_path / "a.pt", wrap(small()).state_dict())

        result = convert_file(path, options=ConvertOptions(model=lambda: wrap(small())))

        assert result.claims[2].status == "equal"

    def test_one_that_calls_its_layers_by_keyword(self, tmp_path: Path) -> None:
        class ByKeyword(Wrapped):
            def forward(self, x: Tensor) -> Tensor:
                y = self.net[1](input=self.net[0](x))
                return self.net[4](input=self.net[3](y))[:0]

        claim = model_claim(tmp_path, ByKeyword)

        assert claim.status == "equal"
        assert "those of 2 of 2 frozen layers are equal" in claim.detail

    def test_outputs_that_are_nan_are_told_by_the_layers(self, tmp_path: Path) -> None:
        class Undefined(Wrapped):
            def forward(self, x: Tensor) -> Tensor:
                return self.net(x) * float("nan")

        assert "outputs hold no finite numbers" in model_claim(tmp_path, Undefined).detail

    @pytest.mark.parametrize("factor", [float("nan"), None])
    def test_what_neither_outputs_nor_layers_show_is_not_verified(
        self, tmp_path: Path, factor: float | None
    ) -> None:
        class Empty(Wrapped):
            def forward(self, x: Tensor) -> Tensor:
                return x[:0] if factor is None else self.net(x * factor)

        claim = model_claim(tmp_path, Empty)

        assert claim.status == "not verified"
        assert "hold no finite numbers" in claim.detail
        assert "nor do those of its layers" in claim.detail

    def test_outputs_in_a_buffer_that_the_next_run_writes_to(self, tmp_path: Path) -> None:
        class Reusing(Wrapped):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("answer", torch.zeros(1, 2), persistent=False)

            def forward(self, x: Tensor) -> Tensor:
                return self.answer.copy_(self.net(x))

        assert model_claim(tmp_path, Reusing, runs=3).status == "equal"

    def test_a_buffer_that_is_no_longer_changed(self, tmp_path: Path) -> None:
        class Counting(Wrapped):
            def __init__(self) -> None:
                super().__init__()
                self.register_buffer("runs", torch.zeros(()), persistent=False)

            def forward(self, x: Tensor) -> Tensor:
                if type(self.net[1]) is nn.BatchNorm2d:
                    self.runs += 1
                return self.net(x)

        claim = model_claim(tmp_path, Counting)

        assert claim.status == "different"
        assert "runs: is no longer changed by a run" in claim.detail


def test_a_model_that_an_archive_does_not_belong_to_is_refused(tmp_path: Path) -> None:
    path = script(small(), tmp_path / "a.pt")
    options = ConvertOptions(to="safetensors", model=partial(nn.Linear, 1, 1))

    with pytest.raises(UsageError, match="expected a BatchNorm that can be frozen"):
        convert_file(path, options=options)


class TestBuiltOnce:
    def test_each_call_gives_a_model_of_its_own(self) -> None:
        calls: list[int] = []

        def counted() -> nn.Module:
            calls.append(1)
            return small()

        once = BuiltOnce(counted)
        first, second = once(), once()

        assert len(calls) == 1
        assert first is not second
        with torch.no_grad():
            first[0].weight.zero_()
        assert second[0].weight.any()

    def test_what_cannot_be_copied_is_built_again(self) -> None:
        class Holding(nn.Linear):
            def __deepcopy__(self, _: object) -> None:
                raise RuntimeError("not to be copied")

        once = BuiltOnce(lambda: Holding(2, 2))

        assert torch.equal(once().weight, once().weight)

    def test_elsewhere_it_is_built_anew(self, tmp_path: Path) -> None:
        """What `path/file.py:callable` builds has a class whose module is known here alone."""
        path = tmp_path / "net_of_a_file.py"
        path.write_text("from torch import nn\n\n\nclass Net(nn.Conv2d):\n    pass\n")
        sizes = {"in_channels": 1, "out_channels": 1, "kernel_size": 1}
        once = BuiltOnce(ModelTarget(f"{path}:Net", sizes))
        once()
        pickled = pickle.dumps(once)
        del sys.modules["frozenbn_model_net_of_a_file"]

        assert type(pickle.loads(pickled)()).__name__ == "Net"
