"""The name of an output says its format; one that promises another is refused before any work."""

from pathlib import Path

import pytest
import torch
from torch import nn

from frozenbn_cli import ConvertOptions, convert_file
from frozenbn_cli.errors import UsageError
from frozenbn_cli.outputs import FORMATS, OutputFormat
from frozenbn_cli.verification.written import open_written
from tests.builders.archives import script
from tests.builders.files import save, small_state
from tests.builders.models import perturb


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return save(tmp_path / "model.pth", small_state())


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    model = perturb(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval())
    return script(model, tmp_path / "scripted.pt")


@pytest.mark.parametrize("name", ["x.pt", "x.pth", "X.PTH", "x.bin", "x.ckpt"])
def test_a_name_that_torch_load_reads_gets_what_it_reads(source: Path, name: str) -> None:
    result = convert_file(source, source.with_name(name), options=ConvertOptions(verify=False))

    assert result.output_format == "torch"
    assert "bn1.running_mean" in torch.load(result.output_path, weights_only=True)


@pytest.mark.parametrize("name", ["x.safetensors", "x"])
def test_safetensors_is_what_its_name_and_no_suffix_say(source: Path, name: str) -> None:
    result = convert_file(source, source.with_name(name), options=ConvertOptions(verify=False))

    assert result.output_format == "safetensors"


@pytest.mark.parametrize(
    ("name", "to", "expected"),
    [
        ("x.pt", None, "torchscript"),
        ("x.pth", None, "torchscript"),
        ("x.pt", "torch", "torch"),
        ("x.safetensors", None, "safetensors"),
        ("x", None, "torchscript"),
    ],
)
def test_an_archive_stays_one_where_the_name_allows_it(
    archive: Path, name: str, to: OutputFormat | None, expected: str
) -> None:
    options = ConvertOptions(verify=False, to=to)

    result = convert_file(archive, archive.with_name(name), options=options)

    assert result.output_format == expected


@pytest.mark.parametrize(
    ("name", "to", "said"),
    [
        ("x.onnx", None, "found .onnx"),
        ("x.v2", "torch", "found .v2"),
        ("x.safetensors", "torch", "found .safetensors, which stands for safetensors"),
        ("x.pt", "safetensors", "found .pt, which stands for torch or torchscript"),
        ("x.ckpt", "torchscript", "found .ckpt, which stands for torch"),
    ],
)
def test_a_name_that_promises_another_format_is_refused_before_any_work(
    tmp_path: Path, name: str, to: OutputFormat | None, said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        convert_file(tmp_path / "not there", tmp_path / name, options=ConvertOptions(to=to))

    assert said in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_each_format_is_read_back() -> None:
    for name in FORMATS.keys() - {"checkpoint"}:  # It is verified as a whole.
        with pytest.raises(Exception, match="not_there"):
            open_written(Path("not_there"), name)
