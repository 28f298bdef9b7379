"""BERT: an encoder of texts, and a classifier of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fluxlike.layers.activations import tanh
from fluxlike.layers.attention.masks import both
from fluxlike.layers.attention.transformer import TransformerBlock
from fluxlike.layers.basic import Dense
from fluxlike.layers.compose import Chain
from fluxlike.layers.dropout import Dropout
from fluxlike.layers.embedding import Embedding
from fluxlike.layers.errors import within
from fluxlike.layers.layernorm import LayerNorm
from fluxlike.layers.lengths import inside, require_lengths
from fluxlike.models.classifier import Classifier
from fluxlike.models.configurations import configuration, require_counts
from fluxlike.models.origins import Origin, Tensors, packed
from fluxlike.models.patches import small_normal
from fluxlike.models.tokens import TokenEmbedding
from fluxlike.trees.functor import functor

__all__ = ["BERT", "BERTConfig", "Encoded", "TextClassifier", "TextEncoder"]


@dataclass(frozen=True, kw_only=True)
class BERTConfig:
    """What a BERT is made of.

    Attributes:
        depth: how many blocks.
        dim: features of a token.
        num_heads: heads of each attention.
        vocabulary: how many tokens there are. (default: 30522, those of the uncased models)
        context: the most tokens of a text. (default: 512)
        segments: how many kinds of parts a text may have, such as question and answer. (default: 2)

    Raises:
        ValueError: a number that is none, or below 1.
    """

    depth: int
    dim: int
    num_heads: int
    vocabulary: int = 30522
    context: int = 512
    segments: int = 2

    def __post_init__(self) -> None:
        require_counts("BERTConfig", **vars(self))


BERTS = {
    "base": BERTConfig(depth=12, dim=768, num_heads=12),
    "large": BERTConfig(depth=24, dim=1024, num_heads=16),
}

_norm = partial(LayerNorm, eps=1e-12)


class Encoded(NamedTuple):
    """What a TextEncoder finds.

    Attributes:
        tokens: features of each token, (N, L, dim).
        pooled: features of each text, (N, dim).
    """

    tokens: Tensor
    pooled: Tensor


@functor(children=("embedding", "segments", "norm", "dropout", "blocks", "pooler"))
class TextEncoder:
    """Features of texts and of their tokens, each seen in the light of all others.

    Args:
        config: "base", "large", or a BERTConfig. (default: "base")
        dropout: the probability for the embedding, for the attention's weights and for the output of either
            branch of a block. (default: 0.1)

    Attributes:
        embedding: the tables of tokens and positions.
        segments: the Embedding of a text's parts.
        norm: the LayerNorm of the sum of the three.
        dropout: a Dropout, left out where its p is 0.
        blocks: a tuple of TransformerBlocks, with their norms at the end of branches.
        pooler: a Dense of the first token.

    Input: tokens, integers (N, L), and segments, integers (N, L), all 0 where they are not given. Texts that
    are shorter than L are padded by any token; `lengths`, integers (N,), says how many count, or `mask`, bool
    (N, L), which ones, True for those. Output: `Encoded`.

    Raises:
        TypeError: from a call: segments that are no tensor, a mask that is not bool, or lengths that are no
            integers.
        ValueError: there is no configuration of this name; from a call: segments or a mask of another shape,
            or lengths outside 0 to L.
        LayerError: from a call: tokens of another shape, more than `context`, outside the vocabulary or no
            integers, or a layer failed otherwise.

    Example:
        >>> import torch, fluxlike as fl
        >>> encoder = fl.models.TextEncoder(fl.models.BERTConfig(depth=2, dim=16, num_heads=2, vocabulary=65))
        >>> tokens, pooled = encoder(torch.randint(65, (3, 8)), lengths=torch.tensor([8, 5, 6]))
        >>> tokens.shape, pooled.shape
        (torch.Size([3, 8, 16]), torch.Size([3, 16]))
    """

    def __init__(self, config: str | BERTConfig = "base", *, dropout: float = 0.1) -> None:
        c = configuration("TextEncoder", BERTS, config)
        self.embedding = TokenEmbedding(c.vocabulary, c.context, c.dim, small_normal)
        self.segments = Embedding(c.segments, c.dim, init=small_normal)
        self.norm, self.dropout = _norm(c.dim), Dropout(dropout)
        self.blocks = tuple(_block(c, dropout) for _ in range(c.depth))
        self.pooler = Dense(c.dim, c.dim, tanh, init=small_normal)

    def __call__(
        self,
        tokens: Tensor,
        segments: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Encoded:
        x = within(".embedding", self.embedding, tokens)
        segments = torch.zeros_like(tokens) if segments is None else segments
        _require_like(tokens, "segments", segments, "torch.zeros_like(tokens) for texts of one part")
        x = within(".norm", self.norm, x + within(".segments", self.segments, segments))
        x = self.dropout(x) if self.dropout.p else x
        keys = _keys(tokens, lengths, mask)
        for i, block in enumerate(self.blocks):
            x = within(f".blocks[{i}]", block, x, mask=keys)
        return Encoded(x, within(".pooler", self.pooler, x[:, 0]))


def _block(config: BERTConfig, dropout: float) -> TransformerBlock:
    return TransformerBlock(
        config.dim,
        config.num_heads,
        dropout=dropout,
        hidden_dropout=0.0,
        norm=_norm,
        prenorm=False,
        init=small_normal,
    )


def _keys(tokens: Tensor, lengths: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """Which tokens may be attended, (N, 1, L)."""
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(
                f"TextEncoder takes a mask of bool, True for tokens that count, found {found}; write "
                "mask.bool()"
            )
        _require_like(tokens, "mask", mask, "tokens != padding")
        mask = mask[:, None]
    if lengths is None:
        return mask
    n, length = tokens.shape
    require_lengths("TextEncoder", lengths, n, 0, length)
    return both(mask, inside(lengths, length, tokens.device)[:, None])


def _require_like(tokens: Tensor, name: str, x: Any, instead: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(
            f"TextEncoder takes {name} as a tensor of the shape of the tokens, {tuple(tokens.shape)}, found "
            f"{type(x).__name__}; write {instead}"
        )
    if x.shape != tokens.shape:
        raise ValueError(
            f"TextEncoder takes {name} of the shape of the tokens, {tuple(tokens.shape)}, found "
            f"{tuple(x.shape)}; write {instead}"
        )


@functor(children=("backbone", "classifier"))
class TextClassifier(Classifier):
    """A TextEncoder and a classifier of what it finds: ``classifier(backbone(tokens, …))``.

    Args:
        backbone: a TextEncoder.
        classifier: layers, from `Encoded` to scores.
        origins: the libraries whose weights `load_weights` can read into the model. (default: none)

    Attributes:
        backbone: the encoder.
        classifier: the layers.
        origins: the libraries.

    Input: as TextEncoder. Output: (N, nclasses), not normalised.

    Raises:
        TypeError: a part that can't be called.
        LayerError: from a call: what the encoder refuses, or a layer failed.

    Example:
        >>> import torch, fluxlike as fl
        >>> config = fl.models.BERTConfig(depth=2, dim=16, num_heads=2, vocabulary=65)
        >>> model = fl.models.BERT(config, nclasses=3)
        >>> model(torch.randint(65, (3, 8)), lengths=torch.tensor([8, 5, 6])).shape
        torch.Size([3, 3])
    """

    def __call__(
        self,
        tokens: Tensor,
        segments: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        x = within(".backbone", self.backbone, tokens, segments, lengths=lengths, mask=mask)
        return within(".classifier", self.classifier, x)


def _prepared(theirs: Tensors) -> Tensors:
    return packed(theirs, (".self.query.", ".self.key.", ".self.value."), ".self.in_proj.")


ORIGINS = (
    Origin(
        "transformers",
        (
            (r"^cls\.|position_ids$", None),
            (r"LayerNorm\.gamma$", "LayerNorm.weight"),
            (r"LayerNorm\.beta$", "LayerNorm.bias"),
            (r"^classifier\.", "classifier.fc."),
            (r"^(bert\.)?(?=embeddings|encoder|pooler)", "backbone."),
            (r"embeddings\.word_embeddings", "embedding.tokens"),
            (r"embeddings\.position_embeddings", "embedding.positions"),
            (r"embeddings\.token_type_embeddings", "segments"),
            (r"embeddings\.LayerNorm", "norm"),
            (r"pooler\.dense", "pooler"),
            (r"encoder\.layer", "blocks"),
            (r"attention\.self", "self_attn"),
            (r"attention\.output\.dense", "self_attn.out_proj"),
            (r"attention\.output\.LayerNorm", "norm1"),
            (r"intermediate\.dense", "linear1"),
            (r"output\.dense", "linear2"),
            (r"output\.LayerNorm", "norm2"),
        ),
        _prepared,
    ),
)


def _pooled(encoded: Encoded) -> Tensor:
    return encoded.pooled


def BERT(config: str | BERTConfig = "base", *, nclasses: int = 2, dropout: float = 0.1) -> TextClassifier:
    """An encoder of texts and a classifier of them (Devlin et al. 2018, arXiv 1810.04805).

    RoBERTa has BERT's names and counts its positions from 2, so its weights would load and give other scores.

    Args:
        config: "base", "large", or a BERTConfig. (default: "base")
        nclasses: how many classes. (default: 2)
        dropout: the probability for the input of the last layer, and as in TextEncoder. (default: 0.1)

    Returns:
        A `TextClassifier`. Input: tokens (N, L), and if need be segments, lengths or a mask, output:
        (N, nclasses). Its backbone is a `TextEncoder`, which gives features of tokens and of texts.

    Raises:
        ValueError: there is no configuration of this name, or `nclasses` is below 1.

    Example:
        >>> import torch, fluxlike as fl
        >>> config = fl.models.BERTConfig(depth=2, dim=16, num_heads=2, vocabulary=65)
        >>> model = fl.models.BERT(config, nclasses=3)
        >>> question, answer = torch.randint(65, (2, 1, 4))
        >>> segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1]])
        >>> model(torch.cat((question, answer), 1), segments).shape
        torch.Size([1, 3])
    """
    c = configuration("BERT", BERTS, config)
    require_counts("BERT", nclasses=nclasses)
    classifier = Chain(pool=_pooled, dropout=Dropout(dropout), fc=Dense(c.dim, nclasses, init=small_normal))
    return TextClassifier(TextEncoder(c, dropout=dropout), classifier, origins=ORIGINS)
