"""TorchScript archives made in the tests, and the one check that all conversions of them pass."""

from __future__ import annotations

import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from frozenbn_cli.conversion.convert import ConversionResult, ConvertOptions, convert_file
from frozenbn_cli.errors import NothingToFreezeError
from tests.builders.models import assert_same_bits, leaves, perturb

FROZEN_TYPE = re.compile(
    r"__torch__\.frozenbn_cli\.nn\.___torch_mangle_\d+\.(FrozenBatchNorm2d|Frozen\w+)"
)
COUNT = "num_batches_tracked"


@contextmanager
def torchscript_allowed() -> Iterator[None]:
    """PyTorch deprecates TorchScript, which these tests are about."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.*")
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", ".* always returns", UserWarning)
        yield


def script(model: nn.Module, path: Path, **options: Any) -> Path:
    """Save a scripted model."""
    with torchscript_allowed():
        torch.jit.save(torch.jit.script(model), path, **options)
    return path


def trace(model: nn.Module, path: Path, *inputs: Any, **options: Any) -> Path:
    """Save a traced model."""
    with torchscript_allowed():
        torch.jit.save(torch.jit.trace(model, inputs, check_trace=False, strict=False), path)
    return path


def load(path: Path) -> Any:
    with torchscript_allowed():
        return torch.jit.load(path)


def make(how: str, model: nn.Module, path: Path, *inputs: Any) -> Path:
    """Save ``model``, perturbed and in eval mode, scripted or traced."""
    perturb(model.eval())
    return script(model, path) if how == "scripted" else trace(model, path, *inputs)


def records(path: Path) -> dict[str, bytes]:
    """Return the records of an archive by their names without the folder."""
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def rewrite_records(path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """Change the records of an archive; those that become None are dropped."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            changed = change(name.partition("/")[2], content)
            if changed is not None:
                archive.writestr(name, changed)
    return path


def code(path: Path) -> str:
    """Return all code of an archive."""
    return "\n".join(text.decode() for name, text in records(path).items() if name.endswith(".py"))


def convert(path: Path, **options: Any) -> tuple[ConversionResult, Path]:
    result = convert_file(
        path, path.with_name(f"{path.stem}_frozen"), options=ConvertOptions(**options)
    )
    return result, result.output_path


def claims(result: ConversionResult) -> dict[str, str]:
    return {claim.name: claim.status for claim in result.claims}


def submodule(model: Any, name: str) -> Any:
    for part in filter(None, name.split(".")):
        model = getattr(model, part)
    return model


def run(model: Any, inputs: tuple[Any, ...]) -> Any:
    """Run without the optimiser, which takes longer than all else."""
    with torchscript_allowed(), torch.no_grad(), torch.jit.optimized_execution(False):
        return model(*[_copied(value) for value in inputs])


def _copied(value: Any) -> Any:
    return [part.clone() for part in value] if isinstance(value, list) else value.clone()


def assert_freezes(
    path: Path,
    *inputs: Any,
    frozen: set[str] | None = None,
    keeps_counts: bool = False,
    gradients: bool = True,
    **options: Any,
) -> Path:
    """Convert an archive and hold every promise against what PyTorch makes of both files.

    Args:
        path: The archive.
        inputs: Of its forward.
        frozen: The names of the layers that have to become frozen ones; any if None.
        keeps_counts: Whether code reads what the layers count, so that it stays.
        gradients: Whether to compare the gradients by the first input too.
        options: Of the conversion.

    Returns:
        The path of the result.
    """
    result, output = convert(path, **options)
    names = {plan.layer.name for plan in result.plan.frozen}
    assert names == frozen if frozen is not None else names
    assert claims(result) == {"contents": "equal", "layers": "equal", "model": "equal"}
    before, after = load(path), load(output)
    assert_same_behaviour(before, after, names, inputs)
    assert_same_state(before, after, names, keeps_counts=keeps_counts)
    if gradients:
        assert_same_bits(_input_gradient(after, inputs), _input_gradient(before, inputs))
    for name in names:
        assert FROZEN_TYPE.fullmatch(submodule(after, name)._c._type().qualified_name()), name
    _assert_untouched(path, output)
    _assert_saves_again(after, output, inputs)
    with pytest.raises(NothingToFreezeError):
        convert_file(
            output, output.with_name(f"{output.name}_twice"), options=ConvertOptions(**options)
        )
    return output


def assert_same_behaviour(
    before: Any, after: Any, frozen: set[str], inputs: tuple[Any, ...]
) -> None:
    """Hold that two models give the same in eval, and with the frozen layers in training mode."""
    flags = {name: module.training for name, module in before.named_modules()}
    assert {name: module.training for name, module in after.named_modules()} == flags
    before.eval()
    after.eval()
    expected = run(before, inputs)
    assert any(isinstance(leaf, Tensor) and leaf.numel() for _, leaf in leaves(expected))
    assert_same_bits(run(after, inputs), expected)
    buffers = {name: value.clone() for name, value in after.named_buffers()}
    for name in frozen:
        submodule(after, name).training = True
    assert_same_bits(run(after, inputs), expected)
    assert_same_bits(dict(after.named_buffers()), buffers)
    after.eval()


def assert_same_state(
    before: Any, after: Any, frozen: set[str], *, keeps_counts: bool = False
) -> None:
    """Hold that frozen layers have neither parameters nor counts, and all else is as it was."""
    lost = set() if keeps_counts else {_joined(name, COUNT) for name in frozen}
    assert_same_bits(
        dict(sorted(after.state_dict().items())),
        {name: value for name, value in sorted(before.state_dict().items()) if name not in lost},
    )
    affine = {_joined(name, role) for name in frozen for role in ("weight", "bias")}
    parameters = {
        name: value.requires_grad
        for name, value in before.named_parameters(remove_duplicate=False)
        if name not in affine
    }
    found = after.named_parameters(remove_duplicate=False)
    assert {name: value.requires_grad for name, value in found} == parameters
    assert not any(value.requires_grad for value in after.buffers())


def _joined(module: str, role: str) -> str:
    return f"{module}.{role}" if module else role


def _input_gradient(model: Any, inputs: tuple[Any, ...]) -> Tensor | None:
    first = inputs[0].clone().requires_grad_()
    outputs = model.eval()(first, *inputs[1:])
    total = sum(
        leaf.float().square().sum()
        for _, leaf in leaves(outputs)
        if isinstance(leaf, Tensor) and leaf.requires_grad
    )
    assert isinstance(total, Tensor)
    gradient: Tensor = torch.autograd.grad(total, first)[0]
    return gradient


def _assert_untouched(before: Path, after: Path) -> None:
    """Hold that records that need not change are the same bytes, aligned as PyTorch wants them."""
    given, found = records(before), records(after)
    changed = {name for name in given.keys() & found.keys() if given[name] != found[name]}
    record = "extra/frozenbn.conversion.json"
    changed -= {"data.pkl", record}
    assert all(name.startswith(("code/__torch__/", "code/__torch__.py")) for name in changed)
    added = found.keys() - given.keys() - {record}
    assert all(name.startswith("code/__torch__/") for name in added), added
    # What maps code to its source no longer fits.
    assert not {f"{name}.debug_pkl" for name in changed} & found.keys()
    data = after.read_bytes()
    with zipfile.ZipFile(after) as archive:
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            lengths = struct.unpack_from("<HH", data, info.header_offset + 26)
            assert (info.header_offset + 30 + sum(lengths)) % 64 == 0, info.filename


def _assert_saves_again(model: Any, output: Path, inputs: tuple[Any, ...]) -> None:
    again = output.with_name(f"{output.name}_again")
    with torchscript_allowed():
        torch.jit.save(model, again)
    assert_same_bits(run(load(again), inputs), run(model, inputs))
    assert_same_bits(load(again).state_dict(), model.state_dict())


def types(path: Path) -> Mapping[str, str]:
    """Return the type of every module of an archive, as PyTorch names it."""
    return {name: module._c._type().qualified_name() for name, module in load(path).named_modules()}
