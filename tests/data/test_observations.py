from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fluxlike as fl
from fluxlike.data.observations import num_observations


@pytest.mark.parametrize(
    ("data", "n"),
    [
        (torch.zeros(3, 2), 3),
        (np.zeros((4, 1)), 4),
        ({"x": torch.zeros(5, 2), "y": (np.zeros(5), [torch.zeros(5)])}, 5),
        (torch.zeros(0, 7), 0),
    ],
    ids=["tensor", "array", "tree", "empty"],
)
def test_first_axes_count_the_observations(data, n):
    assert num_observations(data) == n


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        ((torch.zeros(3), torch.zeros(4)), ValueError, r"\[0\] holds 3 observations, \[1\] holds 4"),
        ({"x": torch.zeros(3), "y": torch.tensor(1)}, ValueError, r"\['y'\] is a single number"),
        (torch.tensor(1), ValueError, "the data is a single number"),
        ((), ValueError, "the data holds no array"),
        ({"x": []}, ValueError, "the data holds no array"),
        ({"x": torch.zeros(3), "y": None}, TypeError, r"\['y'\] is a NoneType; data is a tree of tensors"),
        (([1, 2],), TypeError, r"\[0\]\[0\] is a int; data is a tree of tensors"),
        ([torch.zeros(3), torch.zeros(3)], ValueError, r"a list of arrays, .*write tuple\(data\)"),
        ("text", TypeError, "the data is a str; data is a tree of tensors"),
        (3, TypeError, "the data is a int; data is a tree of tensors"),
    ],
    ids=str,
)
def test_what_is_no_data_set_is_an_error_with_the_path(data, error, text):
    for use in (num_observations, lambda d: fl.splitobs(d, at=0.5), lambda d: fl.DataLoader(d, 2)):
        with pytest.raises(error, match=text):
            use(data)


@pytest.mark.parametrize(
    ("n", "at", "sizes"),
    [
        (10, 0.8, [8, 2]),
        (10, (0.5, 0.3), [5, 3, 2]),
        (10, 0.0, [0, 10]),
        (10, 1, [10, 0]),
        (10, [], [10]),
        (3, 0.5, [2, 1]),
        (10, (0.1,) * 10, [1] * 10 + [0]),
        (0, 0.5, [0, 0]),
    ],
)
@pytest.mark.parametrize("shuffle", [False, True])
def test_sizes_of_the_parts(n, at, sizes, shuffle):
    assert [len(p) for p in fl.splitobs(torch.arange(n), at=at, shuffle=shuffle)] == sizes


@given(
    n=st.integers(0, 60),
    shares=st.lists(st.floats(0, 1), max_size=4).map(lambda xs: [x / max(sum(xs), 1) for x in xs]),
    shuffle=st.booleans(),
)
def test_every_observation_is_in_one_part(n, shares, shuffle):
    parts = fl.splitobs(torch.arange(n), at=shares, shuffle=shuffle)
    assert len(parts) == len(shares) + 1
    assert torch.cat(parts).sort().values.tolist() == list(range(n))


def test_unshuffled_parts_are_consecutive_views():
    x, y = torch.arange(10), np.arange(10)
    (a, b), (c, d) = fl.splitobs((x, y), at=0.7)
    assert a.tolist() == list(range(7))
    assert c.tolist() == [7, 8, 9]
    assert a.untyped_storage().data_ptr() == c.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert np.shares_memory(b, y)
    assert np.shares_memory(d, y)


def test_shuffled_parts_are_random_and_rows_stay_together():
    x = torch.arange(100)
    torch.manual_seed(1)
    first = fl.splitobs({"x": x, "y": x.numpy() ** 2}, at=0.6, shuffle=True)
    second = fl.splitobs(x, at=0.6, shuffle=True)
    torch.manual_seed(1)
    again = fl.splitobs(x, at=0.6, shuffle=True)
    assert torch.equal(first[0]["x"], again[0])
    assert not torch.equal(second[0], again[0])
    assert not torch.equal(first[0]["x"], x[:60])
    for part in first:
        assert isinstance(part["y"], np.ndarray)
        assert np.array_equal(part["x"].numpy() ** 2, part["y"])


def test_shuffled_parts_are_copies():
    x = torch.arange(10)
    for part in fl.splitobs(x, at=0.5, shuffle=True):
        part.zero_()
    assert torch.equal(x, torch.arange(10))


@pytest.mark.parametrize(
    "at", [-0.1, 1.1, (0.6, 0.6), (0.5, -0.1), float("nan"), (0.5, float("nan"))], ids=str
)
def test_shares_that_do_not_add_up_are_an_error(at):
    with pytest.raises(ValueError, match=r"at=.*: write shares from 0 to 1 that add up to at most 1"):
        fl.splitobs(torch.arange(10), at=at)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_share_may_be_a_numpy_number(kind):
    assert [len(p) for p in fl.splitobs(torch.arange(10), at=kind(0.5))] == [5, 5]
