"""SamePad and uneven pads: the sizes they promise, and the forms in which they are written."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxlike as fl

law = settings(max_examples=100, deadline=None)
axes = st.integers(1, 3)
CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def numbers(n, low, high):
    return st.tuples(*[st.integers(low, high)] * n)


def ceil(n, d):
    return -(-n // d)


@given(st.data(), axes)
@law
def test_same_pad_makes_of_n_the_ceiling_of_n_over_the_stride(data, n):
    kernel, stride, dilation = (data.draw(numbers(n, 1, 5 if n < 3 else 3)) for _ in range(3))
    size = data.draw(numbers(n, 1, 12 if n < 3 else 6))
    conv = fl.Conv(kernel, 1, 1, stride=stride, dilation=dilation, pad=fl.SamePad())
    assert conv(torch.zeros(1, 1, *size)).shape[2:] == tuple(map(ceil, size, stride))


@given(st.data(), axes, st.sampled_from([fl.MaxPool, fl.MeanPool, fl.LPPool]))
@law
def test_a_pool_with_same_pad_makes_of_n_the_ceiling_of_n_over_the_stride(data, n, make):
    window, stride = (data.draw(numbers(n, 1, 4)) for _ in range(2))
    dilation = data.draw(numbers(n, 1, 3)) if make is fl.MaxPool else (1,) * n
    size = [data.draw(st.integers(d, 8)) for d in dilation]  # else a window may hold only padding
    options = {"dilation": dilation} if make is fl.MaxPool else {}
    pool = make(window, stride=stride, pad=fl.SamePad(), **options)
    y = pool(torch.ones(1, 1, *size))
    assert y.shape[2:] == tuple(map(ceil, size, stride))
    assert y.isfinite().all()


@given(st.data(), axes)
@law
def test_a_transpose_with_same_pad_makes_of_n_n_times_the_stride(data, n):
    kernel, stride, dilation = (data.draw(numbers(n, 1, 5 if n < 3 else 3)) for _ in range(3))
    size = data.draw(numbers(n, 1, 5))
    up = fl.ConvTranspose(kernel, 1, 1, stride=stride, dilation=dilation, pad=fl.SamePad())
    assert up(torch.zeros(1, 1, *size)).shape[2:] == tuple(m * s for m, s in zip(size, stride, strict=True))


@given(st.data(), axes)
@law
def test_pads_are_zeros_around_the_input_whatever_their_form(data, n):
    ends = [data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3))) for _ in range(n)]
    conv = fl.f64(fl.Conv((2,) * n, 1, 1, pad=ends))
    x = torch.randn(1, 1, *(4, 3, 2)[:n], dtype=torch.float64)
    padded = F.pad(x, [number for both in reversed(ends) for number in both])
    wanted = CONVOLUTIONS[n](padded, conv.weight, conv.bias)
    torch.testing.assert_close(conv(x), wanted, rtol=1e-12, atol=1e-12)
    flux = fl.at(fl.f64(fl.Conv((2,) * n, 1, 1, pad=[p for both in ends for p in both])), ".weight")
    torch.testing.assert_close(flux.set(conv.weight)(x), wanted, rtol=1e-12, atol=1e-12)


@given(st.data(), axes)
@law
def test_a_transpose_takes_its_pads_away_from_both_ends(data, n):
    kernel, stride = (data.draw(numbers(n, 2, 4)) for _ in range(2))
    whole = fl.f64(fl.ConvTranspose(kernel, 1, 1, stride=stride))
    x = torch.randn(1, 1, *(4, 3, 3)[:n], dtype=torch.float64)
    y = whole(x)
    ends = [(data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))) for _ in range(n)]
    cut = fl.f64(fl.ConvTranspose(kernel, 1, 1, stride=stride, pad=ends))
    wanted = y
    for axis, (lo, hi) in enumerate(ends, start=2):
        wanted = wanted.narrow(axis, lo, y.shape[axis] - lo - hi)
    torch.testing.assert_close(fl.at(cut, ".weight").set(whole.weight)(x), wanted, rtol=1e-12, atol=1e-12)


def test_the_larger_pad_comes_first():
    x = torch.tensor([[[1.0, 2.0, 3.0]]])
    last = fl.Conv((2,), 1, 1, pad=fl.SamePad(), init=lambda shape: torch.tensor([[[0.0, 1.0]]]))
    assert last(x).tolist() == x.tolist()
    assert fl.MaxPool((2,), stride=1, pad=fl.SamePad())(x).tolist() == [[[1.0, 2.0, 3.0]]]
    assert fl.MeanPool((2,), stride=1, pad=fl.SamePad())(x).tolist() == [[[0.5, 1.5, 2.5]]]


def test_a_kernel_of_odd_length_is_padded_as_torchs_same():
    conv = fl.f64(fl.Conv((3, 5), 1, 1, dilation=(2, 1), pad=fl.SamePad()))
    x = torch.randn(1, 1, 6, 7, dtype=torch.float64)
    wanted = F.conv2d(x, conv.weight, conv.bias, padding="same", dilation=(2, 1))
    torch.testing.assert_close(conv(x), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("pad", "text"),
    [
        (0, "Conv((3, 2), 1, 1)"),
        (2, "Conv((3, 2), 1, 1, pad=2)"),
        ([1, 2], "Conv((3, 2), 1, 1, pad=(1, 2))"),
        ((1, 1, 2, 2), "Conv((3, 2), 1, 1, pad=(1, 2))"),
        ((1, 0, 2, 2), "Conv((3, 2), 1, 1, pad=((1, 0), (2, 2)))"),
        ((1, (2, 0)), "Conv((3, 2), 1, 1, pad=((1, 1), (2, 0)))"),
        (((1, 0), (1, 0)), "Conv((3, 2), 1, 1, pad=((1, 0), (1, 0)))"),
        (fl.SamePad(), "Conv((3, 2), 1, 1, pad=((1, 1), (1, 0)))"),
    ],
    ids=str,
)
def test_pads_print_as_they_may_be_written(pad, text):
    conv = fl.Conv((3, 2), 1, 1, pad=pad)
    assert repr(conv).split("  #")[0] == text
    assert repr(eval(text, {"Conv": fl.Conv})) == repr(conv)


@pytest.mark.parametrize(
    ("pad", "text"),
    [
        ((1, 2, 3), r"pad=\(1, 2, 3\): write one number, or 2 of them, .* 2 pairs \(before, after\)"),
        (((1, 2),), r"pad=\(\(1, 2\),\): write one number, or 2"),
        (((1, 2, 3), 1), r"pad=\(\(1, 2, 3\), 1\): write one number, or 2"),
        ("same", r"pad='same': write one number.*SamePad\(\)"),
        (-1, r"pad=-1: write numbers of at least 0"),
        ((1, (0, -2)), r"pad=\(1, \(0, -2\)\): write numbers of at least 0"),
        (0.5, r"pad=0.5: write whole numbers"),
        (None, r"pad=None: write whole numbers"),
        (fl.SamePad, r"pad=SamePad: write SamePad\(\)"),
    ],
    ids=str,
)
def test_other_pads_are_an_error_that_shows_the_forms(pad, text):
    with pytest.raises(ValueError, match=text):
        fl.Conv((3, 2), 1, 1, pad=pad)


def test_even_pads_are_torchs_own_and_copy_nothing(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("padded by a copy")

    monkeypatch.setattr(F, "pad", refuse)
    x = torch.zeros(1, 1, 8)
    for layer in (fl.Conv((3,), 1, 1, pad=fl.SamePad()), fl.MaxPool((3,), pad=1), fl.MeanPool((3,), pad=1)):
        layer(x)
    with pytest.raises(AssertionError, match="padded by a copy"):
        fl.Conv((2,), 1, 1, pad=fl.SamePad())(x)
