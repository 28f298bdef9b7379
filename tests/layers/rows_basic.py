"""Rows of the table of layers: Dense, Embedding and the like."""

from __future__ import annotations

import torch
from layer_row import Row, floats, indices, together
from torch import Tensor, nn

import fluxlike as fl


class Affine(nn.Module):
    """An elementwise scale and shift."""

    def __init__(self, *size: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.weight
        return y if self.bias is None else y + self.bias


class Twice(nn.Bilinear):
    """A bilinear form of one input."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, x)


class WeightedBag(nn.EmbeddingBag):
    """A bag whose weights come as the second input."""

    def forward(self, indices: Tensor, weights: Tensor) -> Tensor:
        return super().forward(indices, per_sample_weights=weights)


ROWS = [
    Row(
        "Dense",
        lambda: fl.Dense(3, 4, fl.tanh),
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh()),
        floats(5, 3),
        "Dense(3, 4, tanh)  # 16 parameters",
        refused=((5, 4), (3, 5), (0,), ()),
        wanted=r"Dense takes the shape \(…, 3\), found {}",
    ),
    Row(
        "Dense without bias, on sequences",
        lambda: fl.Dense(3, 4, bias=False),
        lambda: nn.Linear(3, 4, bias=False),
        floats(5, 2, 3),
        "Dense(3, 4, bias=False)  # 12 parameters",
        refused=((5, 2, 4),),
        wanted=r"Dense takes the shape \(…, 3\), found {}",
    ),
    Row(
        "Scale",
        lambda: fl.Scale(3, fl.tanh),
        lambda: nn.Sequential(Affine(3), nn.Tanh()),
        floats(5, 2, 3),
        "Scale(3, tanh)  # 6 parameters",
        refused=((5, 4), (5, 1), ()),
        wanted=r"Scale takes the shape \(…, 3\), found {}",
    ),
    Row(
        "Scale of channels",
        lambda: fl.Scale(3, 1, 1, bias=False),
        lambda: Affine(3, 1, 1, bias=False),
        floats(5, 3, 2, 2),
        "Scale(3, 1, 1, bias=False)  # 3 parameters",
        refused=((5, 2, 2, 2), (5, 2)),
        wanted=r"Scale takes the shape \(…, 3, any, any\), found {}",
    ),
    Row(
        "Bilinear",
        lambda: fl.Bilinear((3, 2), 4, fl.tanh),
        lambda: _then_tanh(nn.Bilinear(3, 2, 4)),
        together(floats(5, 3), floats(5, 2)),
        "Bilinear((3, 2), 4, tanh)  # 28 parameters",
    ),
    Row(
        "Bilinear of one input, on sequences",
        lambda: fl.Bilinear(3, 2, bias=False),
        lambda: Twice(3, 3, 2, bias=False),
        floats(5, 2, 3),
        "Bilinear((3, 3), 2, bias=False)  # 18 parameters",
        refused=((5, 4), ()),
        wanted=r"Bilinear takes the shape \(…, 3\), found {}",
    ),
    Row(
        "PReLU",
        fl.PReLU,
        nn.PReLU,
        floats(5, 3),
        "PReLU()  # 1 parameter",
    ),
    Row(
        "PReLU of channels",
        lambda: fl.PReLU(3),
        lambda: nn.PReLU(3),
        floats(5, 3, 2),
        "PReLU(3)  # 3 parameters",
        refused=((5, 2), (3,)),
        wanted=r"PReLU takes the shape \(N, 3, …\), found {}",
    ),
    Row(
        "Embedding",
        lambda: fl.Embedding(6, 3),
        lambda: nn.Embedding(6, 3),
        indices(5, 4, below=6),
        "Embedding(6, 3)  # 18 parameters",
    ),
    Row(
        "EmbeddingBag",
        lambda: fl.EmbeddingBag(6, 3),
        lambda: nn.EmbeddingBag(6, 3),
        indices(5, 4, below=6),
        "EmbeddingBag(6, 3)  # 18 parameters",
    ),
    Row(
        "EmbeddingBag of maxima",
        lambda: fl.EmbeddingBag(6, 3, mode="max"),
        lambda: nn.EmbeddingBag(6, 3, mode="max"),
        indices(5, 4, below=6),
        "EmbeddingBag(6, 3, mode='max')  # 18 parameters",
    ),
    Row(
        "EmbeddingBag of weighted sums",
        lambda: fl.EmbeddingBag(6, 3, mode="sum"),
        lambda: WeightedBag(6, 3, mode="sum"),
        together(indices(5, 4, below=6), floats(5, 4)),
        "EmbeddingBag(6, 3, mode='sum')  # 18 parameters",
        call=lambda bag, indices, weights: bag(indices, per_sample_weights=weights),
    ),
]


def _then_tanh(layer: nn.Module) -> nn.Module:
    layer.register_forward_hook(lambda module, inputs, y: y.tanh())
    return layer
