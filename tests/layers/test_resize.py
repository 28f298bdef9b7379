from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxlike as fl

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}
SIZES = {1: (5,), 2: (5, 4), 3: (3, 4, 2)}
law = settings(max_examples=50, deadline=None)


def cases():
    for n, linear in LINEAR.items():
        for mode in ("nearest", "nearest-exact", "area", linear, *(["bicubic"] if n == 2 else [])):
            for align in (False, True) if mode in (linear, "bicubic") else (False,):
                yield n, mode, align


@pytest.mark.parametrize(("n", "mode", "align"), list(cases()))
@pytest.mark.parametrize("how", ["a factor", "factors", "a size", "sizes", "smaller"])
def test_upsample_equals_torchs(n, mode, align, how):
    scale = {"a factor": 2, "factors": (2, 1.5, 3)[:n], "smaller": 0.7}.get(how)
    size = {"a size": 6, "sizes": (7, 3, 4)[:n]}.get(how)
    x = torch.randn(2, 3, *SIZES[n], dtype=torch.float64)
    corners = align if mode in ("linear", "bilinear", "bicubic", "trilinear") else None
    wanted = F.interpolate(x, size, scale, mode, corners)
    assert torch.equal(fl.Upsample(scale, mode, size=size, align_corners=align)(x), wanted)


def test_nearest_repeats_every_entry():
    x = torch.tensor([[[[1.0, 2.0]]]])
    assert fl.Upsample((1, 3))(x).tolist() == [[[[1.0, 1.0, 1.0, 2.0, 2.0, 2.0]]]]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: fl.Upsample(), r"Upsample\(scale=None, size=None\): write one of the two"),
        (lambda: fl.Upsample("nearest", 2), r"scale='nearest': write a positive number, or one an axis"),
        (lambda: fl.Upsample((2, "2")), r"scale=\(2, '2'\): write a positive number, or one an axis"),
        (lambda: fl.Upsample(2, size=4), r"Upsample\(scale=2, size=4\): write one of the two"),
        (lambda: fl.Upsample(2, "cubic"), r"mode='cubic': write one of nearest, nearest-exact, area, linear"),
        (lambda: fl.Upsample(2, align_corners=True), r"the mode 'nearest' has no corners to align"),
        (lambda: fl.Upsample(0), r"scale=0: write positive numbers"),
        (lambda: fl.Upsample((2, -1.0)), r"scale=\(2, -1.0\): write positive numbers"),
        (lambda: fl.Upsample(size=0), r"size=0: write numbers of at least 1"),
        (lambda: fl.Upsample(size=2.5), r"size=2.5: write whole numbers"),
        (
            lambda: fl.Upsample((2, 2), "linear")(torch.zeros(1, 1, 4)),
            r"takes \(2, 2\), numbers for 2 axes, but mode='linear' is for 1",
        ),
        (
            lambda: fl.Upsample((2, 2))(torch.zeros(1, 1, 4)),
            r"Upsample takes the shape \(N, C, H, W\), found \(1, 1, 4\); the batch seems to be missing",
        ),
        (
            lambda: fl.Upsample(0.1)(torch.zeros(1, 1, 4, 4)),
            r"makes of the input's \(4, 4\) an output of \(0, 0\); write a larger scale",
        ),
        (
            lambda: fl.PixelShuffle((2, 2)),
            r"PixelShuffle takes one whole number for all axes, found r=\(2, 2\); write PixelShuffle\(2\)$",
        ),
        (lambda: fl.PixelUnshuffle([2, 3]), r"PixelUnshuffle takes one whole number for all axes.*\[2, 3\]$"),
        (lambda: fl.PixelShuffle("2"), r"one whole number for all axes, found r='2'$"),
        (lambda: fl.PixelShuffle(0), r"r=0: write numbers of at least 1"),
        (lambda: fl.PixelUnshuffle(1.5), r"r=1.5: write whole numbers"),
    ],
)
def test_what_can_not_be_is_an_error_that_shows_it(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@given(st.data(), st.integers(1, 3), st.integers(1, 3))
@law
def test_shuffle_and_unshuffle_undo_each_other(data, n, r):
    batch, channels, *sizes = (data.draw(st.integers(low, 3)) for low in (0, 1, *[1] * n))
    x = torch.randn(batch, channels, *(r * size for size in sizes))
    packed = fl.PixelUnshuffle(r)(x)
    assert packed.shape == (batch, channels * r**n, *sizes)
    assert torch.equal(fl.PixelShuffle(r)(packed), x)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_order_of_the_places_is_the_same_for_every_number_of_axes(n):
    x = torch.arange(2.0**n).reshape(1, -1, *[1] * n)
    assert fl.PixelShuffle(2)(x).flatten().tolist() == list(range(2**n))
