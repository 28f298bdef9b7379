"""Rows of the table of layers: attention, positions and blocks of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from layer_row import Row, floats, together
from torch import Tensor, nn

import fluxlike as fl


def small(tensors: Any) -> Any:
    """Weights of a size that leaves softmax something to choose between."""
    return fl.fmap(lambda t: 0.4 * torch.randn(t.shape, dtype=torch.float64), tensors)


def to_itself(mha: nn.MultiheadAttention, x: Tensor, **options: Any) -> Tensor:
    return mha(x, x, x, need_weights=False, **options)[0]


def later(n: int) -> Tensor:
    """True where torch.nn lets nothing be attended: at later keys."""
    return torch.ones(n, n, dtype=torch.bool).triu(1)


def lengths(*numbers: int) -> Callable[[], Tensor]:
    return lambda: torch.tensor(numbers)


def padding(x: Tensor, lengths: Tensor) -> Tensor:
    """True where torch.nn lets nothing be attended: at padded keys."""
    return torch.arange(x.shape[1]) >= lengths[:, None]


def apart(sizes: Sequence[int]) -> Callable[[list[Tensor]], list[Tensor]]:
    """torch's q, k and v weights and their one bias, as three layers; then the projection of the output."""

    def order(tensors: list[Tensor]) -> list[Tensor]:
        q, k, v, bias, *others = tensors
        return [x for pair in zip((q, k, v), bias.split(sizes), strict=True) for x in pair] + others

    return order


class Grouped(nn.Module):
    """Attention whose keys and values have fewer heads, with rotated queries and keys, written out."""

    def __init__(self, dim: int, heads: int, groups: int, rotary: int) -> None:
        super().__init__()
        self.heads, self.groups, self.rotary, self.size = heads, groups, rotary, dim // heads
        self.inner = nn.Linear(dim, dim + 2 * groups * self.size, bias=False)
        self.outer = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        n, length, dim = x.shape
        outputs = []
        parts = self.inner(x).split((dim, self.groups * self.size, self.groups * self.size), -1)
        q, k, v = (p.reshape(n, length, -1, self.size) for p in parts)
        for h in range(self.heads):
            g = h * self.groups // self.heads
            query, key = Rotation(self.rotary)(q[:, :, h]), Rotation(self.rotary)(k[:, :, g])
            scores = torch.einsum("nld,nsd->nls", query, key) / self.size**0.5
            scores = scores.masked_fill(later(length), -torch.inf)
            outputs.append(torch.einsum("nls,nsd->nld", scores.softmax(-1), v[:, :, g]))
        return self.outer(torch.cat(outputs, -1))


class Rotation(nn.Module):
    """Rotary positions as products of complex numbers."""

    def __init__(self, dim: int, base: float = 10000.0, *, halves: bool = True) -> None:
        super().__init__()
        self.dim, self.base, self.halves = dim, base, halves

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.tensor(
            [
                [m * self.base ** (-2 * j / self.dim) for j in range(self.dim // 2)]
                for m in range(x.shape[-2])
            ],
            dtype=torch.float64,
        )
        turns = torch.polar(torch.ones_like(angles), angles)
        turned, rest = x[..., : self.dim], x[..., self.dim :]
        pairs = turned.unflatten(-1, (2, -1)) if self.halves else turned.unflatten(-1, (-1, 2)).mT
        numbers = torch.complex(pairs[..., 0, :], pairs[..., 1, :]) * turns
        parts = torch.stack((numbers.real, numbers.imag), -2 if self.halves else -1).flatten(-2)
        return torch.cat((parts, rest), -1)


class Waves(nn.Module):
    """Sinusoidal positions, a column at a time."""

    def __init__(self, dim: int, base: float) -> None:
        super().__init__()
        self.dim, self.base = dim, base

    def forward(self, positions: Tensor) -> Tensor:
        columns = []
        for i in range(self.dim):
            angle = positions / self.base ** (2 * (i // 2) / self.dim)
            columns.append(angle.cos() if i % 2 else angle.sin())
        return torch.stack(columns, -1)


def in_order_of_the_batch(layer: Any) -> Any:
    """The same layer, whose dropout draws in the order of our memory: torch's attention is sequence first."""
    for attention in (layer.self_attn, getattr(layer, "multihead_attn", None)):
        if attention is not None:
            attention.register_forward_hook(lambda _, inputs, out: (out[0].contiguous(), out[1]))
    return layer


def attention(**options: Any) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(4, 2, batch_first=True, **options)


def encoder(**options: Any) -> nn.TransformerEncoderLayer:
    return in_order_of_the_batch(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, **options))


def decoder(**options: Any) -> nn.TransformerDecoderLayer:
    return in_order_of_the_batch(nn.TransformerDecoderLayer(4, 2, 6, batch_first=True, **options))


SIZE = r"MultiHeadAttention takes the shape \(N, L, 4\), found {}"
ATTENTION = (
    "MultiHeadAttention(\n"
    "  4, 2,\n"
    "  in_proj=Dense(4, 12),  # 60 parameters\n"
    "  out_proj=Dense(4, 4),  # 20 parameters\n"
    ")                        # Total: 4 tensors, 80 parameters, 320 bytes"
)


ROWS = [
    Row(
        "MultiHeadAttention",
        lambda: fl.MultiHeadAttention(4, 2),
        attention,
        floats(3, 5, 4),
        ATTENTION,
        refused=((3, 5, 6), (5, 4), (2, 3, 5, 4)),
        wanted=SIZE,
        call_twin=to_itself,
        tensors=small,
    ),
    Row(
        "MultiHeadAttention, causal",
        lambda: fl.MultiHeadAttention(4, 2),
        attention,
        floats(3, 5, 4),
        ATTENTION,
        call=lambda layer, x: layer(x, causal=True),
        call_twin=lambda mha, x: to_itself(mha, x, attn_mask=later(5)),
        tensors=small,
    ),
    Row(
        "MultiHeadAttention of padded sequences",
        lambda: fl.MultiHeadAttention(4, 2),
        attention,
        together(floats(3, 5, 4), lengths(5, 2, 4)),
        ATTENTION,
        call=lambda layer, x, n: layer(x, lengths=n),
        call_twin=lambda mha, x, n: to_itself(mha, x, key_padding_mask=padding(x, n)),
        tensors=small,
    ),
    Row(
        "MultiHeadAttention with a floating mask, causal and padded",
        lambda: fl.MultiHeadAttention(4, 2),
        attention,
        together(floats(3, 5, 4), floats(3, 2, 5, 5), lengths(5, 2, 4)),
        ATTENTION,
        call=lambda layer, x, mask, n: layer(x, mask=mask, causal=True, lengths=n),
        call_twin=lambda mha, x, mask, n: to_itself(
            mha,
            x,
            attn_mask=mask.masked_fill(later(5) | padding(x, n)[:, None, None], -torch.inf).flatten(0, 1),
        ),
        tensors=small,
    ),
    Row(
        "MultiHeadAttention of another sequence",
        lambda: fl.MultiHeadAttention(4, 2),
        attention,
        together(floats(3, 5, 4), floats(3, 2, 4)),
        ATTENTION,
        call_twin=lambda mha, x, context: mha(x, context, context, need_weights=False)[0],
        tensors=small,
    ),
    Row(
        "MultiHeadAttention of queries, keys and values",
        lambda: fl.MultiHeadAttention(4, 2, bias=False),
        lambda: attention(bias=False),
        together(floats(3, 5, 4), floats(3, 2, 4), floats(3, 2, 4)),
        "MultiHeadAttention(\n"
        "  4, 2,\n"
        "  in_proj=Dense(4, 12, bias=False),  # 48 parameters\n"
        "  out_proj=Dense(4, 4, bias=False),  # 16 parameters\n"
        ")                                    # Total: 2 tensors, 64 parameters, 256 bytes",
        call_twin=lambda mha, q, k, v: mha(q, k, v, need_weights=False)[0],
        tensors=small,
    ),
    Row(
        "MultiHeadAttention of other sizes",
        lambda: fl.MultiHeadAttention(4, 2, kdim=3, vdim=5),
        lambda: attention(kdim=3, vdim=5),
        together(floats(3, 5, 4), floats(3, 2, 3), floats(3, 2, 5)),
        "MultiHeadAttention(\n"
        "  4, 2,\n"
        "  in_proj=Projections(\n"
        "    query=Dense(4, 4),   # 20 parameters\n"
        "    key=Dense(3, 4),     # 16 parameters\n"
        "    value=Dense(5, 4),   # 24 parameters\n"
        "  ),                     # 60 parameters\n"
        "  out_proj=Dense(4, 4),  # 20 parameters\n"
        ")                        # Total: 8 tensors, 80 parameters, 320 bytes",
        call_twin=lambda mha, q, k, v: mha(q, k, v, need_weights=False)[0],
        order=apart((4, 4, 4)),
        tensors=small,
    ),
    Row(
        "MultiHeadAttention with dropout",
        lambda: fl.MultiHeadAttention(4, 2, dropout=0.4),
        lambda: attention(dropout=0.4),
        floats(3, 5, 4),
        ATTENTION.replace("4, 2,", "4, 2, dropout=0.4,"),
        call_twin=to_itself,
        tensors=small,
        draws=True,
    ),
    Row(
        "MultiHeadAttention of grouped queries, rotary",
        lambda: fl.MultiHeadAttention(16, 4, num_kv_heads=2, rotary=fl.RotaryEmbedding(2), bias=False),
        lambda: Grouped(16, 4, 2, 2),
        floats(2, 3, 16),
        "MultiHeadAttention(\n"
        "  16, 4, num_kv_heads=2, rotary=RotaryEmbedding(2),\n"
        "  in_proj=Dense(16, 32, bias=False),   # 512 parameters\n"
        "  out_proj=Dense(16, 16, bias=False),  # 256 parameters\n"
        ")                                      # Total: 2 tensors, 768 parameters, 3.000 KiB",
        call=lambda layer, x: layer(x, causal=True),
        tensors=small,
    ),
    Row(
        "RotaryEmbedding, half-split",
        lambda: fl.RotaryEmbedding(4, base=100.0),
        lambda: Rotation(4, 100.0),
        floats(3, 5, 4),
        "RotaryEmbedding(4, base=100.0)",
        refused=((3, 5, 3), (4,)),
        wanted=r"RotaryEmbedding takes the shape \(…, L, D\) with D of at least 4, found {}",
    ),
    Row(
        "RotaryEmbedding, interleaved, of the first features",
        lambda: fl.RotaryEmbedding(4, interleaved=True),
        lambda: Rotation(4, halves=False),
        floats(3, 2, 5, 6),
        "RotaryEmbedding(4, interleaved=True)",
    ),
    Row(
        "SinusoidalEmbedding",
        lambda: fl.SinusoidalEmbedding(6, base=100.0),
        lambda: Waves(6, 100.0),
        floats(3, 4),
        "SinusoidalEmbedding(6, base=100.0)",
    ),
    Row(
        "TransformerBlock",
        lambda: fl.TransformerBlock(4, 2, 6),
        lambda: encoder(norm_first=True, activation=F.gelu, dropout=0.0),
        floats(3, 5, 4),
        "TransformerBlock(\n"
        "  4, 2, 6,\n"
        "  self_attn=MultiHeadAttention(\n"
        "    4, 2,\n"
        "    in_proj=Dense(4, 12),     # 60 parameters\n"
        "    out_proj=Dense(4, 4),     # 20 parameters\n"
        "  ),                          # 80 parameters\n"
        "  linear1=Dense(4, 6, gelu),  # 30 parameters\n"
        "  linear2=Dense(6, 4),        # 28 parameters\n"
        "  norm1=LayerNorm(4),         # 8 parameters\n"
        "  norm2=LayerNorm(4),         # 8 parameters\n"
        "  dropout=Dropout(0.0),\n"
        "  drop_path=DropPath(0.0),\n"
        ")                             # Total: 12 tensors, 154 parameters, 616 bytes",
        refused=((3, 5, 6), (5, 4)),
        wanted=r"TransformerBlock takes the shape \(N, L, 4\), found {}",
        tensors=small,
    ),
    Row(
        "TransformerBlock, norms last, relu, causal, with dropout",
        lambda: fl.TransformerBlock(4, 2, 6, fl.relu, prenorm=False, causal=True, dropout=0.4),
        lambda: encoder(activation=F.relu, dropout=0.4),
        floats(3, 5, 4),
        "TransformerBlock(\n"
        "  4, 2, 6, relu, prenorm=False, causal=True,\n"
        "  self_attn=MultiHeadAttention(\n"
        "    4, 2, dropout=0.4,\n"
        "    in_proj=Dense(4, 12),     # 60 parameters\n"
        "    out_proj=Dense(4, 4),     # 20 parameters\n"
        "  ),                          # 80 parameters\n"
        "  linear1=Dense(4, 6, relu),  # 30 parameters\n"
        "  linear2=Dense(6, 4),        # 28 parameters\n"
        "  norm1=LayerNorm(4),         # 8 parameters\n"
        "  norm2=LayerNorm(4),         # 8 parameters\n"
        "  dropout=Dropout(0.4),\n"
        "  drop_path=DropPath(0.0),\n"
        ")                             # Total: 12 tensors, 154 parameters, 616 bytes",
        call_twin=lambda layer, x: layer(x, src_mask=later(5)),
        tensors=small,
        draws=True,
    ),
    Row(
        "TransformerBlock of padded sequences, with a norm of its own",
        lambda: fl.TransformerBlock(4, 2, 6, norm=lambda n: fl.LayerNorm(n, eps=1e-3)),
        lambda: encoder(norm_first=True, activation=F.gelu, dropout=0.0, layer_norm_eps=1e-3),
        together(floats(3, 5, 4), lengths(5, 2, 4)),
        "TransformerBlock(\n"
        "  4, 2, 6,\n"
        "  self_attn=MultiHeadAttention(\n"
        "    4, 2,\n"
        "    in_proj=Dense(4, 12),         # 60 parameters\n"
        "    out_proj=Dense(4, 4),         # 20 parameters\n"
        "  ),                              # 80 parameters\n"
        "  linear1=Dense(4, 6, gelu),      # 30 parameters\n"
        "  linear2=Dense(6, 4),            # 28 parameters\n"
        "  norm1=LayerNorm(4, eps=0.001),  # 8 parameters\n"
        "  norm2=LayerNorm(4, eps=0.001),  # 8 parameters\n"
        "  dropout=Dropout(0.0),\n"
        "  drop_path=DropPath(0.0),\n"
        ")                                 # Total: 12 tensors, 154 parameters, 616 bytes",
        call=lambda layer, x, n: layer(x, lengths=n),
        call_twin=lambda layer, x, n: layer(x, src_key_padding_mask=padding(x, n)),
        tensors=small,
    ),
    Row(
        "TransformerDecoderBlock",
        lambda: fl.TransformerDecoderBlock(4, 2, 6),
        lambda: decoder(norm_first=True, activation=F.gelu, dropout=0.0),
        together(floats(3, 5, 4), floats(3, 2, 4)),
        "TransformerDecoderBlock(\n"
        "  4, 2, 6,\n"
        "  self_attn=MultiHeadAttention(\n"
        "    4, 2,\n"
        "    in_proj=Dense(4, 12),     # 60 parameters\n"
        "    out_proj=Dense(4, 4),     # 20 parameters\n"
        "  ),                          # 80 parameters\n"
        "  multihead_attn=MultiHeadAttention(\n"
        "    4, 2,\n"
        "    in_proj=Dense(4, 12),     # 60 parameters\n"
        "    out_proj=Dense(4, 4),     # 20 parameters\n"
        "  ),                          # 80 parameters\n"
        "  linear1=Dense(4, 6, gelu),  # 30 parameters\n"
        "  linear2=Dense(6, 4),        # 28 parameters\n"
        "  norm1=LayerNorm(4),         # 8 parameters\n"
        "  norm2=LayerNorm(4),         # 8 parameters\n"
        "  norm3=LayerNorm(4),         # 8 parameters\n"
        "  dropout=Dropout(0.0),\n"
        "  drop_path=DropPath(0.0),\n"
        ")                             # Total: 18 tensors, 242 parameters, 968 bytes",
        call_twin=lambda layer, x, context: layer(x, context, tgt_mask=later(5)),
        tensors=small,
        not_a_tensor=False,
    ),
    Row(
        "TransformerDecoderBlock, norms last, with dropout, of padded sequences",
        lambda: fl.TransformerDecoderBlock(4, 2, 6, fl.relu, prenorm=False, dropout=0.4),
        lambda: decoder(activation=F.relu, dropout=0.4),
        together(floats(3, 5, 4), floats(3, 3, 4), lengths(5, 2, 4), lengths(1, 3, 2)),
        "TransformerDecoderBlock(\n"
        "  4, 2, 6, relu, prenorm=False,\n"
        "  self_attn=MultiHeadAttention(\n"
        "    4, 2, dropout=0.4,\n"
        "    in_proj=Dense(4, 12),     # 60 parameters\n"
        "    out_proj=Dense(4, 4),     # 20 parameters\n"
        "  ),                          # 80 parameters\n"
        "  multihead_attn=MultiHeadAttention(\n"
        "    4, 2, dropout=0.4,\n"
        "    in_proj=Dense(4, 12),     # 60 parameters\n"
        "    out_proj=Dense(4, 4),     # 20 parameters\n"
        "  ),                          # 80 parameters\n"
        "  linear1=Dense(4, 6, relu),  # 30 parameters\n"
        "  linear2=Dense(6, 4),        # 28 parameters\n"
        "  norm1=LayerNorm(4),         # 8 parameters\n"
        "  norm2=LayerNorm(4),         # 8 parameters\n"
        "  norm3=LayerNorm(4),         # 8 parameters\n"
        "  dropout=Dropout(0.4),\n"
        "  drop_path=DropPath(0.0),\n"
        ")                             # Total: 18 tensors, 242 parameters, 968 bytes",
        call=lambda layer, x, context, n, m: layer(x, context, lengths=n, context_lengths=m),
        call_twin=lambda layer, x, context, n, m: layer(
            x,
            context,
            tgt_mask=later(5),
            tgt_key_padding_mask=padding(x, n),
            memory_key_padding_mask=padding(context, m),
        ),
        tensors=small,
        not_a_tensor=False,
        draws=True,
    ),
]
