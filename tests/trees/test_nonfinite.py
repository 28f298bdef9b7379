"""`find_nonfinite`: where a tree holds NaN or infinity."""

import math

import numpy as np
import pytest
import torch

import fluxlike as fl


def test_finite_trees_have_none():
    assert fl.find_nonfinite(fl.Chain(fl.Dense(2, 1), fl.BatchNorm(1))) == {}


def test_paths_and_counts_are_named():
    bad = torch.tensor([1.0, math.nan, math.inf, -math.inf])
    assert fl.find_nonfinite({"a": bad, "b": torch.ones(1)}) == {
        "['a']": "1 of 4 is NaN, 2 of 4 are infinite"
    }


def test_a_tie_is_named_once():
    w = torch.tensor([math.nan])
    assert list(fl.find_nonfinite([w, w])) == ["[0]"]


@pytest.mark.parametrize(
    "leaf",
    [
        math.nan,
        complex(1, math.inf),
        np.array([1.0, np.inf]),
        torch.tensor([complex(0, math.inf)]),
        torch.tensor([0.0, math.inf]).to_sparse(),
        fl.Assigned(torch.tensor([math.nan])),
    ],
    ids=repr,
)
def test_they_are_found_in_every_kind_of_leaf(leaf):
    assert list(fl.find_nonfinite({"x": leaf, "y": torch.ones(1)})) == ["['x']"]


def test_leaves_without_such_numbers_are_passed_by():
    assert fl.find_nonfinite([None, "nan", torch.tensor(3), np.ones(2), torch.ones(1, device="meta")]) == {}
