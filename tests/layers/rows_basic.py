"""Rows of the table of layers: Dense, Embedding and the like."""

from __future__ import annotations

from layer_row import Row, floats, indices
from torch import nn

import fluxlike as fl

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
        "Embedding",
        lambda: fl.Embedding(6, 3),
        lambda: nn.Embedding(6, 3),
        indices(5, 4, below=6),
        "Embedding(6, 3)  # 18 parameters",
    ),
]
