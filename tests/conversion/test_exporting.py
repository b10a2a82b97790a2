"""Exported programs made of live models: `--to pt2`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frozenbn_cli.conversion.convert import ConversionResult, ConvertOptions, convert_file
from frozenbn_cli.errors import UnsupportedFileError, UsageError
from frozenbn_cli.selection import Selection
from tests.builders.archives import script
from tests.builders.files import save
from tests.builders.models import perturb
from tests.builders.programs import records

ONE = (1, 3, 8, 8)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4, eps=1e-3)
        self.live = nn.BatchNorm1d(4)
        self.register_buffer("shift", torch.ones(1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.live(self.bn(self.conv(x)).mean((2, 3)) + self.shift)


class Fixed(Small):
    """Looks at the size of its batch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.reshape(1, 3, 8, 8))


class Named(Small):
    """Takes several things, by position and by name."""

    def forward(self, x: Tensor, *more: Tensor, scale: Tensor) -> dict[str, Any]:
        return {"out": super().forward(x) * scale, "all": [part + 1 for part in more]}


class Impossible(Small):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if float(y.sum()) > 0 else -y


class Tied(Small):
    def __init__(self) -> None:
        super().__init__()
        self.again = self.bn

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.again(self.conv(x)).sum()


def weights(model: nn.Module, path: Path) -> Path:
    return save(path, perturb(model.eval()).state_dict())


def convert(
    path: Path, model: Callable[[], Any] | None, shapes: Any = (ONE,), **options: Any
) -> ConversionResult:
    given = ConvertOptions(to="pt2", model=model, input_shapes=tuple(shapes), **options)
    return convert_file(path, options=given)


def program(result: ConversionResult) -> Any:
    return torch.export.load(result.output_path)


def statuses(result: ConversionResult) -> list[str]:
    return [claim.status for claim in result.claims]


def test_a_state_dict_becomes_a_program(tmp_path: Path) -> None:
    model = Small()
    result = convert(weights(model, tmp_path / "model.pt"), Small)

    assert result.output_path == tmp_path / "model.frozen.pt2"
    assert statuses(result) == ["equal"] * 3
    assert result.made == "exported for 1x3x8x8 of float32, and batches of any size"
    loaded = program(result)
    for size in (1, 2, 5):
        x = torch.rand(size, *ONE[1:])
        assert torch.equal(loaded.module()(x), model(x))
    parameters = dict(loaded.named_parameters())
    assert parameters.keys() == {"conv.weight", "conv.bias", "live.weight", "live.bias"}
    assert {"bn.weight", "bn.bias"} < dict(loaded.named_buffers()).keys()
    assert "bn.num_batches_tracked" not in loaded.state_dict
    assert "live.num_batches_tracked" in loaded.state_dict


def test_nothing_of_this_machine_is_in_it(tmp_path: Path) -> None:
    result = convert(weights(Small(), tmp_path / "model.pt"), Small)

    content = records(result.output_path)
    places = (str(tmp_path), str(Path(__file__).parent), str(Path(torch.__file__).parent))
    for part in content.values():
        assert not any(place.encode() in part for place in places)
    examples = [name for name in content if "sample" in name or "example" in name]
    assert [content[name] for name in examples] == [b""]
    assert any(name.endswith("frozenbn.conversion") for name in content)
    assert program(result).example_inputs is None


def test_a_batch_that_cannot_vary_is_kept_and_said(tmp_path: Path) -> None:
    model = Fixed()
    result = convert(weights(model, tmp_path / "model.pt"), Fixed)

    assert statuses(result) == ["equal"] * 3
    said = "exported for 1x3x8x8 of float32, and batches of this size alone (a batch of any size"
    assert result.made.startswith(said)
    x = torch.rand(ONE)
    assert torch.equal(program(result).module()(x), model(x))


def test_inputs_by_position_and_by_name(tmp_path: Path) -> None:
    model = Named()
    inputs = {"x": torch.rand(ONE), "scale": torch.rand(1, 4)}
    torch.save(inputs, tmp_path / "inputs.pt")
    path = weights(model, tmp_path / "model.pt")
    result = convert(path, Named, (), inputs=tmp_path / "inputs.pt")

    assert statuses(result) == ["equal"] * 3
    assert result.made.startswith("exported for inputs.pt (1x3x8x8, 1x4, run in float32)")
    x, scale = torch.rand(3, *ONE[1:]), torch.rand(3, 4)
    found = program(result).module()(x, scale=scale)
    assert torch.equal(found["out"], model(x, scale=scale)["out"])


def test_layers_that_share_all_stay_shared(tmp_path: Path) -> None:
    model = Tied()
    result = convert(weights(model, tmp_path / "model.pt"), Tied)

    assert statuses(result) == ["equal"] * 3
    x = torch.rand(ONE)
    assert torch.equal(program(result).module()(x), model(x))


def test_half_precision_stays(tmp_path: Path) -> None:
    path = weights(Small().half(), tmp_path / "model.pt")
    result = convert(path, lambda: Small().half())

    assert statuses(result) == ["equal"] * 3
    assert "of float16" in result.made
    assert program(result).module()(torch.rand(ONE).half()).dtype == torch.float16


def test_what_is_left_alone_stays_live_in_the_program(tmp_path: Path) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(3), Small())

    path = weights(build(), tmp_path / "model.pt")
    result = convert(path, build, selection=Selection.of((), "0"))

    assert statuses(result) == ["equal"] * 3
    assert {"0.weight", "1.conv.weight"} < dict(program(result).named_parameters()).keys()
    assert "0.num_batches_tracked" in program(result).state_dict


def test_images_of_the_usual_size_if_nothing_is_given(tmp_path: Path) -> None:
    result = convert(weights(Small(), tmp_path / "model.pt"), Small, ())
    assert result.made.startswith("exported for 1x3x224x224 of float32")


def test_a_pickled_module_needs_trust_or_a_model(tmp_path: Path) -> None:
    model = perturb(Small().eval())
    torch.save(model, tmp_path / "model.pt")
    with pytest.raises(UsageError, match="Pass trust=True, or model"):
        convert(tmp_path / "model.pt", None, ())

    result = convert(tmp_path / "model.pt", None, trust=True)

    assert statuses(result) == ["equal"] * 3
    x = torch.rand(ONE)
    assert torch.equal(program(result).module()(x), model(x))


def test_torchscript_needs_a_model(tmp_path: Path) -> None:
    model = perturb(Small().eval())
    model.shift.fill_(3)  # type: ignore[operator]
    path = script(model, tmp_path / "model.pt")
    with pytest.raises(UsageError, match=r"or a model, found TorchScript.*\. Pass model"):
        convert(path, None, trust=True)

    result = convert(path, Small)

    assert statuses(result) == ["equal"] * 3
    x = torch.rand(ONE)
    assert torch.equal(program(result).module()(x), model(x))


def test_a_state_dict_alone_is_no_program(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected an exported program, or a model"):
        convert(weights(Small(), tmp_path / "model.pt"), None, ())


def test_what_cannot_be_exported_is_refused_with_the_reason(tmp_path: Path) -> None:
    path = weights(Impossible(), tmp_path / "model.pt")
    with pytest.raises(UnsupportedFileError, match=r"the model cannot be exported \(.*\)"):
        convert(path, Impossible)
    with pytest.raises(UnsupportedFileError, match="it does not run on 1x5x8x8"):
        convert(path, Small, [(1, 5, 8, 8)])
    assert list(tmp_path.iterdir()) == [path]
