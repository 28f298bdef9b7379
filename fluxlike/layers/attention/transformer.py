"""Blocks of transformers: attention and a network of two layers, each with a way around."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor

from fluxlike.init import glorot_uniform
from fluxlike.layers.activations import gelu
from fluxlike.layers.attention.cache import KVCache
from fluxlike.layers.attention.multihead import MultiHeadAttention
from fluxlike.layers.attention.positions import RotaryEmbedding
from fluxlike.layers.auto import autosized
from fluxlike.layers.basic import Activation, Dense, Init
from fluxlike.layers.checks import require_features
from fluxlike.layers.dropout import Dropout, DropPath, require_probability
from fluxlike.layers.dropout import dropout as drop
from fluxlike.layers.errors import within
from fluxlike.layers.layernorm import LayerNorm
from fluxlike.layers.printing import activation_text
from fluxlike.scope.mode import training
from fluxlike.trees.functor import functor

__all__ = ["TransformerBlock", "TransformerDecoderBlock"]

Norm = Callable[[int], Callable[[Tensor], Tensor]]


@autosized(dim=-1)
@functor(children=("self_attn", "linear1", "linear2", "norm1", "norm2", "dropout", "drop_path"))
class TransformerBlock:
    """Self-attention and a network of two layers, each with a way around: an encoder's block, or a GPT's.

    (Vaswani et al. 2017, arXiv 1706.03762.) With `prenorm`, ``x + attention(norm1(x))`` and then
    ``x + network(norm2(x))`` (Xiong et al. 2020, arXiv 2002.04745), which wants one more norm after the last
    block; else ``norm1(x + attention(x))`` and ``norm2(x + network(x))``, as in the paper. With
    ``causal=True`` it is a block of a language model. The one of torch is TransformerEncoderLayer.

    Args:
        dim: features of the input and the output.
        num_heads: heads of the attention.
        hidden: features between the two layers of the network. (default: 4·dim)
        activation: any callable, between the two layers. (default: gelu)
        dropout: the probability for the attention's weights, for the activations between the two layers and
            for the output of either branch. (default: 0)
        hidden_dropout: that for the activations between the two layers, where it is another: GPT-2 and BERT
            have 0. (default: None, as `dropout`)
        drop_path: the probability with which an example goes around a branch. (default: 0)
        norm: makes a norm from the number of features. (default: LayerNorm)
        prenorm: whether branches begin with their norm. (default: True)
        causal: whether a token attends no later ones. (default: False)
        num_kv_heads: as in MultiHeadAttention. (default: num_heads)
        rotary: as in MultiHeadAttention. (default: None)
        bias: whether projections and layers have one. (default: True)
        init: makes the weights from their shapes. (default: `init.glorot_uniform`)

    Attributes:
        self_attn: a MultiHeadAttention.
        linear1: a Dense with the activation.
        linear2: a Dense.
        norm1: the norm of the attention.
        norm2: the norm of the network.
        dropout: a Dropout, left out where its p is 0.
        drop_path: a DropPath, left out where its p is 0.
        hidden_dropout: the probability for the activations, None for that of `dropout`.
        prenorm: whether branches begin with their norm.
        causal: whether a token attends no later ones.

    Input and output: (N, L, dim). `mask`, `lengths` and `cache` as in a call of MultiHeadAttention; with a
    cache it returns ``(output, cache)``.

    Raises:
        ValueError: as MultiHeadAttention; from a call: another shape.
        LayerError: from a call: a part failed.

    Example:
        >>> import torch, fluxlike as fl
        >>> blocks = fl.Chain(*[fl.TransformerBlock(8, 2, causal=True) for _ in range(3)], fl.LayerNorm(8))
        >>> blocks(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 8])
        >>> blocks[0]
        TransformerBlock(
          8, 2, causal=True,
          self_attn=MultiHeadAttention(
            8, 2,
            in_proj=Dense(8, 24),      # 216 parameters
            out_proj=Dense(8, 8),      # 72 parameters
          ),                           # 288 parameters
          linear1=Dense(8, 32, gelu),  # 288 parameters
          linear2=Dense(32, 8),        # 264 parameters
          norm1=LayerNorm(8),          # 16 parameters
          norm2=LayerNorm(8),          # 16 parameters
          dropout=Dropout(0.0),
          drop_path=DropPath(0.0),
        )                              # Total: 12 tensors, 872 parameters, 3.406 KiB
    """

    _causal = False  # the default

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int | None = None,
        activation: Activation = gelu,
        *,
        dropout: float = 0.0,
        hidden_dropout: float | None = None,
        drop_path: float = 0.0,
        norm: Norm = LayerNorm,
        prenorm: bool = True,
        causal: bool = False,
        num_kv_heads: int | None = None,
        rotary: RotaryEmbedding | None = None,
        bias: bool = True,
        init: Init = glorot_uniform,
    ) -> None:
        hidden = 4 * dim if hidden is None else hidden
        if hidden_dropout is not None:
            require_probability(type(self).__name__, "hidden_dropout", hidden_dropout)
        self.self_attn = MultiHeadAttention(
            dim, num_heads, num_kv_heads=num_kv_heads, bias=bias, dropout=dropout, rotary=rotary, init=init
        )
        self.linear1 = Dense(dim, hidden, activation, bias=bias, init=init)
        self.linear2 = Dense(hidden, dim, bias=bias, init=init)
        self.norm1, self.norm2 = norm(dim), norm(dim)
        self.dropout, self.drop_path = Dropout(dropout), DropPath(drop_path)
        self.hidden_dropout, self.prenorm, self.causal = hidden_dropout, prenorm, causal

    @overload
    def __call__(
        self, x: Tensor, *, mask: Tensor | None = ..., lengths: Tensor | None = ..., cache: None = ...
    ) -> Tensor: ...
    @overload
    def __call__(self, x: Tensor, *, mask: Tensor | None = ..., cache: KVCache) -> tuple[Tensor, KVCache]: ...

    def __call__(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor | tuple[Tensor, KVCache]:
        x, new = self._attend(x, mask, lengths, cache)
        x = self._after("norm2", x, self._network(self._before("norm2", x)))
        return x if new is None else (x, new)

    def cache(
        self,
        batch: int,
        max_len: int,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> KVCache:
        """An empty cache of the self-attention, as `MultiHeadAttention.cache` makes it.

        Args:
            batch: how many sequences.
            max_len: for how many tokens there is memory.
            dtype: of the keys and values. (default: that of the weights)
            device: where they are. (default: where the weights are)
        """
        return self.self_attn.cache(batch, max_len, dtype=dtype, device=device)

    def _attend(
        self, x: Tensor, mask: Tensor | None, lengths: Tensor | None, cache: KVCache | None
    ) -> tuple[Tensor, KVCache | None]:
        """The first branch: self-attention."""
        dim, attention = self.self_attn.embed_dim, self.self_attn
        if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[-1] != dim:
            require_features(type(self).__name__, x, -1, dim, f"(N, L, {dim})", (3,))
        if cache is not None and not self.causal:
            raise ValueError(
                f"{type(self).__name__} has causal=False, and with a cache attention is causal; write "
                "causal=True where the block is made"
            )
        y = self._before("norm1", x)
        if cache is None:
            y = within(".self_attn", attention, y, mask=mask, lengths=lengths, causal=self.causal)
        else:
            y, cache = within(".self_attn", attention, y, mask=mask, lengths=lengths, cache=cache)
        return self._after("norm1", x, y), cache

    def _network(self, x: Tensor) -> Tensor:
        x, p = within(".linear1", self.linear1, x), self.hidden_dropout
        if p is None:
            x = self._drop(x)
        elif p and training(self):
            x = drop(x, p)
        return within(".linear2", self.linear2, x)

    def _before(self, norm: str, x: Tensor) -> Tensor:
        """What goes into a branch."""
        return within(f".{norm}", getattr(self, norm), x) if self.prenorm else x

    def _after(self, norm: str, x: Tensor, y: Tensor) -> Tensor:
        """What went around a branch, and what came out of it, together."""
        y = self._drop(y)
        y = x + (self.drop_path(y) if self.drop_path.p else y)
        return y if self.prenorm else within(f".{norm}", getattr(self, norm), y)

    def _drop(self, x: Tensor) -> Tensor:
        return self.dropout(x) if self.dropout.p else x

    def extra_repr(self) -> str:
        attention, linear = self.self_attn, self.linear1
        dim, hidden = attention.embed_dim, linear.weight.shape[0]
        own = linear.activation is not gelu
        return (
            f"{dim}, {attention.num_heads}"
            + (f", {hidden}" if own or hidden != 4 * dim else "")
            + activation_text(linear.activation, gelu)
            + ("" if self.prenorm else ", prenorm=False")
            + ("" if self.causal == self._causal else f", causal={self.causal}")
            + ("" if self.hidden_dropout is None else f", hidden_dropout={self.hidden_dropout}")
        )


@functor(
    children=(
        "self_attn", "multihead_attn", "linear1", "linear2", "norm1", "norm2", "norm3", "dropout",
        "drop_path",
    )
)  # fmt: skip
class TransformerDecoderBlock(TransformerBlock):
    """A TransformerBlock that also attends another sequence, between its two branches: a decoder's block.

    (Vaswani et al. 2017, arXiv 1706.03762.) It is causal, as a decoder's self-attention is. The one of torch
    is TransformerDecoderLayer.

    Args:
        dim: features of the input, the context and the output.
        num_heads: heads of either attention.
        hidden: as in TransformerBlock. (default: 4·dim)
        activation: as in TransformerBlock. (default: gelu)
        causal: whether a token attends no later ones. (default: True)
        norm: makes a norm from the number of features. (default: LayerNorm)
        options: the other options of TransformerBlock; `rotary` is for the self-attention alone.

    Attributes:
        self_attn: the MultiHeadAttention of the sequence itself.
        multihead_attn: that of the context.
        linear1: a Dense with the activation.
        linear2: a Dense.
        norm1: the norm of the self-attention.
        norm2: the norm of the attention of the context.
        norm3: the norm of the network.
        dropout: a Dropout, left out where its p is 0.
        drop_path: a DropPath, left out where its p is 0.

    Input: x (N, L, dim) and the context (N, S, dim). Output: (N, L, dim). `mask`, `lengths` and `cache` are
    those of the self-attention, `context_mask` and `context_lengths` those of the attention of the context.

    Raises:
        ValueError: as TransformerBlock.
        LayerError: from a call: a part failed.

    Example:
        >>> import torch, fluxlike as fl
        >>> block = fl.TransformerDecoderBlock(8, 2)
        >>> block(torch.randn(2, 5, 8), torch.randn(2, 7, 8), context_lengths=torch.tensor([7, 4])).shape
        torch.Size([2, 5, 8])
    """

    _causal = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int | None = None,
        activation: Activation = gelu,
        *,
        causal: bool = True,
        norm: Norm = LayerNorm,
        **options: Any,
    ) -> None:
        super().__init__(dim, num_heads, hidden, activation, causal=causal, norm=norm, **options)
        passed = {k: v for k, v in options.items() if k in ("num_kv_heads", "bias", "dropout", "init")}
        self.multihead_attn = MultiHeadAttention(dim, num_heads, **passed)
        self.norm3 = norm(dim)

    def __call__(  # type: ignore[override]
        self,
        x: Tensor,
        context: Tensor,
        *,
        mask: Tensor | None = None,
        lengths: Tensor | None = None,
        context_mask: Tensor | None = None,
        context_lengths: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor | tuple[Tensor, KVCache]:
        x, new = self._attend(x, mask, lengths, cache)
        y = self._before("norm2", x)
        y = within(
            ".multihead_attn", self.multihead_attn, y, context, mask=context_mask, lengths=context_lengths
        )
        x = self._after("norm2", x, y)
        x = self._after("norm3", x, self._network(self._before("norm3", x)))
        return x if new is None else (x, new)
