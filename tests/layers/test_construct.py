"""What the constructors of layers say to sizes and inits that make no weight."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fluxlike as fl


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: fl.Dense(-3, 4), ValueError, r"Dense: sizes are not negative, found -3 among \(4, -3\)"),
        (lambda: fl.Dense("3", 4), TypeError, r"Dense: sizes are whole numbers, found '3' among"),
        (lambda: fl.Dense(3.0, 4), TypeError, r"Dense: sizes are whole numbers, found 3.0 among"),
        (lambda: fl.Embedding(3, -1), ValueError, r"Embedding: sizes are not negative"),
        (lambda: fl.EmbeddingBag(3.0, 1), TypeError, r"EmbeddingBag: sizes are whole numbers"),
        (lambda: fl.Conv((3, 3), 3.0, 4), TypeError, r"Conv: sizes are whole numbers, found 3.0"),
        (lambda: fl.Conv((3, 3), 1.5, 2), TypeError, r"Conv: sizes are whole numbers, found 1.5 among"),
        (lambda: fl.ConvTranspose((3,), "1", 2), TypeError, r"ConvTranspose: sizes are whole .* found '1'"),
        (lambda: fl.DepthwiseConv((3,), 2.0, 2), TypeError, r"DepthwiseConv: sizes are whole .* found 2.0"),
        (lambda: fl.BatchNorm(-1), ValueError, r"^BatchNorm: sizes are not negative, found -1$"),
        (lambda: fl.InstanceNorm(2.5), TypeError, r"^InstanceNorm: sizes are whole numbers, found 2.5$"),
        (lambda: fl.GroupNorm(4.0, 2), TypeError, r"GroupNorm: sizes are whole numbers, found 4.0 among"),
        (lambda: fl.LayerNorm(2.5), TypeError, r"^LayerNorm: sizes are whole numbers, found 2.5$"),
        (lambda: fl.RMSNorm((3, "4")), TypeError, r"RMSNorm: sizes are whole numbers, found '4' among"),
        (
            lambda: fl.Dense(3, 4, init=lambda shape: torch.zeros(2)),
            ValueError,
            r"made a tensor of shape \(2,\), asked for \(4, 3\)",
        ),
        (lambda: fl.Dense(3, 4, init=np.zeros), TypeError, r"init=zeros made ndarray of the shape \(4, 3\)"),
        (
            lambda: fl.Scale(3, init=lambda shape: torch.ones(shape, dtype=torch.int64)),
            TypeError,
            r"made int64\[3\].*which can't be trained",
        ),
        (
            lambda: fl.Dense(3, 4, init=torch.nn.init.kaiming_normal_),
            TypeError,
            r"write init=lambda shape: torch.nn.init.kaiming_normal_\(torch.empty\(shape\)\)",
        ),
    ],
)
def test_a_size_or_an_init_that_makes_no_weight_is_named(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_whole_numbers_of_numpy_are_sizes_and_zero_is_one():
    three = np.int64(3)
    assert fl.Dense(three, np.int32(0)).weight.shape == (0, 3)
    assert fl.Scale(three).weight.shape == fl.LayerNorm(three).weight.shape == (3,)
    assert fl.Bilinear(three, 2).weight.shape == (2, 3, 3)
    assert repr(fl.BatchNorm(three)) == "BatchNorm(3)  # 6 parameters, 6 non-trainable"


def test_torchs_inits_serve_as_the_error_says():
    init = lambda shape: torch.nn.init.kaiming_normal_(torch.empty(shape))  # noqa: E731
    assert fl.Conv((3, 3), 2, 4, init=init).weight.std() > 0
