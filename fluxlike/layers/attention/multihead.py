"""MultiHeadAttention."""

from __future__ import annotations

import copy
from typing import NamedTuple, overload

import torch
from torch import Tensor

from fluxlike.init import glorot_uniform
from fluxlike.layers.attention import checks, masks
from fluxlike.layers.attention.cache import KVCache
from fluxlike.layers.attention.kernel import attend, attention_weights
from fluxlike.layers.attention.positions import RotaryEmbedding
from fluxlike.layers.auto import autosized
from fluxlike.layers.autocast import autocast_dtype
from fluxlike.layers.basic import Dense, Init
from fluxlike.layers.dropout import require_probability
from fluxlike.layers.errors import within
from fluxlike.scope.mode import training
from fluxlike.trees.functor import functor

__all__ = ["MultiHeadAttention", "Projections"]


class Projections(NamedTuple):
    """The projections of an attention whose queries, keys and values differ in size."""

    query: Dense
    key: Dense
    value: Dense


@autosized(
    embed_dim=-1,
    kdim=lambda query, key=None, *_, **__: (query if key is None else key).shape[-1],
    vdim=lambda query, key=None, value=None, **_: _last(query, key, value).shape[-1],
)
@functor(children=("in_proj", "out_proj"))
class MultiHeadAttention:
    """Attention with several heads (Vaswani et al. 2017, arXiv 1706.03762), by torch's fused kernel.

    ``attention(x)`` is self-attention, ``attention(x, context)`` attends another sequence, and
    ``attention(query, key, value)`` is as in torch. Two queries never mix, so a query that may attend
    nothing gives zeros before `out_proj`, and zero gradients.

    Args:
        embed_dim: features of the queries and of the output.
        num_heads: how many heads, among which `embed_dim` is divided.
        kdim: features of the keys. (default: embed_dim)
        vdim: features of the values. (default: embed_dim)
        num_kv_heads: how many heads keys and values have, each for an equal share of the queries' heads
            (Ainslie et al. 2023, arXiv 2305.13245). (default: num_heads)
        bias: whether the projections have one, which starts at zero. (default: True)
        dropout: the probability with which a weight is zeroed in train mode. (default: 0)
        rotary: a RotaryEmbedding to turn queries and keys by their positions, each sequence's counted from
            0, and with a cache on from its count. (default: None)
        init: makes the weights from their shapes. (default: `init.glorot_uniform`)

    Attributes:
        in_proj: a Dense that makes queries, keys and values at once, in this order; where `kdim` or `vdim` is
            not `embed_dim`, a named tuple of three: `in_proj.query`, `in_proj.key` and `in_proj.value`.
        out_proj: a Dense.
        embed_dim: features of the queries and of the output.
        num_heads: the number of heads.
        num_kv_heads: the number of heads of keys and values.
        dropout: the probability.
        rotary: the RotaryEmbedding, or None.

    Input: query (N, L, embed_dim), key (N, S, kdim), value (N, S, vdim). Further arguments of a call:

    - `mask`: bool, **True where a query may attend** (in torch.nn.MultiheadAttention True means the
      opposite: pass ``~mask``), or floating, added to the scores; of shape (L, S), (N, L, S) or (N, H, L, S),
      with 1 for an axis along which it is the same, so that a mask of keys (N, S) is ``keys[:, None]``.
    - `lengths`: (N,) integers from 0 to S: only so many keys of each sequence count, the others are padding.
    - `causal`: whether query i attends keys up to i only.
    - `cache`: a `KVCache` of the tokens before; attention is causal, S is `max_len` in a mask, and
      ``(output, cache)`` is returned.

    Output: (N, L, embed_dim).

    Raises:
        ValueError: sizes that do not divide, or a `dropout` outside [0, 1]; from a call: another shape,
            lengths outside 0 to S, or more tokens than the cache has memory for. Under `jit` the cache does
            not know its count when it is traced; there, the kernel that writes to it raises a RuntimeError.
        TypeError: `rotary` is no RotaryEmbedding; from a call: a mask of integers, lengths of floats, or a
            cache with keys.
        LayerError: from a call: a projection failed.

    Example:
        >>> import torch, fluxlike as fl
        >>> attention = fl.MultiHeadAttention(8, 2)
        >>> attention
        MultiHeadAttention(
          8, 2,
          in_proj=Dense(8, 24),  # 216 parameters
          out_proj=Dense(8, 8),  # 72 parameters
        )                        # Total: 4 tensors, 288 parameters, 1.125 KiB
        >>> x, context = torch.randn(5, 3, 8), torch.randn(5, 7, 8)
        >>> attention(x, causal=True).shape, attention(x, context).shape
        (torch.Size([5, 3, 8]), torch.Size([5, 3, 8]))
        >>> attention.attention_weights(x, causal=True)[0, 0, 0]
        tensor([1., 0., 0.])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        kdim: int | None = None,
        vdim: int | None = None,
        num_kv_heads: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        rotary: RotaryEmbedding | None = None,
        init: Init = glorot_uniform,
    ) -> None:
        groups = num_heads if num_kv_heads is None else num_kv_heads
        checks.require_sizes(embed_dim, num_heads, groups)
        checks.require_rotary(rotary, embed_dim // num_heads)
        require_probability("MultiHeadAttention", "dropout", dropout)
        self.embed_dim, self.num_heads, self.num_kv_heads = embed_dim, num_heads, groups
        self.dropout, self.rotary = dropout, rotary
        of_keys = groups * (embed_dim // num_heads)
        kdim, vdim = (embed_dim if d is None else d for d in (kdim, vdim))
        self.in_proj: Dense | Projections
        if kdim == vdim == embed_dim:
            self.in_proj = Dense(embed_dim, embed_dim + 2 * of_keys, bias=bias, init=init)
        else:
            self.in_proj = Projections(
                Dense(embed_dim, embed_dim, bias=bias, init=init),
                Dense(kdim, of_keys, bias=bias, init=init),
                Dense(vdim, of_keys, bias=bias, init=init),
            )
        self.out_proj = Dense(embed_dim, embed_dim, bias=bias, init=init)

    @overload
    def __call__(
        self,
        query: Tensor,
        key: Tensor | None = ...,
        value: Tensor | None = ...,
        *,
        mask: Tensor | None = ...,
        lengths: Tensor | None = ...,
        causal: bool = ...,
        cache: None = ...,
    ) -> Tensor: ...
    @overload
    def __call__(
        self, query: Tensor, *, mask: Tensor | None = ..., causal: bool = ..., cache: KVCache
    ) -> tuple[Tensor, KVCache]: ...

    def __call__(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        causal: bool = False,
        cache: KVCache | None = None,
    ) -> Tensor | tuple[Tensor, KVCache]:
        if cache is not None:
            if key is not None or value is not None or lengths is not None:
                raise TypeError(
                    "MultiHeadAttention continues its own tokens where it has a cache: write "
                    "attention(x, cache=cache), with mask= (N, 1, max_len) for keys that do not count"
                )
            return self._continue(query, mask, cache)
        checks.require_inputs(self.embed_dim, query, key, value)
        q, k, v = self._heads(query, key, value)
        q, k = self._turn(q, k)
        mask, causal = self._mask(q, k, mask, lengths, causal)
        return self._merge(attend(q, k, v, mask, causal, self._probability()))

    def attention_weights(
        self,
        query: Tensor,
        key: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """How much each query attends each key: (N, num_heads, L, S), without dropout.

        Args:
            query: as in a call.
            key: as in a call.
            mask: as in a call.
            lengths: as in a call.
            causal: as in a call.
        """
        checks.require_inputs(self.embed_dim, query, key, None)
        q, k, *_ = self._heads(query, key, None, values=False)
        q, k = self._turn(q, k)
        return attention_weights(q, k, *self._mask(q, k, mask, lengths, causal))

    def cache(
        self,
        batch: int,
        max_len: int,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> KVCache:
        """An empty cache for `max_len` tokens of each of `batch` sequences.

        Args:
            batch: how many sequences.
            max_len: for how many tokens there is memory.
            dtype: of the keys and values. (default: that of the weights)
            device: where they are. (default: where the weights are)
        """
        weight = self.out_proj.weight.detach()
        shape = (batch, self.num_kv_heads, max_len, self.embed_dim // self.num_heads)
        keys, values = (weight.new_zeros(shape, dtype=dtype, device=device) for _ in range(2))
        return KVCache(keys, values, torch.zeros((), dtype=torch.int64, device=keys.device))

    def _continue(self, x: Tensor, mask: Tensor | None, cache: KVCache) -> tuple[Tensor, KVCache]:
        checks.require_inputs(self.embed_dim, x, None, None)
        tokens = x.shape[1]
        q, k, v = self._heads(x, None, None)
        q, k = self._turn(q, k, None if self.rotary is None else cache.positions(tokens))
        cache = cache.extended(k, v)
        mask = None if mask is None else masks.combine("MultiHeadAttention", q, cache.keys, mask, None)
        keys, values, mask, causal = cache.seen(tokens, mask)
        keys, values = keys.to(q.dtype), values.to(q.dtype)
        return self._merge(attend(q, keys, values, mask, causal, self._probability())), cache

    def _heads(
        self, query: Tensor, key: Tensor | None, value: Tensor | None, *, values: bool = True
    ) -> list[Tensor]:
        """Queries (N, H, L, D), keys and values (N, G, S, D), by as few products as there are inputs.

        Without `values` there need be no values of the right size.
        """
        heads, groups = self.num_heads, self.num_kv_heads
        key = query if key is None else key
        value = key if value is None else value
        if isinstance(self.in_proj, Projections):
            parts = zip(self.in_proj._fields, self.in_proj, (query, key, value), strict=True)
            wanted = list(parts)[: 3 if values else 2]
            return [y for name, dense, x in wanted for y in self._split(f".in_proj.{name}", dense, x, -1)]
        if query is key is value:
            return self._split(".in_proj", self.in_proj, query, heads, groups, groups)
        of_query, others = self.embed_dim, groups * (self.embed_dim // heads)
        q = self._split(".in_proj", _rows(self.in_proj, 0, of_query), query, heads)
        if key is value:
            return q + self._split(".in_proj", _rows(self.in_proj, of_query, None), key, groups, groups)
        middle = of_query + others
        k = self._split(".in_proj", _rows(self.in_proj, of_query, middle), key, groups)
        return q + k + self._split(".in_proj", _rows(self.in_proj, middle, None), value, groups)

    def _split(self, step: str, layer: Dense, x: Tensor, *heads: int) -> list[Tensor]:
        """The output of a projection as tensors (N, heads, L, D)."""
        y = within(step, layer, x).unflatten(-1, (sum(heads), self.embed_dim // self.num_heads))
        return [y.transpose(1, 2)] if len(heads) == 1 else list(y.transpose(1, 2).split(heads, 1))

    def _turn(self, q: Tensor, k: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return (q, k) if self.rotary is None else (self.rotary(q, positions), self.rotary(k, positions))

    def _merge(self, y: Tensor) -> Tensor:
        y = within(".out_proj", self.out_proj, y.transpose(1, 2).flatten(2))
        dtype = autocast_dtype(y)
        return y if dtype is None else y.to(dtype)

    def _probability(self) -> float:
        return self.dropout if self.dropout and training(self) else 0.0

    def _mask(
        self, q: Tensor, k: Tensor, mask: Tensor | None, lengths: Tensor | None, causal: bool
    ) -> tuple[Tensor | None, bool]:
        """One mask, or the word that it is causal."""
        if mask is None and lengths is None:
            return None, causal
        mask = masks.combine("MultiHeadAttention", q, k, mask, lengths)
        if not causal:
            return mask, False
        return masks.both(mask, masks.up_to(q.shape[2], k.shape[2], q.device)), False

    def extra_repr(self) -> str:
        return (
            f"{self.embed_dim}, {self.num_heads}"
            + (f", num_kv_heads={self.num_kv_heads}" if self.num_kv_heads != self.num_heads else "")
            + (f", dropout={self.dropout}" if self.dropout else "")
            + (f", rotary={self.rotary!r}" if self.rotary is not None else "")
        )


def _last(*inputs: Tensor | None) -> Tensor:
    """The last that is given."""
    return next(x for x in reversed(inputs) if x is not None)


def _rows(dense: Dense, start: int, stop: int | None) -> Dense:
    """The layer that makes some of the features of another."""
    part = copy.copy(dense)
    part.weight = dense.weight[start:stop]
    part.bias = None if dense.bias is None else dense.bias[start:stop]
    return part
