"""GPT: a language model of causal transformer blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import overload

import torch
from torch import Tensor

from fluxlike.layers.activations import gelu_tanh
from fluxlike.layers.attention.cache import KVCache
from fluxlike.layers.attention.transformer import TransformerBlock
from fluxlike.layers.basic import Dense
from fluxlike.layers.dropout import Dropout
from fluxlike.layers.errors import within
from fluxlike.layers.layernorm import LayerNorm
from fluxlike.models.configurations import configuration, require_counts
from fluxlike.models.origins import Origin, Tensors
from fluxlike.models.tokens import TokenEmbedding
from fluxlike.random import normal
from fluxlike.trees.at import at
from fluxlike.trees.functor import functor

__all__ = ["GPT", "GPTConfig"]


@dataclass(frozen=True, kw_only=True)
class GPTConfig:
    """What a GPT is made of.

    Attributes:
        depth: how many blocks.
        dim: features of a token.
        num_heads: heads of each attention.
        vocabulary: how many tokens there are. (default: 50257, those of GPT-2)
        context: the most tokens of a text. (default: 1024)

    Raises:
        ValueError: a number that is none, or below 1.
    """

    depth: int
    dim: int
    num_heads: int
    vocabulary: int = 50257
    context: int = 1024

    def __post_init__(self) -> None:
        require_counts("GPTConfig", **vars(self))


GPTS = {
    "gpt2": GPTConfig(depth=12, dim=768, num_heads=12),
    "gpt2-medium": GPTConfig(depth=24, dim=1024, num_heads=16),
    "gpt2-large": GPTConfig(depth=36, dim=1280, num_heads=20),
    "gpt2-xl": GPTConfig(depth=48, dim=1600, num_heads=25),
}

_TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def _prepared(theirs: Tensors) -> Tensors:
    """The projections as (outputs, inputs); transformers keeps those of GPT-2 as (inputs, outputs)."""
    return {name: x.T if name.endswith(_TRANSPOSED) else x for name, x in theirs.items()}


ORIGINS = (
    Origin(
        "transformers",
        (
            (r"\.attn\.(masked_)?bias$", None),
            (r"^transformer\.", ""),
            (r"^wte", "embedding.tokens"),
            (r"^wpe", "embedding.positions"),
            (r"^ln_f", "norm"),
            (r"^lm_head", "head"),
            (r"^h\.", "blocks."),
            (r"ln_(\d)", r"norm\1"),
            (r"attn\.c_attn", "self_attn.in_proj"),
            (r"attn\.c_proj", "self_attn.out_proj"),
            (r"mlp\.c_fc", "linear1"),
            (r"mlp\.c_proj", "linear2"),
        ),
        _prepared,
    ),
)


@functor(children=("embedding", "dropout", "blocks", "norm", "head"))
class GPT:
    """A language model that says which token may come next, as GPT-2 (Radford et al. 2019).

    The head's weight is that of the tokens' embedding: one tensor at two places (Press & Wolf 2016,
    arXiv 1608.05859). Weights start as in GPT-2: normal, those of the layers at the ends of branches smaller
    by the root of the number of branches.

    Args:
        config: "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", or a GPTConfig. (default: "gpt2")
        dropout: the probability for the embedding, for the attention's weights and for the output of either
            branch of a block. (default: 0.1, the published one, as everywhere in fluxlike.models)

    Attributes:
        embedding: the tables of tokens and positions.
        dropout: a Dropout, left out where its p is 0.
        blocks: a tuple of causal TransformerBlocks, with their norms at the start of branches.
        norm: the LayerNorm after the last block.
        head: a Dense without bias.
        origins: the libraries whose weights `load_weights` can read into the model.

    Input: integers (N, L). Output: logits (N, L, vocabulary), those at i for the token at i + 1. With
    `caches`, one of each block as `GPT.caches` makes them, the tokens continue those in the caches, and
    ``(logits, caches)`` is returned.

    Raises:
        ValueError: there is no configuration of this name; from a call: caches of another number or size.
        TypeError: from a call: caches that are no list of KVCache.
        LayerError: from a call: tokens of another shape, more than `context`, outside the vocabulary or no
            integers, or a layer failed otherwise.

    Example:
        >>> import torch, fluxlike as fl
        >>> config = fl.models.GPTConfig(depth=2, dim=16, num_heads=2, vocabulary=65, context=32)
        >>> model = fl.models.GPT(config)
        >>> tokens = torch.randint(65, (3, 8))
        >>> model(tokens).shape
        torch.Size([3, 8, 65])
        >>> first, caches = model(tokens[:, :5], model.caches(3))
        >>> rest, caches = model(tokens[:, 5:], caches)
        >>> torch.allclose(torch.cat((first, rest), 1), model(tokens), atol=1e-5)
        True
    """

    def __init__(self, config: str | GPTConfig = "gpt2", *, dropout: float = 0.1) -> None:
        c = configuration("GPT", GPTS, config)
        self.embedding = TokenEmbedding(c.vocabulary, c.context, c.dim, partial(normal, std=0.02))
        self.dropout = Dropout(dropout)
        self.blocks = tuple(_block(c, dropout) for _ in range(c.depth))
        self.norm = LayerNorm(c.dim)
        self.head = Dense(c.dim, c.vocabulary, bias=False, init=lambda _: self.embedding.tokens.weight)
        self.origins = ORIGINS

    @property
    def context(self) -> int:
        """The most tokens of a text that a call takes."""
        return self.embedding.context

    @overload
    def __call__(self, tokens: Tensor, caches: None = ...) -> Tensor: ...
    @overload
    def __call__(self, tokens: Tensor, caches: Sequence[KVCache]) -> tuple[Tensor, list[KVCache]]: ...

    def __call__(
        self, tokens: Tensor, caches: Sequence[KVCache] | None = None
    ) -> Tensor | tuple[Tensor, list[KVCache]]:
        before = None if caches is None else self._count(caches)
        x = within(".embedding", self.embedding, tokens, before)
        x = self.dropout(x) if self.dropout.p else x
        new = []
        for i, block in enumerate(self.blocks):
            if caches is None:
                x = within(f".blocks[{i}]", block, x)
            else:
                x, cache = within(f".blocks[{i}]", block, x, cache=caches[i])
                new.append(cache)
        logits = within(".head", self.head, within(".norm", self.norm, x))
        return logits if caches is None else (logits, new)

    def caches(
        self,
        batch: int,
        max_len: int | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: str | torch.device | None = None,
    ) -> list[KVCache]:
        """An empty cache for each block, as `MultiHeadAttention.cache` makes it.

        Args:
            batch: how many texts.
            max_len: for how many tokens there is memory. (default: as many as the model has positions)
            dtype: of the keys and values. (default: that of the weights)
            device: where they are. (default: where the weights are)

        Raises:
            ValueError: `max_len` is beyond the positions.
        """
        length = self.context if max_len is None else max_len
        self._require_positions(length)
        return [block.cache(batch, length, dtype=dtype, device=device) for block in self.blocks]

    def _count(self, caches: Sequence[KVCache]) -> Tensor:
        """How many tokens the caches hold."""
        if not isinstance(caches, (list, tuple)) or not all(isinstance(c, KVCache) for c in caches):
            raise TypeError(
                f"a GPT takes a list of a KVCache for each block, found {_kind(caches)}; make them by "
                "model.caches(batch)"
            )
        if len(caches) != len(self.blocks):
            raise ValueError(
                f"the GPT has {len(self.blocks)} blocks, found {len(caches)} caches; make them by "
                "model.caches(batch)"
            )
        self._require_positions(caches[0].max_len)
        return caches[0].count

    def _require_positions(self, length: int) -> None:
        if length > self.context:
            raise ValueError(
                f"the caches are for {length} tokens, and the GPT has learnt positions for "
                f"{self.context}; write model.caches(batch, {self.context})"
            )


def _kind(x: object) -> str:
    parts = sorted({type(part).__name__ for part in x}) if isinstance(x, (list, tuple)) else []
    return " of ".join((type(x).__name__, *parts))


def _block(config: GPTConfig, dropout: float) -> TransformerBlock:
    block = TransformerBlock(
        config.dim,
        config.num_heads,
        activation=gelu_tanh,
        dropout=dropout,
        hidden_dropout=0.0,
        causal=True,
        init=partial(normal, std=0.02),
    )
    ends = at(block, lambda b: (b.self_attn.out_proj.weight, b.linear2.weight))
    return ends.apply(lambda weight: weight * (2 * config.depth) ** -0.5)
