"""Tokens as vectors: what each is, and where it stands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fluxlike.layers.basic import Init
from fluxlike.layers.embedding import Embedding
from fluxlike.layers.errors import within
from fluxlike.trees.functor import functor

__all__ = ["TokenEmbedding"]


@functor(children=("tokens", "positions"))
class TokenEmbedding:
    """The sum of a learnt vector of each token and one of its position.

    (Gehring et al. 2017, arXiv 1705.03122.)

    Args:
        vocabulary: how many tokens there are.
        context: how many positions.
        dim: length of the vectors.
        init: makes either table from its shape.

    Attributes:
        tokens: an Embedding of (vocabulary, dim).
        positions: an Embedding of (context, dim).

    Called with integers (N, L) and, if they do not begin a text, how many tokens are before them, a 0-d
    tensor of an integer. Output: (N, L, dim).

    Raises:
        TypeError: from a call: no tensor of integers.
        ValueError: from a call: another number of axes, or more tokens than positions.
        LayerError: from a call: a token outside the vocabulary.

    Example:
        >>> import torch, fluxlike as fl
        >>> embedding = TokenEmbedding(10, 16, 4, fl.random.normal)
        >>> embedding(torch.tensor([[3, 1, 4]])).shape
        torch.Size([1, 3, 4])
    """

    def __init__(self, vocabulary: int, context: int, dim: int, init: Init) -> None:
        self.tokens = Embedding(vocabulary, dim, init=init)
        self.positions = Embedding(context, dim, init=init)

    @property
    def context(self) -> int:
        """How many positions there are."""
        return self.positions.weight.shape[0]

    def __call__(self, tokens: Tensor, before: Tensor | None = None) -> Tensor:
        self._require_tokens(tokens)
        at = torch.arange(tokens.shape[1], device=tokens.device)
        at = at if before is None else at + before
        return within(".tokens", self.tokens, tokens) + within(".positions", self.positions, at)

    def _require_tokens(self, tokens: Any) -> None:
        if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.is_complex():
            found = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
            raise TypeError(f"tokens are a tensor of integers of shape (N, L), found {found}")
        if tokens.ndim != 2:
            hint = "; for one text write tokens[None]" if tokens.ndim == 1 else ""
            raise ValueError(f"tokens are of shape (N, L), found {tuple(tokens.shape)}{hint}")
        if tokens.shape[1] > self.context:
            raise ValueError(
                f"there are learnt positions for {self.context} tokens, found {tokens.shape[1]}; write "
                f"tokens[:, -{self.context}:] for the last ones"
            )
