"""Exported programs of small models, made once in a run, and how results are read."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from frozenbn_cli.checkpoints import Checkpoint, open_checkpoint
from frozenbn_cli.conversion.convert import ConversionResult, ConvertOptions, convert_file

_VERSION = tuple(map(int, torch.__version__.split(".")[:2]))
_OLD_PROGRAM = "serialized_exported_program.json"

WRITES_NEWEST_LAYOUT = _VERSION >= (2, 9)
of_newest_layout = pytest.mark.skipif(
    not WRITES_NEWEST_LAYOUT, reason="PyTorch before 2.9 knows older layouts and schemas alone"
)

IMAGES = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4, eps=1e-3, momentum=0.03)
        self.head = nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(self.conv(x)).relu())  # type: ignore[no-any-return]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.bn(x) + 1)  # type: ignore[no-any-return]


class TwoNames(nn.Module):
    """One layer under two names, and another that shares its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.b.weight = self.a.weight
        self.c = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))  # type: ignore[no-any-return]


class SharedWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))  # type: ignore[no-any-return]


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, self.bn, lambda x: self.bn(x) + 1, (x,))  # type: ignore[no-any-return]


class WithoutGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.bn(x)
        return self.conv(x)  # type: ignore[no-any-return]


class Autocast(WithoutGradient):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            x = self.bn(self.conv(x))
        return x.float()


class AllDimensions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flat, self.line = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
        self.plane, self.volume = nn.BatchNorm2d(3), nn.BatchNorm3d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.volume(self.plane(x).unsqueeze(-1)).squeeze(-1)
        return self.flat(self.line(x.flatten(2)).mean(2))  # type: ignore[no-any-return]


class Bare(nn.Module):
    """No module of PyTorch, and its buffers are called as a BatchNorm's are."""

    def __init__(self, mean: str = "running_mean") -> None:
        super().__init__()
        self.mean = mean
        self.register_buffer(mean, torch.zeros(3))
        self.register_buffer("running_var", torch.ones(3))
        self.weight, self.bias = nn.Parameter(torch.ones(3)), nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.get_buffer(self.mean), self.get_buffer("running_var")
        return F.batch_norm(x, mean, variance, self.weight, self.bias, self.training, 0.3, 1e-4)


class Lacking(nn.Module):
    """A layer without statistics, and one without affine."""

    def __init__(self) -> None:
        super().__init__()
        self.without_statistics = nn.BatchNorm2d(3, track_running_stats=False)
        self.without_affine = nn.BatchNorm2d(3, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.without_statistics(self.without_affine(x))  # type: ignore[no-any-return]


class Instance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(3, affine=True, track_running_stats=True)
        self.bare = nn.InstanceNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bare(self.norm(x))  # type: ignore[no-any-return]


class Odd(Twice):
    """One layer, and something that its subclasses do with its tensors beside calling it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(x) + self.beside(x)  # type: ignore[no-any-return]

    def beside(self, x: Tensor) -> Tensor:
        return x


class Written(Odd):
    def beside(self, x: Tensor) -> Tensor:
        view: Tensor = self.bn.running_mean[:2]  # type: ignore[assignment]
        return x * view.mul_(0.5).sum()


class UsedWeight(Odd):
    def beside(self, x: Tensor) -> Tensor:
        return x * self.bn.weight[0]


class ReadStatistics(Odd):
    def beside(self, x: Tensor) -> Tensor:
        return x * self.bn.running_mean[0]  # type: ignore[index]


class ReadCount(Odd):
    def beside(self, x: Tensor) -> Tensor:
        return x * self.bn.num_batches_tracked  # type: ignore[operator]


class ReadNextCount(Odd):
    """It reads its count by what counts batches, but writes it nowhere."""

    def beside(self, x: Tensor) -> Tensor:
        return x * (self.bn.num_batches_tracked + 1)  # type: ignore[operator]


class ResetCount(Odd):
    def beside(self, x: Tensor) -> Tensor:
        self.bn.num_batches_tracked.zero_()  # type: ignore[union-attr,operator]
        return x


class CountedAndRead(Odd):
    def beside(self, x: Tensor) -> Tensor:
        self.bn.num_batches_tracked.add_(1)  # type: ignore[union-attr,operator]
        return x * self.bn.num_batches_tracked  # type: ignore[operator]


class Checked(Odd):
    """Its assertions are nodes without outputs."""

    def beside(self, x: Tensor) -> Tensor:
        for total in (x.sum(), x.mean()):
            count = total.abs().int().item()
            torch._check(count < 1000)
            x = x * count
        return x


class ComputedWeight(Twice):
    def forward(self, x: Tensor) -> Tensor:
        bn, weight = self.bn, self.bn.weight * 2
        return F.batch_norm(x, bn.running_mean, bn.running_var, weight, bn.bias, False)


class Unused(Twice):
    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.BatchNorm2d(3)


def half() -> nn.Module:
    return Plain().half()


def sequence() -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3))


def other_names() -> nn.Module:
    return nn.Sequential(Bare("average"))


@torch.no_grad()
def uneven(model: nn.Module) -> nn.Module:
    """Fill in statistics and affine that differ from channel to channel, the same each time."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith("num_batches_tracked"):
            tensor.fill_(1000)
        elif name.endswith(("running_var", "bn.weight")):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        else:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
    return model


def export(
    model: nn.Module,
    *inputs: Tensor,
    strict: bool = False,
    any_batch: bool = False,
) -> Any:
    """Return an exported program; without a word of what PyTorch says on the way."""
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)},) if any_batch else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model, inputs or (IMAGES,), strict=strict, dynamic_shapes=shapes)


def decompose(program: Any) -> Any:
    """Return a program in the operators that are left where all others are made of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return program.run_decompositions()


def saved(program: Any, **extra: Any) -> bytes:
    """Return what `torch.export.save` writes."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, file, **extra)
    return file.getvalue()


@cache
def program_of(
    make: Callable[[], nn.Module],
    mode: str = "eval",
    *,
    decomposed: bool = False,
    strict: bool = False,
) -> bytes:
    """Return the file of a small model's program, exported in ``eval`` or in ``train``."""
    program = _exported(make, mode, strict)
    return saved(decompose(program) if decomposed else program)


@cache
def _exported(make: Callable[[], nn.Module], mode: str, strict: bool) -> Any:
    return export(uneven(make()).train(mode == "train"), images_for(make), strict=strict)


def load(path: Path) -> Any:
    """Return a program as PyTorch loads it; without a word of what it says on the way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(path)


def outputs(program: Any, images: Tensor = IMAGES) -> Tensor:
    """Return what a loaded program gives."""
    with torch.no_grad():
        result: Tensor = program.module()(images)
    return result


@torch.no_grad()
def outputs_in_eval(make: Callable[[], nn.Module]) -> Tensor:
    """Return what the model of `program_of` gives in eval."""
    result: Tensor = uneven(make()).eval()(images_for(make))
    return result


def images_for(make: Callable[[], nn.Module]) -> Tensor:
    return IMAGES.half() if make is half else IMAGES


def convert(path: Path, *, verify: bool = False, **options: Any) -> ConversionResult:
    """Convert a program beside itself."""
    return convert_file(path, options=ConvertOptions(verify=verify, **options))


def left(result: ConversionResult) -> dict[str, str | None]:
    """Return why layers were left alone, by name."""
    return {item.layer.name: item.reason for item in result.plan.left}


def frozen(result: ConversionResult) -> list[str]:
    return [item.layer.name for item in result.plan.frozen]


def records(path: Path) -> dict[str, bytes]:
    """Return the records of an archive, without the folder around them."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        root = f"{names[0].partition('/')[0]}/"
        root = root if all(name.startswith(root) for name in names) else ""
        return {name.removeprefix(root): archive.read(name) for name in names}


def program_record(content: Mapping[str, bytes]) -> str:
    """Return which of the records of an archive is its only program, in any layout."""
    (name,) = (name for name in content if name == _OLD_PROGRAM or name.startswith("models/"))
    return name


def write_records(path: Path, content: dict[str, bytes], root: str | None = None) -> Path:
    """Write an archive of these records, in the folder that its layout wants."""
    if root is None:
        root = "" if _OLD_PROGRAM in content else "archive/"
    with zipfile.ZipFile(path, "w") as archive:
        for name, part in content.items():
            archive.writestr(root + name, part)
    return path


def edited(path: Path, record: str, edit: Callable[[Any], None]) -> Path:
    """Edit the JSON of a record, in place."""
    content = records(path)
    document = json.loads(content[record])
    edit(document)
    content[record] = json.dumps(document).encode()
    return write_records(path, content)


def opened(path: Path) -> Checkpoint:
    return open_checkpoint(path)
