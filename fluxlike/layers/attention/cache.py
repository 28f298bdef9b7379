"""Keys and values of the tokens so far, for decoding one token after another."""

from __future__ import annotations

import torch
from torch import Tensor

from fluxlike._private.tracing import readable
from fluxlike.layers.attention.masks import both, up_to
from fluxlike.trees.functor import functor

__all__ = ["KVCache"]


@functor(buffers=("keys", "values", "count"))
class KVCache:
    """The keys and values that an attention has seen, in memory for `max_len` tokens.

    ``y, cache = attention(x, cache=cache)`` attends the tokens in the cache and those of x, and returns a
    cache with both; the old one stays as it is. It is a tree of three tensors: under `jit` no step traces
    anew, with ``donate`` each step writes to the same memory, and `vmap` maps it. Make one by
    ``attention.cache(batch, max_len)``.

    Args:
        keys: (N, G, max_len, D), for G heads.
        values: (N, G, max_len, D).
        count: how many tokens it holds, a 0-d int64 tensor.

    Attributes:
        keys: the keys; those from `count` on mean nothing.
        values: the values.
        count: how many tokens it holds.

    Example:
        >>> import torch, fluxlike as fl
        >>> attention = fl.MultiHeadAttention(8, 2)
        >>> x = torch.randn(1, 3, 8)
        >>> cache, outputs = attention.cache(1, 10), []
        >>> for i in range(3):
        ...     y, cache = attention(x[:, i : i + 1], cache=cache)
        ...     outputs.append(y)
        >>> cache.count
        tensor(3)
        >>> torch.allclose(torch.cat(outputs, 1), attention(x, causal=True), atol=1e-6)
        True
    """

    def __init__(self, keys: Tensor, values: Tensor, count: Tensor) -> None:
        self.keys, self.values, self.count = keys, values, count

    @property
    def max_len(self) -> int:
        """For how many tokens there is memory."""
        return self.keys.shape[2]

    def positions(self, tokens: int) -> Tensor:
        """The positions of the next tokens."""
        return torch.arange(tokens, device=self.count.device) + self.count

    def extended(self, keys: Tensor, values: Tensor) -> KVCache:
        """The cache with further tokens, (N, G, L, D).

        Raises:
            ValueError: no room for them, or another batch or size.
        """
        self._require_room(keys)
        n, at = keys.shape[2], self.positions(keys.shape[2])
        return KVCache(
            self.keys.index_copy(2, at, keys.to(self.keys.dtype)),
            self.values.index_copy(2, at, values.to(self.values.dtype)),
            self.count + n,
        )

    def seen(self, tokens: int, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None, bool]:
        """Keys, values, a mask and whether it is causal, for the last `tokens` as queries.

        Where the count can be read, they end at the last token; else they are all there is memory for.
        """
        if not readable(self.count):
            rows = up_to(tokens, self.max_len, self.keys.device, self.count - tokens)
            return self.keys, self.values, both(mask, rows[None, None]), False
        end = int(self.count)
        keys, values = self.keys[:, :, :end], self.values[:, :, :end]
        mask = None if mask is None else mask[..., :end] if mask.shape[-1] > 1 else mask
        if tokens == 1 or (mask is None and tokens == end):
            return keys, values, mask, tokens > 1
        return keys, values, both(mask, up_to(tokens, end, keys.device, end - tokens)[None, None]), False

    def _require_room(self, new: Tensor) -> None:
        n, heads, tokens, size = new.shape
        if (n, heads, size) != (self.keys.shape[0], self.keys.shape[1], self.keys.shape[3]):
            raise ValueError(
                f"the KVCache holds keys of shape {tuple(self.keys.shape)}, the new ones are "
                f"{tuple(new.shape)}; make it by attention.cache({n}, max_len), of this attention and batch"
            )
        known = int(self.count) if readable(self.count) else 0
        if known + tokens > self.max_len:
            raise ValueError(
                f"the KVCache has memory for {self.max_len} tokens, holds {known} and got {tokens} more; "
                f"make a longer one: attention.cache({n}, {known + tokens})"
            )

    def extra_repr(self) -> str:
        return f"keys={tuple(self.keys.shape)}, values={tuple(self.values.shape)}, count={_count(self.count)}"


def _count(count: Tensor) -> str:
    return str(int(count)) if readable(count) and count.ndim == 0 else "…"
