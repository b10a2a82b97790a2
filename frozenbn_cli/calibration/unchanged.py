"""Leaves a model, and the random numbers of this process, as they were. Imports torch."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

__all__ = ["RandomState", "as_it_was"]


class RandomState:
    """Where the random numbers of PyTorch, Python and NumPy stand, to go on from there again."""

    def __init__(self) -> None:
        self._torch = torch.get_rng_state()
        has_cuda = torch.cuda.is_initialized()  # type: ignore[no-untyped-call, unused-ignore]
        self._cuda = torch.cuda.get_rng_state_all() if has_cuda else []
        self._python = random.getstate()
        self._numpy = _numpy_random().get_state() if _numpy_random() else None

    @classmethod
    @contextmanager
    def seeded(cls, seed: int) -> Iterator[None]:
        """Draw what a seed says, and go on afterwards from where the random numbers stand."""
        state = cls()
        torch.manual_seed(seed)
        random.seed(seed)
        if module := _numpy_random():
            module.seed(seed)
        try:
            yield
        finally:
            state.restore()

    def restore(self) -> None:
        """Go back to where they stood."""
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        random.setstate(self._python)
        if self._numpy is not None:
            _numpy_random().set_state(self._numpy)


def _numpy_random() -> Any:
    """Return NumPy's module of random numbers, if something has imported it."""
    return sys.modules.get("numpy.random")


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Run a model in eval, without gradients; afterwards its modes and buffers are as before."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module, _ in modes
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    state = RandomState()
    try:
        with torch.no_grad(), _eager():
            model.eval()
            for module, _ in modes:  # Some overwrite eval() or train(), to keep parts as they are.
                module.training = False
            yield
    finally:
        with torch.no_grad():
            for module, name, buffer, before in buffers:
                module._buffers[name] = buffer
                buffer.copy_(before)
        if modes[0][1]:  # What a model does in eval() beyond its flags, it takes back in train().
            model.train()
        for module, is_training in modes:
            module.training = is_training
        state.restore()


def _eager() -> AbstractContextManager[Any]:
    """Run what `torch.compile` compiled as it was written."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance
