"""Means over samples: right, exact over a save at any point, and never waiting for a device."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fluxlike.learning.metrics.host import host_numbers
from fluxlike.learning.metrics.mean import Mean

floats = st.floats(-1e6, 1e6, width=32)
updates = st.lists(st.tuples(floats, st.integers(1, 512)), max_size=200)


def filled(pairs, mean=None, dtype=torch.float32):
    mean = Mean() if mean is None else mean
    for value, n in pairs:
        mean.update(torch.tensor(value, dtype=dtype), n)
    return mean


def bits(x):
    return np.float64(x).tobytes()


@given(updates.filter(len))
def test_it_is_the_mean_over_samples(pairs):
    wanted = math.fsum(v * n for v, n in pairs) / sum(n for _, n in pairs)
    size = math.fsum(abs(v) * n for v, n in pairs) / sum(n for _, n in pairs)
    assert float(filled(pairs).compute()) == pytest.approx(wanted, abs=1e-13 * size + 1e-300)


@given(updates, st.lists(st.integers(0, 200), max_size=4))
def test_a_save_at_any_point_changes_no_bit(pairs, cuts):
    mean, place = Mean(), 0
    for cut in sorted(min(cut, len(pairs)) for cut in cuts):
        mean = Mean.restore(filled(pairs[place:cut], mean).state())
        place = cut
    mean = filled(pairs[place:], mean)
    whole = filled(pairs)
    assert bits(mean.compute()) == bits(whole.compute())
    assert mean.weight == whole.weight
    assert {k: str(v) for k, v in mean.state().items()} == {k: str(v) for k, v in whole.state().items()}


@given(updates, st.integers(0, 200))
def test_reading_it_in_between_changes_no_bit(pairs, cut):
    mean = filled(pairs[:cut])
    mean.compute()
    assert bits(filled(pairs[cut:], mean).compute()) == bits(filled(pairs).compute())


@pytest.mark.parametrize("sizes", [[32] * 200, [32] * 199 + [7], list(range(1, 201))])
def test_nothing_is_read_from_the_device(sizes):
    mean = Mean()
    for n in sizes:
        mean.update(torch.tensor(1.0, device="meta"), n)
    assert mean.compute().is_meta
    mean.state()


def test_tensors_of_16_bits_and_numbers_are_added_in_64():
    mean = Mean()
    for value in (torch.tensor(1.0, dtype=torch.bfloat16), 2**-40, torch.tensor(1), True):
        mean.update(value)
    assert mean.compute().dtype is torch.float64
    assert float(mean.compute()) == (3 + 2**-40) / 4


def test_a_million_small_values_are_not_lost_beside_a_large_one():
    mean = filled([(2.0**24, 1), *[(1.0, 1)] * 640])
    assert float(mean.compute()) == (2**24 + 640) / 641


def test_nan_is_seen_and_no_value_is_nan():
    assert math.isnan(filled([(1.0, 1), (math.nan, 2), (1.0, 1)]).compute())
    assert math.isnan(Mean().compute())
    assert Mean().weight == 0


def test_a_state_does_not_change_later():
    mean = filled([(1.0, 2)] * 65)
    state = mean.state()
    said = str(state)
    filled([(5.0, 1)] * 100, mean)
    assert str(state) == said
    filled([(5.0, 1)] * 100, Mean.restore(state))
    assert str(state) == said


def test_no_graph_is_kept():
    mean = Mean()
    mean.update(torch.tensor(1.0, requires_grad=True) * 2)
    assert not mean.state()["values"].requires_grad
    assert not mean.compute().requires_grad


def test_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\); write value.mean\(\)"):
        Mean().update(torch.ones(3), 3)
    for n in (0, -1, math.nan):
        with pytest.raises(ValueError, match=r"stands for .* samples"):
            Mean().update(torch.tensor(1.0), n)


@given(st.lists(st.one_of(st.integers(-9, 9), st.booleans(), floats.map(torch.tensor), floats)))
def test_scalars_of_all_kinds_are_read_in_their_order(values):
    found = host_numbers(values)
    wanted = [v.item() if isinstance(v, torch.Tensor) else v for v in values]
    assert [(type(v), v) for v in found] == [(type(v), v) for v in wanted]
