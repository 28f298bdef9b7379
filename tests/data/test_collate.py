from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fluxlike as fl
from fluxlike.data.collation import SampleError, collate

Pair = namedtuple("Pair", ["a", "b"])

LEAVES = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
    st.floats(width=32, allow_nan=False),
    st.text(max_size=3),
    st.none(),
    st.integers(0, 9).map(lambda i: torch.full((2, 3), i)),
    st.integers(0, 9).map(lambda i: np.full((3,), i, np.float32)),
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
        st.tuples(inner, inner).map(lambda t: Pair(*t)),
        st.tuples(inner),
    ),
    max_leaves=6,
)


@given(tree=TREES, n=st.integers(1, 4))
def test_row_i_of_a_batch_is_sample_i(tree, n):
    batch = collate([tree] * n)

    def check(joined, x):
        if isinstance(x, (str, type(None))):
            assert joined == ([x] * n if isinstance(x, str) else None)
            return
        assert joined.shape[0] == n
        for row in joined:
            assert torch.equal(row, torch.as_tensor(x))

    flat_batch, flat_tree = [], []
    flatten(batch, tree, flat_batch, flat_tree)
    for joined, x in zip(flat_batch, flat_tree, strict=True):
        check(joined, x)


def flatten(batch, tree, batches, leaves):
    """Both side by side; strings of a batch are a list, so the tree leads."""
    if isinstance(tree, dict):
        assert set(batch) == set(tree)
        for key in tree:
            flatten(batch[key], tree[key], batches, leaves)
    elif isinstance(tree, (list, tuple)):
        assert type(batch) is type(tree)
        for a, b in zip(batch, tree, strict=True):
            flatten(a, b, batches, leaves)
    else:
        batches.append(batch)
        leaves.append(tree)


@pytest.mark.parametrize(
    "samples",
    [
        [(torch.ones(2), 1), (torch.zeros(2), 2)],
        [{"x": np.ones((2, 2), np.uint8), "y": 1.5}, {"x": np.zeros((2, 2), np.uint8), "y": 2.5}],
        [Pair(True, np.float32(1)), Pair(False, np.float32(2))],
    ],
    ids=["tuple", "dict", "named tuple"],
)
def test_numbers_and_arrays_are_as_torchs_default_has_them(samples):
    expected = torch.utils.data.default_collate(samples)
    for x, y in zip(fl.fleaves(collate(samples)), fl.fleaves(expected), strict=True):
        y = y.float() if not isinstance(samples[0], Pair) and y.dtype == torch.float64 else y
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


def test_numbers_have_the_dtypes_of_torch():
    kinds = [collate([x, x]).dtype for x in (True, 1, 1.0, 1j)]
    assert kinds == [torch.bool, torch.int64, torch.float32, torch.complex64]


def test_an_object_of_a_registered_class_is_rebuilt():
    @fl.functor
    @dataclass
    class Image:
        pixels: torch.Tensor
        label: int

    batch = collate([Image(torch.ones(2), 3), Image(torch.zeros(2), 4)])
    assert isinstance(batch, Image)
    assert batch.label.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"x": torch.ones(3), "y": 1}, r"\['x'\] is of shape \(3,\), in sample 0 it is of shape \(2,\)"),
        ({"x": torch.ones(2).long(), "y": 1}, r"\['x'\] is torch.int64, in sample 0 it is torch.float32"),
        ({"x": np.ones(2), "y": 1}, r"\['x'\] is a ndarray, in sample 0 it is a Tensor"),
        ({"x": torch.ones(2), "y": 1.0}, r"\['y'\] is a float, in sample 0 it is a int"),
        ({"x": torch.ones(2), "y": True}, r"\['y'\] is a bool, in sample 0 it is a int"),
        ({"x": torch.ones(2), "y": None}, r"\['y'\] is a NoneType, in sample 0 it is a int"),
        ({"x": torch.ones(2), "y": (1, 2)}, r"\['y'\] is a tuple, in sample 0 it is a int"),
        ({"x": torch.ones(2), "y": 2**70}, r"\['y'\] is 1180591620717411303424, which has more than 64 bits"),
        ({"x": torch.ones(2)}, r"and sample 0 differ in structure: .*lacks 'y'"),
        ((torch.ones(2), 1), r"and sample 0 differ in structure: at the root, .*a tuple"),
    ],
    ids=str,
)
def test_a_sample_unlike_the_others_is_an_error_that_names_it_and_the_place(other, text):
    first = {"x": torch.ones(2), "y": 1}
    with pytest.raises(SampleError, match=r"^sample 2.*" + text) as error:
        collate([first, first, other])
    assert error.value.sample == 2


@pytest.mark.parametrize(
    ("leaf", "text"),
    [
        (object(), "it is a object, which can't be stacked; .*collate="),
        (np.array(["a"]), "it is a numpy array of <U1, which torch does not have"),
        (
            np.ma.masked_equal([1, 2], 2),
            r"it is a masked array, and torch has no masks: give x.filled\(value\)",
        ),
    ],
    ids=["object", "words", "masked"],
)
def test_what_cannot_be_stacked_is_an_error(leaf, text):
    with pytest.raises(SampleError, match=text):
        collate([leaf, leaf])


def test_no_samples_are_an_error():
    with pytest.raises(ValueError, match="at least one sample"):
        collate([])


def test_the_loader_names_the_observation_of_a_sample_that_does_not_fit():
    data = [torch.zeros(2), 1, torch.zeros(2)]
    with pytest.raises(RuntimeError, match=r"collate \(sample 0 is observation 1\)|sample 1 is observation"):
        list(fl.DataLoader(data, 2, shuffle=True, key=fl.Key(0)))
