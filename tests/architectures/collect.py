"""Writes down the BatchNorm layers of every architecture of an installed library, a line each.

    python -m tests.architectures.collect timm FACTS.jsonl
    python -m tests.architectures.collect torchvision FACTS.jsonl

One run for each library and version: `tests/architectures/build_index.py` makes the index of all
their files. Architectures that are in the file already are not built again, so that a run that was
interrupted goes on. Models are built without memory for their weights, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

Layers = dict[str, list[Any]]
"""Channels, eps, momentum and class of each layer with running statistics."""


def layers_of(model: nn.Module) -> Layers:
    """Return what is known of each layer that has a running mean in the state dict."""
    layers: Layers = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        name, _, role = key.rpartition(".")
        if role == "running_mean":
            layer: Any = model.get_submodule(name)
            facts = [
                getattr(layer, "eps", None),
                getattr(layer, "momentum", None),
                type(layer).__name__,
            ]
            layers[name] = [tensor.numel(), *facts]
    return layers


def architectures(library: str) -> list[str]:
    """Return the names of all architectures of a library."""
    module = importlib.import_module("timm" if library == "timm" else "torchvision.models")
    names: list[str] = module.list_models()
    return names


def variants(library: str, name: str) -> Iterator[Layers]:
    """Yield the layers of an architecture, in each way that the library itself builds it."""
    built = [_built_by_timm] if library == "timm" else [_built_by_torchvision, _built_with_weights]
    seen: list[Layers] = []
    for build in built:
        try:
            with without_memory("linspace"):
                layers = layers_of(build(name))
        except (NotImplementedError, RuntimeError):
            with without_memory("linspace", "arange", "tensor"):
                layers = layers_of(build(name))
        if layers not in seen:
            seen.append(layers)
            yield layers


def _built_by_timm(name: str) -> nn.Module:
    model: nn.Module = importlib.import_module("timm").create_model(name, pretrained=False)
    return model


def _built_by_torchvision(name: str) -> nn.Module:
    models = importlib.import_module("torchvision.models")
    # A detector is built from weights of its backbone unless told otherwise.
    with contextlib.suppress(TypeError):
        detector: nn.Module = models.get_model(name, weights=None, weights_backbone=None)
        return detector
    model: nn.Module = models.get_model(name, weights=None)
    return model


def _built_with_weights(name: str) -> nn.Module:
    """Build it as for its published weights, which differ in auxiliary heads and in eps."""
    api = importlib.import_module("torchvision.models._api")
    models = importlib.import_module("torchvision.models")
    with (
        mock.patch.object(api.WeightsEnum, "get_state_dict", return_value={}),
        mock.patch.object(nn.Module, "load_state_dict"),
    ):
        model: nn.Module = models.get_model(name, weights="DEFAULT")
    return model


@contextlib.contextmanager
def without_memory(*with_values: str) -> Iterator[None]:
    """Build models on the meta device, but for the tensors of some functions.

    Numbers are taken from these, such as rates of dropped paths, which the meta device has not.
    """
    with contextlib.ExitStack() as stack:
        for name in with_values:
            function = partial(getattr(torch, name), device="cpu")
            stack.enter_context(mock.patch.object(torch, name, function))
        stack.enter_context(torch.device("meta"))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=["timm", "torchvision"])
    parser.add_argument("facts", type=Path)
    arguments = parser.parse_args()
    version = importlib.import_module(arguments.library).__version__.partition("+")[0]
    done = set()
    if arguments.facts.exists():
        done = {json.loads(line)["name"] for line in arguments.facts.open()}
    with arguments.facts.open("a") as file:
        for name in architectures(arguments.library):
            if name in done:
                continue
            line = {"library": arguments.library, "version": version, "name": name}
            try:
                line["variants"] = list(variants(arguments.library, name))
            except Exception as error:  # An old library may not work with a new PyTorch.
                line["failed"] = f"{type(error).__name__}: {error}"[:200]
            file.write(json.dumps(line) + "\n")
            file.flush()


if __name__ == "__main__":
    main()
