from __future__ import annotations

import math
from collections import UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from frozenbn_cli.verification.leaves import (
    count_values,
    has_numbers,
    leaf_differences,
    leaves_of,
)
from frozenbn_cli.verification.tolerance import EXACT, Tolerance


@dataclass
class Pair:
    first: Tensor
    second: Any


class Result:
    """An object whose text says nothing of what it holds."""

    def __init__(self, boxes: Tensor) -> None:
        self.boxes = boxes

    def __repr__(self) -> str:
        return "<Result>"


Named = namedtuple("Named", "logits")


FORMS = {
    "tensor": lambda values: values,
    "namedtuple": Named,
    "dataclass in a dict": lambda values: {"a": Pair(values, [None, "text"])},
    "other mapping": lambda values: UserDict(a=values),
    "object": Result,
    "array": lambda values: values.numpy(),
    "large array": lambda values: np.concatenate([np.zeros(5000), values.numpy(), np.zeros(5000)]),
    "number": lambda values: float(values.sum()),
    "number of NumPy": lambda values: values.numpy().sum(),
    "sparse": lambda values: values.to_sparse(),
    "compressed": lambda values: values.view(1, -1).to_sparse_csr(),
    "nested": lambda values: torch.nested.nested_tensor([values, values[:1]]),
    "conjugate": lambda values: (values + 1j).conj(),
    "complex number": lambda values: complex(float(values.sum()), 1),
    "set": lambda values: set(values.tolist()),
}
VALUES = torch.tensor([1.0, 2.0, 3.0])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_whatever_holds_them_values_are_compared(form: str) -> None:
    before, again, after = (
        leaves_of(FORMS[form](VALUES + shift)) for shift in (0, 0, torch.tensor([0, 0, 1e-6]))
    )

    assert leaf_differences(before, again, EXACT) == []
    assert leaf_differences(before, after, EXACT)
    assert form == "set" or has_numbers(before)


@pytest.mark.filterwarnings("ignore")
def test_quantised_tensors_differ_in_values_and_in_scale() -> None:
    def leaves(scale: float, values: Tensor = VALUES) -> Any:
        return leaves_of(torch.quantize_per_tensor(values, scale, 0, torch.quint8))

    assert leaf_differences(leaves(0.5), leaves(0.5), EXACT) == []
    assert leaf_differences(leaves(0.5), leaves(0.5, VALUES + 1), EXACT)
    (found,) = leaf_differences(leaves(0.5), leaves(0.5 + 1e-12), EXACT)
    assert found.place == "output.scale"


def test_tensors_without_values_are_known_by_their_shape() -> None:
    leaves = leaves_of(torch.ones(2, device="meta"))

    assert leaf_differences(leaves, leaves_of(torch.ones(2, device="meta")), EXACT) == []
    assert leaf_differences(leaves, leaves_of(torch.ones(3, device="meta")), EXACT)
    assert not has_numbers(leaves)


def test_parts_are_copies() -> None:
    values = VALUES.clone()
    leaves = leaves_of([values])
    values += 1

    assert leaf_differences(leaves, leaves_of([VALUES]), EXACT) == []


def test_names_what_one_output_has_and_the_other_has_not() -> None:
    (found,) = leaf_differences(
        leaves_of({"a": VALUES}), leaves_of({"a": VALUES, "b": VALUES}), EXACT
    )
    assert str(found) == "output['b']: added, so that outputs are of another form"
    (found,) = leaf_differences(leaves_of([VALUES, []]), leaves_of([VALUES]), EXACT)
    assert str(found) == "output[1]: missing, so that outputs are of another form"


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("a", "b", "output: 'b' instead of 'a'"),
        (1, True, "output: True instead of 1"),
        (2**80, 2**80 + 1, f"output: {2**80 + 1} instead of {2**80}"),
        (0.1, 0.1 + 1e-12, "output: 1 of 1 elements differs, by up to 1e-12"),
    ],
)
def test_other_values(before: Any, after: Any, said: str) -> None:
    (found,) = leaf_differences(leaves_of(before), leaves_of(after), EXACT)

    assert str(found).startswith(said)


def test_a_tolerance_holds_for_numbers() -> None:
    (found,) = leaf_differences(leaves_of(1.0), leaves_of(1.1), Tolerance(0.2))

    assert found.tolerated


@pytest.mark.parametrize(
    ("output", "numbers", "count"),
    [
        (torch.full((2,), math.nan), False, 1),
        ([math.inf, torch.empty(0)], False, 2),
        ((None, "text", {}), False, 2),
        ({"a": [torch.tensor([math.nan, 1.0])]}, True, 1),
        ([1.5, 2], True, 2),
    ],
)
def test_tells_whether_there_are_numbers(output: Any, numbers: bool, count: int) -> None:
    leaves = leaves_of(output)

    assert has_numbers(leaves) is numbers
    assert count_values(leaves) == count
