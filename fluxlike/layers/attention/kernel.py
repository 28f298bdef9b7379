"""Scaled dot-product attention: by torch's kernels, or written out where they can't go."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.layers.dropout import dropout
from fluxlike.scope.seeded import active
from fluxlike.transforms.engine.motors import derived_again

__all__ = ["attend", "attention_weights"]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, p: float) -> Tensor:
    """The mean of the values, each query's by its own weights (Vaswani et al. 2017, arXiv 1706.03762).

    Args:
        q: queries (N, H, L, D).
        k: keys (N, G, S, D), of which each serves H/G heads.
        v: values (N, G, S, D).
        mask: bool, True where a query may attend, or floating, added to the scores; broadcasts to
            (N, H, L, S).
        causal: whether query i attends keys up to i only; without a mask.
        p: the probability with which a weight is dropped.

    Returns:
        (N, H, L, D), zeros where a query may attend nothing.
    """
    if derived_again() or (p and active() is not None):
        weights = attention_weights(q, k, mask, causal)
        return (dropout(weights, p) if p else weights) @ _for_each_head(v, q)
    return F.scaled_dot_product_attention(q, k, v, mask, p, causal, enable_gqa=q.shape[1] != k.shape[1])


def attention_weights(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """The weights (N, H, L, S) of `attend`, softmax(q·kᵀ/√D): zeros for a query that may attend nothing."""
    scores = (q * q.shape[-1] ** -0.5) @ _for_each_head(k, q).transpose(-2, -1)
    if mask is None:
        if not causal:
            return scores.softmax(-1)
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    forbidden = ~mask if mask.dtype == torch.bool else mask.isneginf()
    nothing = forbidden.all(-1, keepdim=True)  # whose softmax would be 0/0, in the gradient too
    scores = scores if mask.dtype == torch.bool else scores + mask.masked_fill(forbidden, 0)
    return scores.masked_fill(forbidden & ~nothing, -torch.inf).softmax(-1).masked_fill(nothing, 0)


def _for_each_head(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values, repeated for the heads that share them."""
    heads, groups = q.shape[1], x.shape[1]
    return x if heads == groups else x.repeat_interleave(heads // groups, 1)
