"""What tests of normalisation share."""

from __future__ import annotations

import torch

import fluxlike as fl


def exact(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def doubles(*shape):
    return torch.randn(shape, dtype=torch.float64)


def trained(norm, x):
    """What the layer returns in training, and the layer after it."""
    with fl.mode("train"):
        y, updates = fl.withupdates(lambda m: m(x), norm)
    return y, fl.apply_updates(norm, updates)
