"""Transformers divided over an axis of a mesh: what is brought apart computes the same, and stays tied."""

from __future__ import annotations

import pytest
import torch

import fluxlike as fl
from fluxlike import distributed as d


def attentions(tied):
    torch.manual_seed(0)
    first, second = fl.MultiHeadAttention(8, 2), fl.MultiHeadAttention(8, 2)
    for layer in (first, second):
        layer.in_proj.bias = torch.randn(24)
    for name in tied:
        setattr(second.in_proj, name, getattr(first.in_proj, name))
    return fl.Chain(first, second)


def test_layers_of_one_weight_and_biases_of_their_own_keep_these_apart():
    model, x = attentions(["weight"]), torch.randn(2, 3, 8)
    apart = fl.distributed.separate_projections(model)
    torch.testing.assert_close(apart(x), model(x))
    first, second = (layer.in_proj.query for layer in apart.layers)
    assert first.weight is second.weight
    assert first.bias is not second.bias


def test_tied_projections_stay_tied_and_others_apart():
    for tied in (["weight", "bias"], ["bias"], []):
        first, second = (
            layer.in_proj for layer in fl.distributed.separate_projections(attentions(tied)).layers
        )
        for name in ("query", "key", "value"):
            for what in ("weight", "bias"):
                one, other = (getattr(getattr(proj, name), what) for proj in (first, second))
                assert (one is other) == (what in tied)


def test_projections_that_are_not_apart_are_refused_with_what_to_write():
    with pytest.raises(ValueError, match=r"\.in_proj\.weight makes .* write model = .*separate_projections"):
        fl.to_device(fl.TransformerBlock(8, 2), d.mesh(data=1, model=1), d.tensor_parallel())
