from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from frozenbn_cli.verification.claims import Claim, Difference, Measure, verdict
from frozenbn_cli.verification.differences import compare
from frozenbn_cli.verification.tolerance import Tolerance

NAN, INF = math.nan, math.inf


def measured(before: Tensor, after: Tensor) -> Measure:
    difference = compare("a", before, after)
    assert difference is not None
    assert difference.measure is not None
    return difference.measure


def test_the_same_bits_do_not_differ() -> None:
    assert compare("a", torch.tensor([NAN, INF, -0.0]), torch.tensor([NAN, INF, -0.0])) is None
    assert compare("a", torch.empty(0), torch.empty(0)) is None


def test_measures_where_and_by_how_much() -> None:
    before = torch.tensor([[1.0, 100.0], [-2.0, 0.5]], dtype=torch.float64)
    after = torch.tensor([[1.0, 101.0], [-2.5, 0.5]], dtype=torch.float64)

    found = measured(before, after)

    assert (found.elements, found.differing) == (4, 2)
    assert (found.absolute, found.index) == (1.0, (0, 1))
    assert (found.before, found.after) == (100.0, 101.0)
    assert (found.relative, found.relative_index) == (0.25, (1, 0))
    assert (found.mean, found.percentile_99) == (0.375, 1.0)


@given(st.lists(st.floats(width=32), min_size=1), st.integers(0, 30))
def test_ulps_are_the_steps_between(values: list[float], steps: int) -> None:
    before = np.array(values, dtype=np.float32)
    after = before
    for _ in range(steps):
        after = np.nextafter(after, np.float32(INF))
    reached = bool(np.isfinite(before).any() and np.isfinite(after[np.isfinite(before)]).all())
    if not reached or steps == 0:
        return

    found = compare("a", torch.from_numpy(before), torch.from_numpy(after))

    assert found is not None
    assert found.measure is not None
    assert found.measure.ulps == steps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_ulps_in_every_dtype(dtype: torch.dtype) -> None:
    one = torch.tensor([1.0], dtype=dtype)

    assert measured(one, one + torch.finfo(dtype).eps).ulps == 1
    assert measured(-one * 0, torch.tensor([torch.finfo(dtype).smallest_normal], dtype=dtype)).ulps


def test_opposite_ends_of_float64() -> None:
    ends = torch.tensor([-1.7e308], dtype=torch.float64), torch.tensor([1.7e308]).double()

    assert measured(ends[0], torch.tensor([1.7e308], dtype=torch.float64)).ulps > 2**62


@pytest.mark.parametrize(
    ("before", "after", "absolute"),
    [(NAN, 1.0, INF), (1.0, NAN, INF), (INF, 1.0, INF), (INF, -INF, INF), (0.0, 1.0, 1.0)],
)
def test_what_has_no_distance_is_infinitely_far(
    before: float, after: float, absolute: float
) -> None:
    found = measured(torch.tensor([before, 2.0]), torch.tensor([after, 2.0]))

    assert (found.differing, found.absolute) == (1, absolute)


def test_nan_equals_nan_in_what_was_computed() -> None:
    quiet = torch.tensor([NAN])
    other = (
        quiet.view(torch.int32)
        .bitwise_xor(torch.tensor([1], dtype=torch.int32))
        .view(torch.float32)
    )

    assert compare("a", quiet, other, any_nan=True) is None
    stored = compare("a", quiet, other)
    assert stored is not None
    assert str(stored) == "a: differs in bits that are no value: the sign of 0, or of which NaN"


def test_both_zeros_differ() -> None:
    for any_nan in (False, True):
        assert compare("a", torch.tensor([0.0]), torch.tensor([-0.0]), any_nan=any_nan)


def test_shapes_differ() -> None:
    difference = compare("a", torch.zeros(2, 3), torch.zeros(6))

    assert str(difference) == "a: shape [6] instead of [2, 3]"


def test_large_integers_differ() -> None:
    before = torch.tensor([2**60])

    assert measured(before, before + 1).differing == 1
    assert measured(torch.tensor([True]), torch.tensor([False])).absolute == 1


def test_complex_numbers_differ() -> None:
    found = measured(torch.tensor([3 + 4j]), torch.tensor([0j]))

    assert (found.absolute, found.relative, found.before) == (5.0, 1.0, 3 + 4j)


def test_tensors_that_are_conjugate_lazily() -> None:
    values = torch.tensor([3 + 4j])

    assert compare("a", values.conj(), torch.tensor([3 - 4j])) is None
    assert measured(values.conj(), values).absolute == 8


@pytest.mark.skipif(
    not hasattr(torch, "float4_e2m1fn_x2"), reason="PyTorch before 2.8 has no float4"
)
def test_dtypes_that_are_only_stored() -> None:
    one, two = (torch.tensor([n], dtype=torch.uint8).view(torch.float4_e2m1fn_x2) for n in (1, 2))

    assert compare("a", one, one) is None
    assert str(compare("a", one, two)) == "a: other bits of float4_e2m1fn_x2"


class TestTolerance:
    def test_is_absolute_and_relative(self) -> None:
        before, after = torch.tensor([100.0, 0.0]), torch.tensor([101.0, 0.1])

        def tolerated(atol: float, rtol: float) -> bool:
            difference = compare("a", before, after, tolerance=Tolerance(atol, rtol))
            assert difference is not None
            return difference.tolerated

        assert tolerated(1.0, 0)
        assert tolerated(0.11, 0.01)
        assert not tolerated(0.11, 0.001)
        assert not tolerated(0, 0.5)

    def test_nan_against_a_number_is_never_within(self) -> None:
        difference = compare(
            "a", torch.tensor([NAN]), torch.tensor([1.0]), tolerance=Tolerance(1e9, 1e9)
        )

        assert difference is not None
        assert not difference.tolerated

    @pytest.mark.parametrize("after", [1.0, -INF, NAN])
    def test_nothing_but_infinity_is_within_of_infinity(self, after: float) -> None:
        difference = compare(
            "a", torch.tensor([INF]), torch.tensor([after]), tolerance=Tolerance(0, 1e-3)
        )

        assert difference is not None
        assert not difference.tolerated

    def test_another_dtype_is_within(self) -> None:
        difference = compare(
            "a", torch.tensor([0.5]), torch.tensor([0.5]).half(), tolerance=Tolerance(1e-3)
        )

        assert difference is not None
        assert difference.tolerated
        assert difference.problem == "float16 instead of float32"


def test_the_smallest_tolerance_is_that_of_the_largest_difference() -> None:
    def difference(after: float) -> Difference:
        found = compare("a", torch.tensor([1.0]), torch.tensor([after]))
        assert found is not None
        return found

    claim = Claim("contents", "different", "", 2, (difference(1.5), difference(1.25)))
    hopeless = Claim("contents", "different", "", 1, (difference(1.5), Difference("b", "missing")))

    assert (claim.smallest_atol, claim.smallest_rtol) == (0.5, 0.5)
    assert (hopeless.smallest_atol, hopeless.smallest_rtol) == (None, None)
    assert Claim("contents", "equal", "").smallest_atol is None


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        (("equal", "equal", "not verified"), "passed"),
        (("equal", "different", "not verified"), "failed"),
        (("not verified",) * 3, "not verified"),
    ],
)
def test_claims_amount_to_a_verdict(statuses: tuple, expected: str) -> None:
    assert verdict(Claim("model", status, "") for status in statuses) == expected
