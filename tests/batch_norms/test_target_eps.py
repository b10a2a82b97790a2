"""Variances that are rewritten for another eps, against exhaustive search and PyTorch's kernel."""

import math

import pytest
import torch
from torch import Tensor

from frozenbn_cli.batch_norms.target_eps import nearest_variance
from frozenbn_cli.checkpoints.tensors import DTYPES

PAIRS = [(1e-3, 1e-5), (1e-3, 0.0), (1e-5, 0.0), (1e-5, 1e-6), (1e-3, 1e-3)]


def kernel(variance: Tensor, eps: float) -> Tensor:
    """Return the scales that the kernel of BatchNorm in eval gives."""
    one = torch.ones(1, variance.numel(), 1, 1, dtype=variance.dtype)
    zeros = torch.zeros_like(variance)
    return torch.nn.functional.batch_norm(one, zeros, variance, eps=eps).reshape(-1)


def rewritten(variance: Tensor, eps: float, target: float) -> tuple[Tensor, list[float]]:
    dtype = DTYPES[str(variance.dtype).removeprefix("torch.")]
    found = [nearest_variance(value, eps, target, dtype) for value in variance.tolist()]
    values = torch.tensor([value for value, _ in found], dtype=torch.float64)
    # Every value that is returned is one of the dtype.
    assert torch.equal(values.to(variance.dtype).double(), values)
    return values.to(variance.dtype), [off for _, off in found]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("eps", "target"), PAIRS)
def test_gives_every_scale_to_the_last_bit(dtype: torch.dtype, eps: float, target: float) -> None:
    generator = torch.Generator().manual_seed(3)
    spread = torch.logspace(-12, 6, 2000, dtype=torch.float64)
    variance = (spread * torch.rand(2000, generator=generator, dtype=torch.float64)).to(dtype)
    variance[0] = 0.0

    found, off = rewritten(variance, eps, target)

    assert off == [0.0] * 2000
    assert found.min() >= 0
    assert not found.signbit().any()
    assert torch.equal(kernel(found, target), kernel(variance, eps))


@pytest.mark.parametrize("variance", [0.25, 3e-4, 7.7e-5, 1e-6])
def test_takes_the_nearest_of_those_that_fit(variance: float) -> None:
    """All values of bfloat16 are tried; those of a coarse dtype that fit are few, if any."""
    every = torch.arange(0, 0x7F80, dtype=torch.int16).view(torch.bfloat16)
    stored = torch.tensor([variance], dtype=torch.bfloat16)
    eps, target = 1e-3, 9.9e-4
    sums = every.float() + torch.tensor(target)
    fitting = every[sums == stored.float() + torch.tensor(eps)].double()

    value, off = nearest_variance(stored.item(), eps, target, DTYPES["bfloat16"])

    assert (off == 0.0) == bool(fitting.numel())
    if fitting.numel():
        exact = stored.double() + eps - target
        assert value == fitting[(fitting - exact).abs().argmin()].item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_says_what_narrow_statistics_cannot_hold(dtype: torch.dtype) -> None:
    variance = torch.rand(500, generator=torch.Generator().manual_seed(0)).to(dtype)

    found, off = rewritten(variance, 1e-3, 1e-5)

    wanted = variance.float() + torch.tensor(1e-3)
    is_exact = (found.float() + torch.tensor(1e-5)) == wanted
    assert [error == 0 for error in off] == is_exact.tolist()
    assert not is_exact.all()
    assert max(off) < 2.0**-7


def test_a_larger_target_needs_what_no_variance_is() -> None:
    float32 = DTYPES["float32"]
    assert nearest_variance(0.0, 1e-5, 1e-3, float32) == (0.0, pytest.approx(0.9))
    assert nearest_variance(0.5, 1e-5, 1e-3, float32)[1] == 0.0
    # With an eps and a variance of 0, every scale is infinite.
    assert nearest_variance(0.0, 0.0, 1e-5, float32) == (0.0, math.inf)


def test_some_sums_lie_between_the_grid() -> None:
    """1e-5 ends on half a step of the variances from 2^-14 on: every other sum is out of reach."""
    variance = torch.arange(0x38A00000, 0x38A00000 + 64, dtype=torch.int32).view(torch.float32)

    found, off = rewritten(variance, 0.0, 1e-5)

    reached = found + torch.tensor(1e-5) == variance
    assert [error == 0 for error in off] == reached.tolist()


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_leaves_what_is_no_number(broken: float) -> None:
    value, off = nearest_variance(broken, 1e-3, 0.0, DTYPES["float32"])

    assert value == broken or math.isnan(value)
    assert off == 0.0
