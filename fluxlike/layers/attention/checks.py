"""What a MultiHeadAttention refuses, and what it says to write instead."""

from __future__ import annotations

from torch import Tensor

from fluxlike.layers.attention.positions import RotaryEmbedding
from fluxlike.layers.checks import require_features

__all__ = ["require_inputs", "require_rotary", "require_sizes"]


def require_inputs(embed_dim: int, query: Tensor, key: Tensor | None, value: Tensor | None) -> None:
    """Refuse queries, keys and values of shapes that do not belong together."""
    n, name = embed_dim, "MultiHeadAttention"
    if not isinstance(query, Tensor) or query.ndim != 3 or query.shape[-1] != n:
        require_features(name, query, -1, n, f"(N, L, {n})", (3,))
    if key is None and value is not None:
        raise TypeError(f"{name} got values without keys; write attention(query, key, value)")
    for what, x, others, like, axes in (
        ("keys", key, "queries", query, 1),
        ("values", value, "keys", key, 2),
    ):
        if x is None or like is None:
            continue
        if not isinstance(x, Tensor) or x.ndim != 3:
            found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{name} takes {what} of shape (N, S, C), found {found}")
        if x.shape[:axes] != like.shape[:axes]:
            raise ValueError(
                f"{name} got {what} of shape {tuple(x.shape)} for {others} of shape {tuple(like.shape)}; "
                "the batch is the same, and each key has a value"
            )


def require_sizes(embed_dim: int, num_heads: int, groups: int) -> None:
    """Refuse sizes that do not divide."""
    if num_heads < 1 or embed_dim % num_heads or embed_dim < 1:
        raise ValueError(
            f"MultiHeadAttention({embed_dim}, {num_heads}): the heads share the features, so embed_dim is a "
            "multiple of num_heads"
        )
    if groups < 1 or num_heads % groups:
        raise ValueError(
            f"MultiHeadAttention({embed_dim}, {num_heads}, num_kv_heads={groups}): each head of the keys "
            "serves as many of the queries, so num_heads is a multiple of num_kv_heads"
        )


def require_rotary(rotary: RotaryEmbedding | None, size: int) -> None:
    """Refuse what is no RotaryEmbedding, or one of more features than a head has."""
    if rotary is None:
        return
    if not isinstance(rotary, RotaryEmbedding):
        raise TypeError(f"rotary={rotary!r}: write rotary=RotaryEmbedding({size})")
    if rotary.dim > size:
        raise ValueError(
            f"rotary={rotary!r} turns {rotary.dim} features, and a head has {size} (embed_dim / num_heads); "
            f"write rotary=RotaryEmbedding({size})"
        )
