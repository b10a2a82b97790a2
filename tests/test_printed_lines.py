"""The lines that a report prints to load what was written work on the model of the file."""

from __future__ import annotations

import argparse
import collections
import copy
import json
import pickle
import textwrap
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, prune

from frozenbn_cli import cli
from frozenbn_cli.errors import UsageError
from frozenbn_cli.nn import FrozenBatchNorm2d

Ordered = collections.OrderedDict
_WEIGHT_NORM = "ignore:.*weight_norm.*:FutureWarning"


def trained(model: nn.Module) -> nn.Module:
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            assert layer.running_mean is not None
            assert layer.running_var is not None
            assert layer.num_batches_tracked is not None
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            layer.num_batches_tracked.fill_(9999)
    return model.eval()


def named(**children: nn.Module) -> nn.Module:
    return trained(nn.Sequential(Ordered(children)))


def small() -> nn.Module:
    return named(conv=nn.Conv2d(3, 8, 3), bn=nn.BatchNorm2d(8))


@dataclass(frozen=True)
class Case:
    """A file, and the model that it is of.

    Attributes:
        model: Returns the model; all of them have the same random weights after one seed.
        hold: Returns what is saved of the model.
        write: Writes it.
        options: Of `convert`.
        warns: What loading says.
        kept: Entries of the model that the file does not hold.
        suffix: Of the file.
        left_live: Layers that are BatchNorm2d, and are not to be frozen.
    """

    model: Callable[[], nn.Module] = small
    hold: Callable[[nn.Module], Any] = nn.Module.state_dict
    write: Callable[[Any, Path], None] = torch.save
    options: tuple[str, ...] = ()
    warns: str = ""
    kept: tuple[str, ...] = ()
    suffix: str = ".pth"
    left_live: tuple[str, ...] = ()


def with_(wrap: Callable[[nn.Conv2d], nn.Module]) -> Case:
    return Case(lambda: named(conv=wrap(nn.Conv2d(3, 8, 3)), bn=nn.BatchNorm2d(8)))


def arrays(model: nn.Module) -> dict[str, Any]:
    return {name: value.numpy() for name, value in model.state_dict().items()}


def prefixed(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


def dumped(value: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(value))


def uncounted(model: nn.Module) -> Any:
    """Return what PyTorch 0.4.0 wrote."""
    state = Ordered((k, v) for k, v in model.state_dict().items() if "tracked" not in k)
    state._metadata = Ordered((name, {"version": 1}) for name in ("", "conv", "bn"))  # type: ignore[attr-defined]
    return state


def as_folder(value: Mapping[str, torch.Tensor], path: Path) -> None:
    path.mkdir()
    save_file(dict(value), path / "model.safetensors")


def as_shards(value: Mapping[str, torch.Tensor], path: Path) -> None:
    path.mkdir()
    names = list(value)
    parts = {"a-1.bin": names[:4], "a-2.bin": names[4:]}
    for file, held in parts.items():
        torch.save({name: value[name] for name in held}, path / file)
    weight_map = {name: file for file, held in parts.items() for name in held}
    (path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


class Pair(collections.namedtuple("Pair", "model optimizer")):
    """A tuple with names."""


class Trainer:
    """What holds a model among its attributes."""

    def __init__(self, model: nn.Module) -> None:
        self.weights, self.epoch = model.state_dict(), 3


def tail() -> nn.Module:
    return named(
        conv=nn.Conv2d(3, 8, 3),
        bn=nn.BatchNorm2d(8),
        bn2=nn.BatchNorm2d(16),
        fc=nn.Linear(16 * 49, 32),
        features=nn.BatchNorm1d(32),
    )


def data_norm() -> nn.Module:
    return named(data_bn=nn.BatchNorm1d(54), conv=nn.Conv2d(3, 64, 1), bn=nn.BatchNorm2d(64))


def with_graph() -> nn.Module:
    model = small()
    model.register_buffer("graph", torch.eye(3).to_sparse())
    return model


def with_meta(model: nn.Module) -> dict[str, Any]:
    return {**model.state_dict(), "conv.bias": torch.empty(8, device="meta")}


CASES = {
    "version_one": Case(hold=uncounted, options=("--live",)),
    "version_one_in_a_dict": Case(
        hold=lambda model: {"model": uncounted(model)}, options=("--live",)
    ),
    "tail_behind_flatten": Case(
        tail, options=("--include", "bn", "--include", "bn2"), warns="still live"
    ),
    "tail_of_unknown": Case(tail, warns="still live"),
    "data_norm": Case(data_norm, options=("--dims-of", "data_bn=1d"), warns="still live"),
    "pruned": with_(lambda conv: prune.l1_unstructured(conv, "weight", 0.5)),  # type: ignore[no-untyped-call]
    "spectral_hook": with_(nn.utils.spectral_norm),
    "spectral": with_(parametrizations.spectral_norm),
    "weight_norm": with_(parametrizations.weight_norm),
    "orthogonal": with_(parametrizations.orthogonal),
    "eps_of_numpy": Case(
        lambda: named(conv=nn.Conv2d(3, 8, 3), bn=nn.BatchNorm2d(8, eps=np.float64(1e-3))),
        hold=lambda model: model,
    ),
    "eps_of_tensor": Case(
        lambda: named(conv=nn.Conv2d(3, 8, 3), bn=nn.BatchNorm2d(8, eps=torch.tensor(1e-3))),  # type: ignore[arg-type]
        hold=lambda model: {"ema": model, "epoch": 1},
    ),
    "stray_key": Case(
        hold=lambda model: torch.optim.swa_utils.AveragedModel(model).state_dict(),
    ),
    "stray_key_chosen": Case(
        hold=lambda model: {
            "model": model.state_dict(),
            "ema": torch.optim.swa_utils.AveragedModel(model).state_dict(),
        },
        options=("--key", "ema"),
    ),
    "data_parallel": Case(hold=lambda model: nn.DataParallel(model).state_dict()),
    "compiled_in_lightning": Case(
        hold=lambda model: {"state_dict": prefixed("model._orig_mod.", model.state_dict())}
    ),
    "inner_prefix": Case(
        hold=lambda model: {"state_dict": prefixed("model.", model.state_dict()), "epoch": 3}
    ),
    "inner_prefix_taken_off": Case(
        hold=lambda model: prefixed("net.backbone.", model.state_dict()),
        options=("--strip-prefix", "net.backbone."),
    ),
    "zoo": Case(
        hold=lambda model: {"model": arrays(model), "__author__": "a zoo"},
        write=dumped,
        suffix=".pkl",
    ),
    "zoo_in_torch": Case(hold=lambda model: {"model": arrays(model)}),
    "bare": Case(write=dumped, suffix=".pkl"),
    "namespace": Case(hold=lambda model: argparse.Namespace(model=model.state_dict(), epoch=3)),
    "namedtuple": Case(hold=lambda model: Pair(model.state_dict(), 1)),
    "trainer": Case(hold=Trainer),
    "float_key": Case(
        hold=lambda model: {0.999: model.state_dict(), "model": model.state_dict()},
        options=("--key", "0.999"),
    ),
    "hub": Case(write=as_folder, suffix=""),
    "hub_bin": Case(write=as_shards, suffix=""),
    "for_old_loaders": Case(options=("--to", "torch")),
    "sparse_beside": Case(with_graph, kept=("graph",)),
    "meta_beside": Case(hold=with_meta, kept=("conv.bias",)),
    "another_eps": Case(
        lambda: named(conv=nn.Conv2d(3, 8, 3), bn=nn.BatchNorm2d(8, eps=1e-3)),
        options=("--eps", "1e-3"),
    ),
    "some_layers": Case(
        lambda: named(a=nn.Conv2d(3, 8, 3), b=nn.BatchNorm2d(8), c=nn.BatchNorm2d(8)),
        options=("--exclude", "c"),
        warns="still live",
        left_live=("c",),
    ),
}


def load_lines(out: str) -> str:
    """Return the Python that a report prints."""
    _, _, behind = out.partition("Load it into ")
    return textwrap.dedent(behind.partition(":\n")[2].partition("\n\n")[0])


@pytest.mark.filterwarnings("ignore:.*weight_norm.*", "ignore:Couldn't retrieve source")
@pytest.mark.parametrize("case", CASES)
def test_load_the_result_into_the_model(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = CASES[case]
    torch.manual_seed(0)
    source = kind.model()
    path = tmp_path / f"model{kind.suffix}"
    kind.write(kind.hold(source), path)

    output = tmp_path / ("out.pth" if "torch" in kind.options else "out.safetensors")
    code = cli.run(["convert", str(path), "-o", str(output), *kind.options])
    out, err = capsys.readouterr()

    assert code == 0, err
    target = kind.model()
    scope: dict[str, Any] = {"model": target}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        exec(load_lines(out), scope)
    assert bool(kind.warns) == bool(said), [str(one.message) for one in said]
    assert all(kind.warns in str(one.message) for one in said)
    _check(scope["model"], source, kind)


def _check(model: nn.Module, source: nn.Module, kind: Case) -> None:
    own = dict(model.named_modules())
    for name, layer in source.named_modules():
        if isinstance(layer, nn.BatchNorm2d) and name not in kind.left_live:
            assert isinstance(own[name], FrozenBatchNorm2d)
            assert own[name].eps == float(layer.eps)
    for name, value in source.state_dict().items():
        if not name.endswith("tracked") and name not in kind.kept:
            assert torch.equal(model.state_dict()[name], value), name


def test_a_layer_that_was_taken_for_2d_is_named_with_what_settles_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(data_norm().state_dict(), tmp_path / "a.pth")

    code = cli.run(["convert", str(tmp_path / "a.pth")])
    out, _ = capsys.readouterr()

    assert (code, "does not fit a model that has another there (data_bn)" in out) == (0, True)
    with pytest.raises(UsageError, match="with dims_of data_bn=1d"):
        exec(load_lines(out), {"model": data_norm()})


@pytest.mark.parametrize("entry", ["conv.bias", "bn.bias", "bn.running_var", "graph"])
def test_a_model_can_have_what_the_file_could_not_give(
    entry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Converted all the same; the claim on the model says what it lacks."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\nfrom collections import OrderedDict\n"
        "def build():\n"
        "    children = {'bn': nn.BatchNorm2d(8), 'b': nn.BatchNorm2d(8)}\n"
        "    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 8, 3), **children))\n"
    )
    model = named(conv=nn.Conv2d(3, 8, 3), bn=nn.BatchNorm2d(8), b=nn.BatchNorm2d(8))
    state = {**model.state_dict(), entry: torch.ones(8).to_sparse()}
    torch.save(state, tmp_path / "a.pth")
    build = f"{tmp_path / 'net.py'}:build"

    code = cli.run(["convert", str(tmp_path / "a.pth"), "--model", build])
    out, err = capsys.readouterr()

    assert code == 0, err
    absent = entry != "graph"
    assert (f"the model needs {entry}, which cannot be read here (a sparse" in out) == absent
    assert (f"skip=['{entry}']" in out) == absent
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bn is live still, without its bias.
        exec(load_lines(out), {"model": copy.deepcopy(model)})
    code = cli.run(["convert", str(tmp_path / "a.pth"), "--model", build, "--to", "torchscript"])
    out, err = capsys.readouterr()
    assert (code == 2 and f"the model needs {entry}" in err) == absent
