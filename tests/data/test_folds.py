from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fluxlike as fl
from fluxlike.data.folds import kfolds, shuffleobs


def as_list(data):
    return data.tolist() if isinstance(data, (torch.Tensor, np.ndarray)) else [int(x) for x in data]


KINDS = {"tensor": torch.arange, "array": np.arange, "list": lambda n: list(range(n)), "data set": range}
every_kind = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)


@every_kind
@given(n=st.integers(2, 30), k=st.integers(2, 8), shuffle=st.booleans())
def test_every_observation_is_validated_once_and_trained_on_otherwise(make, n, k, shuffle):
    k = min(k, n)
    key = fl.Key(1) if shuffle else None
    folds = list(kfolds(make(n), k, shuffle=shuffle, key=key))
    assert len(folds) == k
    for training, validation in folds:
        assert sorted(as_list(training) + as_list(validation)) == list(range(n))
    sizes = [len(as_list(v)) for _, v in folds]
    assert sizes == sorted(sizes, reverse=True)
    assert max(sizes) - min(sizes) <= 1
    together = [i for _, v in folds for i in as_list(v)]
    assert sorted(together) == list(range(n))
    assert shuffle or together == list(range(n))


def test_folds_are_scikit_learns():
    model_selection = pytest.importorskip("sklearn.model_selection")
    expected = [(a.tolist(), b.tolist()) for a, b in model_selection.KFold(4).split(np.zeros(11))]
    assert [(as_list(a), as_list(b)) for a, b in kfolds(torch.arange(11), 4)] == expected


@every_kind
def test_shuffled_data_is_all_the_data_in_the_order_of_the_key(make):
    first, again = (as_list(shuffleobs(make(50), key=fl.Key(1))) for _ in range(2))
    assert first == again
    assert first != list(range(50))
    assert sorted(first) == list(range(50))
    assert as_list(shuffleobs(make(50), key=fl.Key(2))) != first


@every_kind
def test_a_split_of_any_kind_is_consecutive(make):
    a, b = fl.splitobs(make(10), 0.7)
    assert (as_list(a), as_list(b)) == (list(range(7)), [7, 8, 9])


def test_rows_stay_together():
    x, y = shuffleobs((torch.arange(20), np.arange(20) ** 2), key=fl.Key(0))
    assert np.array_equal(x.numpy() ** 2, y)


def test_a_part_of_a_data_set_is_torchs_subset():
    data = torch.utils.data.TensorDataset(torch.arange(10))
    for part in (*fl.splitobs(data, 0.5), shuffleobs(data)):
        assert isinstance(part, torch.utils.data.Subset)
        assert part.dataset is data


@pytest.mark.parametrize(
    ("k", "error", "text"),
    [
        (1, ValueError, "5 observations make from 2 to 5 folds"),
        (6, ValueError, "5 observations make from 2 to 5 folds"),
        (2.0, TypeError, "a whole number of folds, found k=2.0"),
        (True, TypeError, "a whole number of folds, found k=True"),
    ],
)
def test_a_number_of_folds_out_of_range_is_an_error_at_once(k, error, text):
    with pytest.raises(error, match=text):
        kfolds(torch.arange(5), k)


def test_a_key_that_shuffles_no_folds_is_an_error():
    with pytest.raises(ValueError, match="kfolds got a key but keeps the order of the data"):
        kfolds(torch.arange(5), 2, key=fl.Key(0))


def test_a_stream_has_no_observations_to_split():
    with pytest.raises(TypeError, match="the data is a generator"):
        fl.splitobs((i for i in range(3)), 0.5)


def test_the_number_of_folds_may_be_of_numpy():
    folds = kfolds(torch.arange(5), np.int64(3))
    assert [v.tolist() for _, v in folds] == [[0, 1], [2, 3], [4]]
